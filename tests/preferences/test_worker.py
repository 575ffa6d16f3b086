"""Templates and tokenizers that never end or fill the memory: one line, and the next one works."""

import os
import resource
import shutil
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from mlx_dpo.cli import main
from mlx_dpo.convert import sources
from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.preferences import worker
from mlx_dpo.preferences.chat import chat_format
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
    (found,) = worker.render(tokenizer(template), ASK, add_generation_prompt=True)
    return found


@pytest.fixture(autouse=True)
def a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 1)


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
    assert 2**20 < worker._resident(os.getpid()) < 2**36
    monkeypatch.setattr(worker, "SECONDS", 600)
    monkeypatch.setattr(worker, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(worker, "_resident", lambda pid: 2**40)
    with pytest.raises(UsageError, match="chat template was ended"):
        render(ENDLESS["loops"])


def test_the_process_goes_with_the_one_that_asks() -> None:
    client = worker._Process()
    line, process = client.begin()
    line.close()  # as the kernel does when its owner ends, however
    assert process.wait(timeout=60) == 0


def test_the_process_ends_when_it_is_idle_and_is_not_asked_when_it_may_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert render(PLAIN) == "Who?"
    process = worker._process.process
    assert render(PLAIN) == "Who?"
    assert worker._process.process is process
    worker._process.used -= worker.IDLE
    assert render(PLAIN) == "Who?"
    assert worker._process.process is not process
    monkeypatch.setattr(worker, "IDLE", 0)
    monkeypatch.setattr(resource, "setrlimit", lambda limit, value: None)
    ours, theirs = Pipe()
    with ours, theirs:
        worker.serve(theirs)  # returns, though the line is open


def test_loading_a_model_starts_no_process() -> None:
    worker._process.end()
    sources.load(ORACLE)
    sources.load_tokenizer(ORACLE)
    assert worker._process.process is None


def test_a_process_that_was_ended_by_somebody_else_is_begun_again() -> None:
    assert render(PLAIN) == "Who?"
    process = worker._process.process
    assert process is not None
    process.kill()
    process.wait()
    assert render(PLAIN) == "Who?"


def test_a_process_that_cannot_begin_is_not_blamed_on_the_template(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (program := tmp_path / "program.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(worker, "PROGRAM", program)
    worker._process.end()
    with pytest.raises(MlxDpoError, match="ended with exit code 3") as caught:
        render(PLAIN)
    assert caught.value.exit_code == 1


def words(**parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "x": 1}, "?"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    asked = SimpleNamespace(backend_tokenizer=tokenizer, split_special_tokens=False)
    (ids,) = worker.encode(asked, [text])
    return ids


TWICE = normalizers.Replace("x", "xx")
TO_AND_FRO = [normalizers.Replace("x", "y"), normalizers.Replace("y", "x")]


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.Sequence([TWICE] * 40), normalizers.Sequence([TWICE] * 20 + TO_AND_FRO * 400)],
    ids=["a text that doubles", "without end"],
)
def test_a_tokenizer_that_goes_over_a_limit_is_ended_and_the_next_one_encodes(
    normalizer: Any,
) -> None:
    with pytest.raises(UsageError, match="tokenizer was ended: it may compute for 1 s") as caught:
        encode(words(normalizer=normalizer), "x")
    assert "\n" not in str(caught.value)
    assert encode(words(), "x") == [1]


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (words(pre_tokenizer=pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")), "retry-limit"),
        (Tokenizer(models.WordLevel({"x": 1}, "?")), "Missing \\[UNK\\] token"),
    ],
    ids=["an endless search", "a word it has no token for"],
)
def test_a_tokenizer_that_fails_is_an_error_of_one_line(tokenizer: Tokenizer, reason: str) -> None:
    with pytest.raises(UsageError, match=f"the model's tokenizer fails: .*{reason}"):
        encode(tokenizer, "x" * 30 + "!")
    assert encode(words(), "x") == [1]


def test_tokens_that_are_added_later_are_known() -> None:
    tokenizer = words()
    assert encode(tokenizer, "otter") == [0]
    tokenizer.add_tokens(["otter"])
    assert encode(tokenizer, "otter") == [2]


def test_two_tokenizers_are_not_confused() -> None:
    first, second = words(), Tokenizer(models.WordLevel({"?": 0, "x": 7}, "?"))
    assert [encode(each, "x") for each in (first, second, first)] == [[1], [7], [1]]


@pytest.mark.parametrize("part", ["chat template", "tokenizer"])
def test_the_command_line_ends_with_one_line_and_exit_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ORACLE, folder)
    if part == "chat template":
        (folder / "chat_template.jinja").write_text(DOUBLES)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("o", "oo")] * 40)
        tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder), "--prompt", "Who?"])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    wrong = {"chat template": "chat template was ended", "tokenizer": "1e+12 times as long"}
    assert wrong[part] in line


def test_texts_are_tokenized_a_few_at_a_time_with_the_ids_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = chat_format(sources.load_tokenizer(ORACLE))
    texts = ["a lantern", "", "x" * 30, "b", "c" * 8]
    whole = worker.encode(chat.tokenizer, texts)
    sizes, ask = [], worker._process.ask

    def asked(kind: str, request: Any) -> Any:
        sizes.append(sum(map(len, request()[2])))
        return ask(kind, request)

    monkeypatch.setattr(worker, "REQUEST", 10)
    monkeypatch.setattr(worker._process, "ask", asked)
    assert worker.encode(chat.tokenizer, texts) == whole
    assert sizes == [9, 30, 9]
