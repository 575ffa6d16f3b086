"""The page of a run, written again while the run goes on."""

from collections.abc import Callable
from pathlib import Path

from mlx_dpo.errors import LockedError
from mlx_dpo.insight.report.page import DataMeasures, write_report
from mlx_dpo.runs.guards import check_free

REFRESH = 5  # seconds between looks at the run, and after which the page loads itself again
_PATIENCE = 3  # looks in a row that find no run at work: a supervised run starts again by itself
_GROWS = ("metrics.jsonl", "samples.jsonl", "result.json")


def follow(
    folder: Path,
    out: Path | None,
    *,
    wait: Callable[[float], object],
    say: Callable[[str], None],
    place: Callable[[Path], str] = str,
    program: str = "mlx_dpo",
) -> Path:
    """Write the page of a run whenever there is something new, until the run ends.

    The page loads itself again every `REFRESH` seconds. The last one, which is also written when
    the user stops this (KeyboardInterrupt), does not.

    Args:
        folder: The run's.
        out: The page; by default ``report.html`` in the folder.
        wait: Waits so many seconds.
        say: Told where the page is, and before that, once, if the run does not train yet.
        place: How to name the page.
        program: What to type for this program.

    Returns:
        The page.

    Raises:
        UsageError: If the folder holds no run, or a file of it is not as runs write it.
        DiskError: If the page can't be written.
    """
    measured: DataMeasures = {}
    seen: list[int] | None = None
    is_told = False
    idle = _PATIENCE
    try:
        while not (folder / "result.json").is_file():
            idle = 0 if _is_held(folder) else idle + 1
            if idle >= _PATIENCE:
                break
            has_begun = (folder / "split.json").is_file()
            if not (has_begun or is_told):
                say(f"{folder}: not training yet; the page comes with the first step")
                is_told = True
            if has_begun and (now := _sizes(folder)) != seen:
                path = write_report(
                    [folder], out, program=program, refresh=REFRESH, measured=measured
                )
                if seen is None:
                    say(f"live: {place(path)} until the run ends or Ctrl-C")
                seen = now
            wait(REFRESH)
    except KeyboardInterrupt:
        if seen is None:
            raise
    return write_report([folder], out, program=program, measured=measured)


def _is_held(folder: Path) -> bool:
    """Whether a process trains in the folder."""
    try:
        check_free(folder)
    except LockedError:
        return True
    return False


def _sizes(folder: Path) -> list[int]:
    files = [folder / name for name in _GROWS]
    return [file.stat().st_size if file.is_file() else 0 for file in files]
