"""Copy the project with the bodies of the course's functions taken out, for a student to write.

    python -m tools.scaffold ../dpo-exercise

The copy is made from the source as it is now. Signatures and docstrings stay; each body becomes a
`NotImplementedError` that says what to write, so that the groups of `tests/test_dpo.py` fail until
it is written. The copy's README says how to run the copy's own code.
"""

import ast
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_dpo.errors import DiskError, MlxDpoError, UsageError

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("pad_and_collate", "sequence_logprob", "dpo_loss", "trainer")  # for `pytest -k`
COPIED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml"),
    *(".gitignore", "mlx_dpo", "convert", "tests", "tools", "benchmarks", "docs", "data"),
    *("notebooks", "checkpoints/README.md", "checkpoints/tiny-sft", "checkpoints/tiny-base"),
)
# The rest of `trainer` is about code that stays.
GIVEN = "of trainer, tests of settings, learning rate and refusals pass from the start"
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")

# Below the title of the copy's README. `python -m` looks in the current folder first.
README_NOTE = """
> This is a copy to practise on: some functions are left for you to write, and
> `NotImplementedError` says what. To train with **your** code, type `python -m mlx_dpo` in this
> folder wherever these pages say `mlx_dpo`: `python -m mlx_dpo train`. The plain command runs the
> clone that it was installed from.
"""

# What to write, by file and by the function's name in it.
EXERCISES: Mapping[str, Mapping[str, str]] = {
    "mlx_dpo/preferences/collate.py": {
        "pad_and_collate_pref": (
            "Raise a ValueError for no examples ('needs at least one example') and for "
            "max_seq_len below 2 ('max_seq_len must be at least 2'). Then, for the chosen and for "
            "the rejected side, make the inputs, the targets and the mask of all pairs. One row "
            "is prompt + response, cut to max_seq_len and filled up with pad_id. Inputs are the "
            "row without its last id, targets the row without its first; the mask is 1 where the "
            "target is a token of the response. Mask by position, not by id."
        ),
        "_collate_side": (
            "A helper of pad_and_collate_pref, which needs the same three arrays twice: inputs, "
            "targets and mask of one side. Delete it if you do without it."
        ),
    },
    "mlx_dpo/training/logprobs.py": {
        "sequence_logprob": (
            "Raise a ValueError ('expected logits (B, T, V) ...') where the shapes disagree. "
            "Then, in float32: log p(target) at each position is the target's logit minus the "
            "logsumexp of all logits there. Add up the positions where the mask is 1, with "
            "mx.where and not with a product: 0 * inf is NaN. A sum, not a mean."
        ),
    },
    "mlx_dpo/training/loss.py": {
        "dpo_loss": (
            "Raise a ValueError where the shapes disagree. The reward of an answer is beta * "
            "(policy - reference), with mx.stop_gradient around the reference. The margin is "
            "chosen minus rejected reward, the loss the mean of -log sigmoid(margin): "
            "nn.softplus(-margin) does not overflow. Return it with the means that the docstring "
            "names."
        ),
    },
    "mlx_dpo/training/step.py": {
        "Step._loss": (
            "Score the batch with self.path(self.model, batch, gradient=True): log-probs (2, B), "
            "chosen in row 0, rejected in row 1; `reference` has the same form. Hand the four "
            "rows and self.beta to dpo_loss, and return what it returns."
        ),
    },
    "mlx_dpo/training/trainer.py": {
        "DPOTrainer.train_step": (
            "Raise a ValueError for an empty list ('no examples to train on'). Keep "
            "self.order.state(). Without examples take self.examples at the indices of "
            "self.order.next_batch(). Let self.stages.take make the update, with number=self.step "
            "and lr=self.lr(). If it raises, restore the order and raise again. Else add 1 to "
            "self.step, and return the metrics."
        ),
    },
}


def body_of(source: str, name: str) -> tuple[int, int]:
    """Lines of a function's body after its docstring: the first, from 0, and the one after.

    Args:
        source: Python.
        name: "function" or "Class.method".

    Raises:
        LookupError: If `source` has no function of that name.
    """
    nodes = ast.parse(source).body
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = [node for node in nodes if isinstance(node, kinds) and node.name == part]
        if not found:
            raise LookupError(f"no function {name}")
        nodes = found[0].body
    if ast.get_docstring(found[0]) is not None:
        nodes = nodes[1:]
    return nodes[0].lineno - 1, nodes[-1].end_lineno or 0


def emptied(source: str, exercises: Mapping[str, str]) -> str:
    """The source with some bodies replaced by an error that says what to write.

    Raises:
        LookupError: If `source` has no function of a name in `exercises`.
    """
    lines = source.splitlines(keepends=True)
    places = {name: body_of(source, name) for name in exercises}
    # From the last to the first, so that line numbers hold.
    for name, (start, end) in sorted(places.items(), key=lambda item: item[1], reverse=True):
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        lines[start:end] = _not_implemented(name, exercises[name], indent)
    return "".join(lines)


def _not_implemented(name: str, text: str, indent: str) -> list[str]:
    wrapped = textwrap.wrap(f"write {name}. {text}", 88 - len(indent))
    wrapped[:-1] = [f"{part} " for part in wrapped[:-1]]
    parts = [f'{indent}    "{part}"\n' for part in wrapped]
    return [f"{indent}raise NotImplementedError(\n", *parts, f"{indent})\n"]


def make_scaffold(out: Path) -> None:
    """Make the copy; it appears whole or not at all.

    Raises:
        UsageError: If `out` is there with something in it, or lies inside the clone.
        DiskError: If the copy can't be written.
    """
    place = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty; give OUT a new name, or remove it")
    if place.is_relative_to(ROOT):
        raise UsageError(f"{out}: lies inside the clone; choose a folder outside, ../dpo-exercise")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".scaffold-", dir=place.parent) as temporary:
            copy = Path(temporary) / "copy"
            for part in COPIED:
                _copy(ROOT / part, copy / part)
            for file, exercises in EXERCISES.items():
                source = (copy / file).read_text("utf-8")
                (copy / file).write_text(emptied(source, exercises), "utf-8")
            title, _, rest = (copy / "README.md").read_text("utf-8").partition("\n")
            (copy / "README.md").write_text(f"{title}\n{README_NOTE}{rest}", "utf-8")
            copy.rename(place)
    except OSError as error:
        raise DiskError(f"{out}: not written: {error.strerror or error}") from None


def _copy(source: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, copy, symlinks=True, ignore=LEFT_OUT)  # a link stays a link
    else:
        shutil.copy2(source, copy)


def main() -> None:
    """Make the copy and say how to go on."""
    if len(sys.argv) != 2 or not sys.argv[1]:
        raise UsageError("make scaffold OUT=../dpo-exercise: OUT is the folder for the copy")
    out, python = Path(sys.argv[1]).expanduser(), shlex.quote(sys.executable)
    make_scaffold(out)
    print(f"{out} is a copy of the project. These bodies are yours to write:")
    for file, exercises in EXERCISES.items():
        print(f"  {file:32} {', '.join(exercises)}")
    print(f"Each group of tests fails until its functions are written ({GIVEN}):")
    print(f"  cd {shlex.quote(str(out))}")
    for group in GROUPS:
        print(f"  {python} -m pytest -q tests/test_dpo.py -k {group}")
    print("Then train with your own code, in that folder (plain `mlx_dpo` runs this clone's):")
    print(f"  {python} -m mlx_dpo train")


if __name__ == "__main__":
    try:
        main()
    except MlxDpoError as error:
        print(f"scaffold: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
