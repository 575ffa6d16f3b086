"""From run folders to a page that opens from disk: no script, no network, one file."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError
from markupsafe import Markup

from mlx_dpo.errors import MlxDpoError, UsageError, one_line
from mlx_dpo.files import write_file
from mlx_dpo.insight.audit.bias import Measures, in_words
from mlx_dpo.insight.audit.checks import check_length
from mlx_dpo.insight.calibration import reliability
from mlx_dpo.insight.charts import MOST_COLOURS, STYLE, swatch
from mlx_dpo.insight.report import pictures
from mlx_dpo.insight.report.record import RunRecord, read_run
from mlx_dpo.insight.sweep import BetaOutcome, FailedBeta
from mlx_dpo.preferences.reader import read_rows, refuse_errors
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.records import Preference
from mlx_dpo.runs.collapse import reward_signs
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.scores import margins, score_groups

NAME = "report.html"
# What comes of numbers, texts and lists in each other's place.
_WRONG_TYPES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
# But for tabs and line breaks; those that turn the direction of writing are among them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    sweep: Sequence[BetaOutcome] = (),
    failed: Sequence[FailedBeta] = (),
) -> Path:
    """Write the page of one run, or of some one after the other; returns its path.

    By default the page is `report.html` in the first folder. Where the runs are a sweep, `sweep`
    holds the results of each beta, and `failed` the betas without a finished run.

    Raises:
        UsageError: If a folder holds no run, or a file of one is not as runs write it.
        DiskError: If the page can't be written.
    """
    path = out or folders[0] / NAME
    try:
        page = _page([read_run(folder) for folder in folders], sweep, failed)
    except (*_WRONG_TYPES, TemplateError) as error:
        raise UsageError(
            f"{', '.join(map(str, folders))}: a file of the run is not as runs write it "
            f"({one_line(error)}); restore it, or leave the run out"
        ) from None
    write_file(path, page)
    return path


def _page(
    runs: Sequence[RunRecord], sweep: Sequence[BetaOutcome], failed: Sequence[FailedBeta]
) -> str:
    names = _names([run.folder for run in runs])
    is_overlaid = 1 < len(runs) <= MOST_COLOURS
    # The runs of a sweep share their data: each file is read once.
    measured = {data: _measure(*data) for data in {_data_of(run) for run in runs}}
    return fill_template(
        title=f"DPO report: {', '.join(names)}",
        runs=[_parts(run, measured[_data_of(run)]) for run in runs],
        names=names,
        together=pictures.curves_together(runs) if is_overlaid else [],
        swatches=[Markup(swatch(number)) for number, _ in enumerate(runs, 1)],
        sweep=pictures.against_beta(sweep) if sweep else [],
        outcomes=sweep,
        failed=failed,
    )


def fill_template(**parts: Any) -> str:
    """A page as text. Whatever comes from data or a model is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = files("mlx_dpo.insight.report").joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(plot_style=Markup(STYLE), **parts)
    # JSON may hold a lone surrogate, which UTF-8 can't encode, and characters that control screens.
    page = page.encode("utf-8", "replace").decode().replace("\r\n", "\n")
    return _CONTROL.sub("\ufffd", page)


def command(config: RunConfig) -> str:
    """What to type for the same run once more: the settings that are not the defaults."""
    words = ["mlx_dpo", "train"]
    values = asdict(config)
    for setting in fields(config):
        value = values[setting.name]
        is_default = value == setting.default and setting.name not in ("model", "data")
        if value is None or is_default or setting.name in ("run_dir", "out", "overwrite"):
            continue
        name = f"--{setting.name.replace('_', '-')}"
        words += [name] if value is True else [name, str(value)]
    return shlex.join(words)


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of the runs on the page: their folders, with the parent where two are called alike."""
    names = [folder.name for folder in folders]
    is_clear = len(set(names)) == len(set(folders))
    return names if is_clear else [f"{folder.parent.name}/{folder.name}" for folder in folders]


def _data_of(run: RunRecord) -> tuple[str, bool]:
    """A run's data file, and whether its rows with errors were left out."""
    return str(run.config.data), run.config.drop_bad


def _measure(file: str, drop_bad: bool) -> Measures | MlxDpoError:
    """Lengths of all pairs of a data file, or why there are none: it may have moved or changed."""
    problems, num_read = Problems(), 0

    def usable() -> Iterator[Preference]:
        nonlocal num_read
        for row in read_rows(file, problems, compare=False):
            num_read += 1
            if row.preference is not None:
                yield row.preference

    try:
        measures = in_words(usable())
        if problems.cut_short or not drop_bad:
            refuse_errors(problems, num_read)
    except MlxDpoError as error:
        return error
    return measures


def _parts(run: RunRecord, measured: Measures | MlxDpoError) -> dict[str, Any]:
    drawings = pictures.run_curves(run) if run.steps else []
    groups, calibration = [], None
    if run.policy.size:
        scores, beta = (run.policy, run.reference), run.config.beta
        groups = score_groups(*scores, [kind or "(none)" for kind in run.kinds], beta=beta)
        calibration = reliability(margins(*scores, beta=beta))
        drawings.append(pictures.accuracy_by_kind(groups))
        drawings.append(pictures.calibration_diagram(calibration))
    if isinstance(measured, Measures):
        check = check_length(measured)
        length = f"{check.verdict}: {check.reason}"
        drawings.append(pictures.length_histogram(measured.gaps))
    else:
        length = f"not checked: {measured}"
    return {
        "run": run,
        "command": command(run.config),
        "groups": groups,
        "calibration": calibration,
        "pictures": drawings,
        "length": length,
        "warnings": _warnings(run),
        "cost": run.cost(),
    }


def _warnings(run: RunRecord) -> list[str]:
    warnings = reward_signs(run.steps)
    if not run.is_finished:
        warnings.append(f"the run is not finished: {len(run.steps)} steps are recorded")
    if run.config.adapter_reference == "base":
        warnings.append(
            "the reference is the model without the adapter that training started from: loss and "
            "rewards do not start at log 2 and 0"
        )
    if not run.policy.size:
        warnings.append("no pair was held out: nothing here says how it does on unseen pairs")
    return warnings
