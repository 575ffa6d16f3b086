"""Files of other tools, and candidates, where pairs are expected: named, with what to type."""

from pathlib import Path

from mlx_dpo.errors import DataError


def refuse_foreign(*files: str | Path | None) -> None:
    """Refuse candidates, and shapes that `data import` reads and the preference reader does not.

    Raises:
        DataError: If there is one; the message names the command.
    """
    from mlx_dpo.workshop.importers.advice import advice

    for file in files:
        if file is not None and Path(file).is_file():
            line = advice(Path(file))
            if line is not None:
                raise DataError(line)
