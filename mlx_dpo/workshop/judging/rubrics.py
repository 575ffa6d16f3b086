"""What "better" means, by kind: text files that a person can edit."""

import re
from importlib import resources
from pathlib import Path

from mlx_dpo.errors import UsageError
from mlx_dpo.files import make_folder, write_file

GENERAL = "general"  # for kinds without a rubric of their own


def built_in_rubrics() -> dict[str, str]:
    """The texts that come with the program, by kind."""
    folder = resources.files(__package__).joinpath("rubrics")
    files = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    return {file.name.removesuffix(".txt"): file.read_text(encoding="utf-8") for file in files}


def read_rubrics(folder: Path) -> dict[str, str]:
    """The texts of a folder, ``KIND.txt`` each; a folder that is not there is made, to be edited.

    Raises:
        UsageError: If it has no ``general.txt``, or a file can't be read or is blank.
        DiskError: If it can't be made.
    """
    if not folder.exists():
        make_folder(folder)
        for kind, text in built_in_rubrics().items():
            write_file(folder / f"{kind}.txt", text)
    rubrics = {}
    for file in sorted(folder.glob("*.txt")):
        try:
            rubrics[file.stem] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: not readable as text: {error}") from None
        if not rubrics[file.stem].strip():
            raise UsageError(f"{file}: is blank; say in it what makes an answer better")
    if GENERAL not in rubrics:
        raise UsageError(f"{folder}: {GENERAL}.txt is missing; it serves kinds without their own")
    return rubrics


def rubric_for(kind: str, rubrics: dict[str, str]) -> str:
    """The rubric of a kind: its own, else the general one."""
    name = re.sub(r"\s+", "-", kind.strip().lower())
    return rubrics.get(name, rubrics[GENERAL])
