"""From run folders to a page that opens from disk: one file, no network, one script of its own."""

import hashlib
import re
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, Template, TemplateError
from markupsafe import Markup, escape

from mlx_dpo.errors import DataError, MlxDpoError, UsageError, one_line
from mlx_dpo.files import write_file
from mlx_dpo.insight.audit.bias import Measures, in_words
from mlx_dpo.insight.audit.checks import LOOK, OK, STOP, check_length
from mlx_dpo.insight.calibration import reliability
from mlx_dpo.insight.charts import MOST_COLOURS, STYLE, swatch
from mlx_dpo.insight.displacement import MOST, shift_of
from mlx_dpo.insight.report import pictures
from mlx_dpo.insight.report.differences import run_names, word_changes
from mlx_dpo.insight.report.record import RunCost, RunRecord, read_run
from mlx_dpo.insight.sweep import BetaOutcome, FailedBeta, advise
from mlx_dpo.preferences.reader import read_rows, refuse_errors
from mlx_dpo.preferences.schema import Problems, by_code
from mlx_dpo.preferences.scores import (
    GroupScore,
    is_taught,
    margins,
    score_groups,
    wilson_interval,
)
from mlx_dpo.records import Preference
from mlx_dpo.runs.collapse import reward_signs
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.plan import gigabytes
from mlx_dpo.runs.verdict import BETTER, CHANGED, COLLAPSED, LOOPING, SAME, WORSE

NAME = "report.html"
DataMeasures = dict[tuple[str, bool], Measures | MlxDpoError]

# What comes of numbers, texts and lists in each other's place.
_WRONG_TYPES = (
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError),
    RecursionError,
)
# But for tabs and line breaks; those that turn the direction of writing are among them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_OPTION = re.compile(r"--[a-z][\w-]*")
# Class of the style sheet, and a sign beside the colour, which not everybody can tell apart.
_GOOD, _BAD, _CARE = ("good", "\u2713"), ("bad", "\u2715"), ("care", "!")
_OF_OUTCOME = {BETTER: _GOOD, WORSE: _BAD, COLLAPSED: _BAD, LOOPING: _BAD}
_OF_CHECK = {OK: _GOOD, LOOK: _CARE, STOP: _BAD}
_OF_MARK = {BETTER: ("good", "\u25b2"), WORSE: ("bad", "\u25bc"), CHANGED: ("care", "\u2260")}


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    sweep: Sequence[BetaOutcome] = (),
    failed: Sequence[FailedBeta] = (),
    *,
    program: str = "mlx_dpo",
    refresh: int = 0,
    measured: DataMeasures | None = None,
) -> Path:
    """Write the page of one run, or of some one after the other; returns its path.

    Args:
        folders: Of the runs.
        out: The page; by default `report.html` in the first folder.
        sweep: Results of each beta, where the runs are a sweep; in the order of the runs.
        failed: Betas of the sweep without a finished run.
        program: What to type for this program, in the command for the same run.
        refresh: Seconds after which the page loads itself again; 0 for a page that does not.
        measured: Lengths of data files that were read earlier; those read now are added.

    Raises:
        UsageError: If a folder holds no run, or a file of one is not as runs write it.
        DiskError: If the page can't be written.
    """
    path = out or folders[0] / NAME
    measured = {} if measured is None else measured
    try:
        runs = [read_run(folder) for folder in folders]
        unknown = {_data_of(run) for run in runs if run.lengths is None}
        for data in unknown - measured.keys():  # each file is read once
            measured[data] = _measure(*data)
        about = _of_runs(runs, measured, program) | _of_sweep(sweep, failed)
        page = fill_template(program=program, refresh=refresh, **about)
    except (*_WRONG_TYPES, TemplateError) as error:
        raise UsageError(
            f"{', '.join(map(str, folders))}: a file of the run is not as runs write it "
            f"({one_line(error)}); restore it, or leave the run out"
        ) from None
    write_file(path, page)
    return path


def fill_template(**parts: Any) -> str:
    """A page as text. Whatever comes from data or a model is escaped."""
    page = _template().render(parts)
    # JSON may hold a lone surrogate, which UTF-8 can't encode, and characters that control screens.
    page = page.encode("utf-8", "replace").decode().replace("\r\n", "\n")
    return _CONTROL.sub("\ufffd", page)


@cache
def _template() -> Template:
    """The page's template, with its style sheet, its script and the script's digest."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    script = _resource("hover.js")
    environment.globals |= {
        "style": Markup(_resource("page.css") + STYLE),
        "script": Markup(script),
        "script_digest": b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "word_changes": word_changes,
        "whole": _whole,
        **{"share": _share, "wilson": _interval, "bytes": gigabytes, "duration": _duration},
        **{"of_mark": _OF_MARK, "bad": _BAD, "care": _CARE, "same": SAME},
    }
    return environment.from_string(_resource("page.html"))


def command(config: RunConfig, program: str = "mlx_dpo") -> str:
    """What to type for the same run once more: the settings that are not the defaults.

    Where it writes is left to the defaults, which take the next free names: it runs as it stands.
    """
    words = [program, "train"]
    values = asdict(config)
    for setting in fields(config):
        value = values[setting.name]
        is_default = value == setting.default and setting.name not in ("model", "data")
        if value is None or is_default or setting.name in ("run_dir", "out", "overwrite"):
            continue
        name = f"--{setting.name.replace('_', '-')}"
        words += [name] if value is True else [name, str(value)]
    return shlex.join(words)


def _resource(name: str) -> str:
    return files("mlx_dpo.insight.report").joinpath(name).read_text(encoding="utf-8")


def _of_runs(runs: Sequence[RunRecord], measured: DataMeasures, program: str) -> dict[str, Any]:
    names = run_names(runs)
    is_overlaid = 1 < len(runs) <= MOST_COLOURS
    return {
        "title": f"DPO report: {', '.join(names)}",
        "runs": [
            {**_parts(run, _measures(run, measured)), "command": command(run.config, program)}
            for run in runs
        ],
        "names": names,
        "together": pictures.curves_together(runs, names) if is_overlaid else [],
        "swatches": [Markup(swatch(number)) for number, _ in enumerate(runs, 1)],
    }


def _of_sweep(sweep: Sequence[BetaOutcome], failed: Sequence[FailedBeta]) -> dict[str, Any]:
    if not sweep:
        return {}
    advice = advise(sweep)
    return {
        "sweep": pictures.against_beta(sweep),
        "outcomes": sweep,
        "failed": failed,
        "advice": advice,
        "advice_sign": _GOOD if advice.is_clear else _CARE,
    }


def _data_of(run: RunRecord) -> tuple[str, bool]:
    """A run's data file, and whether its rows with errors were left out."""
    return str(run.config.data), run.config.drop_bad


