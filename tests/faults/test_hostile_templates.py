"""Chat templates that would never end or fill the memory: one line, and the next one renders."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_dpo.cli import main
from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.preferences import templates
from mlx_dpo.records import Message
from tests.runs.conftest import ORACLE

ASK = [[Message("user", "Who?")]]
PLAIN = "{{ messages[0].content }}"
DOUBLES = (
    "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(99) }}",
    "one operation": "{{ (messages | length + 9) ** 99999999 }}",
}
TOO_BIG = {
    "a string that doubles": DOUBLES,
    "a number of spaces": "{{ '%9999999999d' % 1 }}",
    "a constant": "{{ 'x' * 9999999999 }}",
    "a list": "{{ [messages] * 9999999999 }}",
    "text": "{% for i in range(9) %}{{ 'x' * 999999 }}{% endfor %}",
}
REFUSED = {
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "deep macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "files": "{% include '/etc/passwd' %}",
    "code": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


def tokenizer(template: str) -> SimpleNamespace:
    return SimpleNamespace(get_chat_template=lambda: template, special_tokens_map={})


def render(template: str) -> str | DataError:
    (found,) = templates.render(tokenizer(template), ASK, add_generation_prompt=True)
    return found


@pytest.fixture(autouse=True)
def a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)


@pytest.mark.parametrize(
    "template", [*ENDLESS.values(), *TOO_BIG.values()], ids=[*ENDLESS, *TOO_BIG]
)
def test_a_template_that_goes_over_a_limit_is_ended_and_the_next_one_renders(template: str) -> None:
    with pytest.raises(UsageError, match="chat template was ended") as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert render(PLAIN) == "Who?"


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_what_the_sandbox_forbids_is_a_refusal(template: str) -> None:
    found = render(template)
    assert isinstance(found, DataError)
    assert "refuses the conversation" in str(found)


def test_memory_is_looked_at_where_the_kernel_does_not_limit_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 2**20 < templates._resident(os.getpid()) < 2**36
    monkeypatch.setattr(templates, "SECONDS", 600)
    monkeypatch.setattr(templates, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(templates, "_resident", lambda pid: 2**40)
    with pytest.raises(UsageError, match="chat template was ended"):
        render(ENDLESS["loops"])


def test_the_process_goes_with_the_one_that_asks() -> None:
    renderer = templates._Renderer()
    renderer.prepare()
    assert renderer._line is not None
    assert renderer._process is not None
    renderer._line.close()  # as the kernel does when its owner ends, however
    assert renderer._process.wait(timeout=60) == 0


def test_a_process_that_was_ended_by_somebody_else_is_begun_again() -> None:
    assert render(PLAIN) == "Who?"
    process = templates._renderer._process
    assert process is not None
    process.kill()
    process.wait()
    assert render(PLAIN) == "Who?"


def test_a_process_that_cannot_begin_is_not_blamed_on_the_template(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (program := tmp_path / "program.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(templates, "PROGRAM", program)
    templates._renderer.end()
    with pytest.raises(MlxDpoError, match="ended with exit code 3") as caught:
        render(PLAIN)
    assert caught.value.exit_code == 1


def test_the_command_line_ends_with_one_line_and_exit_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ORACLE, folder)
    (folder / "chat_template.jinja").write_text(DOUBLES)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder), "--prompt", "Who?"])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "chat template was ended" in line
