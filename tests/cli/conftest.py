"""A command as it is typed: in a folder with pairs in it, with its exit code and what it shows."""

import pytest

from mlx_dpo.cli import main
from tests.runs.conftest import workplace

__all__ = ["workplace"]  # a fixture, used by its name


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err
