"""A folder with pairs to type commands in, and what a typed command shows."""

import pytest

from mlx_dpo.cli import main
from tests.runs.conftest import workplace

__all__ = ["workplace"]  # a fixture, used by its name


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err
