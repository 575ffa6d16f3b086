"""The command lives where streams are closed, TMPDIR is missing, few files open, or a GPU fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.cli import cli, main
from mlx_dpo.cli.train import train

MENDED = "from mlx_dpo.__main__ import _mend_surroundings; _mend_surroundings(); import os, sys; "


def run(code: str, *, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'{before} exec "$0" -c "$1"' + " 2>&1", sys.executable, MENDED + code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = f"number = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY); "
    code += "print('not written into the file', file=sys.stderr); sys.exit(number)"
    words = [sys.executable, "-c", MENDED + code]
    ended = subprocess.run(["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *words], check=False)
    assert ended.returncode > 2
    assert (tmp_path / "file").read_bytes() == b""


def test_a_stderr_that_nobody_reads_any_more_ends_nothing() -> None:
    code = "os.close(2); print('x' * 100000, file=sys.stderr); sys.stderr.flush(); print('on')"
    ended = run(code)
    assert (ended.returncode, ended.stdout) == (0, "on\n")


def test_a_tmpdir_that_is_not_there_is_named_and_not_used() -> None:
    ended = run("import tempfile; print(tempfile.gettempdir())", TMPDIR="/none")
    said, folder = ended.stdout.splitlines()
    assert said == "mlx_dpo: TMPDIR '/none' is no folder to write to, and is not used"
    assert Path(folder).is_dir()


def test_mlx_lm_is_imported_where_few_files_may_be_open() -> None:
    ended = run(
        "import mlx_lm, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))",
        before="ulimit -n 512;",
    )
    assert ended.stdout == "(512, 512)\n"


@pytest.mark.parametrize(
    ("number", "advice"), [(5, "the disk reports errors"), (28, "make room"), (30, "read-only")]
)
def test_an_error_of_the_disk_that_nothing_expects_exits_7_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, advice: str
) -> None:
    def fail(**options: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(train, "callback", fail)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlx_dpo: some/file: failed: ")
    assert advice in line


@pytest.mark.parametrize("command", ["eval", "generate", "convert", "train"])
def test_only_train_speaks_of_checkpoints_after_a_fault(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error.")

    monkeypatch.setattr(cli.commands[command], "invoke", fail)
    monkeypatch.setattr(cli.commands[command], "parse_args", lambda *_: [])
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlx_dpo: the GPU failed ([METAL] Command buffer execution failed")
    assert ("--resume" in line) == ("--batch-size" in line) == (command == "train")
    assert line.endswith("; run the command again") == (command != "train")