def _measures(run: RunRecord, measured: DataMeasures) -> Measures | MlxDpoError:
    """Lengths of a run's pairs: in tokens, as `train` judged them, where the run kept them."""
    return measured[_data_of(run)] if run.lengths is None else Measures("tokens", run.lengths)


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
        if not len(measures.gaps):
            raise DataError(f"{file}: no pair is left ({by_code(problems.counts)})")
    except MlxDpoError as error:
        return error
    return measures


def _parts(run: RunRecord, measured: Measures | MlxDpoError) -> dict[str, Any]:
    """What the template shows of a run."""
    drawings = pictures.run_curves(run) if run.steps else []
    groups, calibration = [], None
    if run.policy.size:
        judged = is_taught(run.kinds, run.untaught)
        groups = _groups(run, judged)
        if not judged.all():
            first, *kinds = _groups(run, ~judged)
            groups += [replace(first, name="not trained on"), *kinds]
        scores = run.policy[:, judged], run.reference[:, judged]
        calibration = reliability(margins(*scores, beta=run.config.beta))
        drawings.append(pictures.accuracy_by_kind(groups))
        drawings.append(pictures.calibration_diagram(calibration))
    if isinstance(measured, Measures):
        check = check_length(measured)
        length = {"verdict": check.verdict, "reason": check.reason}
        drawings.append(pictures.length_histogram(measured))
    else:
        length = {"verdict": "", "reason": f"not checked: {measured}"}
    cost = run.cost()
    return {
        "run": run,
        "groups": groups,
        "shift": shift_of(run.policy, run.reference) if run.policy.size else None,
        "displaced": run.displaced[:MOST],
        "calibration": calibration,
        "pictures": drawings,
        "length": length,
        "length_sign": _OF_CHECK.get(length["verdict"], ("", "")),
        "sign": _OF_OUTCOME.get(run.verdict.get("outcome", ""), _CARE),
        "when": _when(cost) if cost else "",
        "left": _time_left(run, cost) if cost else "",
        "resume": shlex.join(["train", "--resume", "--run-dir", str(run.folder)]),
        "warnings": _warnings(run),
        "cost": cost,
    }


def _groups(run: RunRecord, rows: npt.NDArray[np.bool_]) -> list[GroupScore]:
    kinds = [run.kinds[row] or "(none)" for row in np.flatnonzero(rows)]
    return score_groups(run.policy[:, rows], run.reference[:, rows], kinds, beta=run.config.beta)


def _warnings(run: RunRecord) -> list[str]:
    is_told = run.verdict.get("outcome") == COLLAPSED  # by the headline
    warnings = [] if is_told else reward_signs(run.steps)
    if run.config.adapter_reference == "base":
        warnings.append(
            "the reference is the model without the adapter that training started from: loss and "
            "rewards do not start at log 2 and 0"
        )
    if not run.split["held_out"]:
        warnings.append("no pair was held out: nothing here says how it does on unseen pairs")
    return [*warnings, *(f"{file}; what stands here may be wrong" for file in run.changed)]


def _whole(text: str) -> Markup:
    """Text in which no name of an option is broken at its hyphens."""
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text))))


def _share(value: float, num_pairs: int) -> str:
    """`0.60` and its 95 % interval in small print, for a cell of a table."""
    low, high = wilson_interval(value * num_pairs, num_pairs)
    return Markup(f"{value:.2f} <small>{low:.2f}\u2013{high:.2f}</small>")


def _interval(score: GroupScore) -> tuple[float, float]:
    """The 95 % interval of a reward accuracy."""
    return wilson_interval(score.reward_accuracy * score.num_pairs, score.num_pairs)


def _when(cost: RunCost) -> str:
    """`2026-11-30, 14:12 to 14:13 UTC`; empty for a run that did not note the time."""
    if not (cost.began and cost.ended):
        return ""
    begin, end = (datetime.fromtimestamp(each).astimezone() for each in (cost.began, cost.ended))
    last = f"{end:%H:%M %Z}" if begin.date() == end.date() else f"{end:%Y-%m-%d, %H:%M %Z}"
    return f"{begin:%Y-%m-%d, %H:%M} to {last}"


def _duration(seconds: float) -> str:
    """`10.2 s`, or `1:02:05` from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _time_left(run: RunRecord, cost: RunCost) -> str:
    return _duration(cost.seconds / cost.steps * max(0, run.planned_steps - len(run.steps)))
