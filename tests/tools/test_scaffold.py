"""A student's copy: the groups fail until the bodies are written, and nothing else is changed."""

import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.scaffold import EXERCISES, GROUPS, ROOT, body_of, emptied

# One quick test of each group.
QUICK = (
    "test_pad_and_collate_gives_the_arrays_of_its_docstring",
    "test_sequence_logprob_of_equal_logits_counts_tokens",
    "test_dpo_loss_of_margins_0_1_and_2",
    "test_trainer_starts_at_exactly_log_2_and_zero_rewards",
)


def scaffold(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.scaffold", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scaffold") / "exercise"
    done = scaffold(out)
    assert done.returncode == 0, done.stderr
    assert all(f"-k {group}\n" in done.stdout for group in GROUPS)
    assert done.stdout.endswith(" -m mlx_dpo train\n")
    return out


def test_the_copy_says_how_its_own_code_is_run_though_another_clone_is_installed(
    copy: Path,
) -> None:
    lines = (copy / "README.md").read_text("utf-8").splitlines()
    assert lines[0] == "# mlx-dpo"
    assert any("`python -m mlx_dpo train`" in line for line in lines[:6])
    done = subprocess.run(
        [sys.executable, "-v", "-m", "mlx_dpo", "--help"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{copy}/mlx_dpo/cli/" in done.stderr
    assert f"{ROOT}/mlx_dpo/" not in done.stderr


def test_in_the_copy_each_group_fails_with_what_to_write(copy: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--tb=line", "-p", "no:cacheprovider"),
            *(f"tests/test_dpo.py::{name}" for name in QUICK),
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"^/\S+: NotImplementedError: write ([\w.]+)\.", done.stdout, re.M)
    first = [next(iter(exercises)) for exercises in EXERCISES.values()]
    assert errors == [name for name in first if name != "Step._loss"], done.stdout
    assert "4 failed" in done.stdout


@pytest.mark.parametrize("file", EXERCISES)
def test_with_its_bodies_put_back_a_file_is_the_source_to_the_byte(copy: Path, file: str) -> None:
    source = (ROOT / file).read_bytes().decode()
    text = (copy / file).read_bytes().decode()
    assert text != source
    for name in EXERCISES[file]:
        start, end = body_of(source, name)
        body = source.splitlines(keepends=True)[start:end]
        lines = text.splitlines(keepends=True)
        start, end = body_of(text, name)
        assert lines[start].strip() == "raise NotImplementedError("
        text = "".join([*lines[:start], *body, *lines[end:]])
    assert text == source


def test_every_other_file_of_the_code_is_copied_as_it_is(copy: Path) -> None:
    for folder in ("mlx_dpo", "convert", "tests", "data"):
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".json")]
        names = {str(path.relative_to(ROOT)) for path in files} - EXERCISES.keys()
        assert names
        assert filecmp.cmpfiles(ROOT, copy, names, shallow=False)[1:] == ([], [])
    assert (copy / "mlx_dpo" / "convert").readlink() == Path("../convert")


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = scaffold(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"scaffold: {tmp_path}: exists and is not empty; give OUT a new name, or remove it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["docs/copy"], "lies inside the clone"), ([""], "OUT is the folder for the copy")],
    ids=["inside", "none"],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    done = scaffold(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_function_that_is_gone_is_named() -> None:
    with pytest.raises(LookupError, match="no function dpo_loss"):
        emptied("def other():\n    return 1\n", {"dpo_loss": "anything"})
