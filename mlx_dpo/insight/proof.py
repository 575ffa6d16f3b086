"""What an exported model keeps of its run's result, measured on the pairs the run held out.

A preference-tuned model differs from its reference by little, and rounding may undo it. The margin,
chosen minus rejected reward, is measured before and after: of the trained model, and of the
exported one as its files hold it, both against the run's reference and in the run's dtype, so that
they differ by their weights alone. One model is in memory at a time.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.sources import Source, date_of, load_source, locate, read_record
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.evaluation import ShowProgress, setting_of_run
from mlx_dpo.insight.scoring import (
    LoadedModel,
    Named,
    check_same_tokens,
    score_pairs,
)
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.scores import Logprobs, margins
from mlx_dpo.records import Preference, PreferenceExample
from mlx_dpo.runs.config import DTYPES
from mlx_dpo.runs.sources import held_out_file

ENOUGH = 0.9  # of the margin
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class NotMeasurableError(Exception):
    """There are no pairs or no reference to measure on; the message says why.

    Attributes:
        moved: Whether another file of pairs may help.
    """

    def __init__(self, reason: str, *, moved: bool = False) -> None:
        super().__init__(reason)
        self.moved = moved


@dataclass(frozen=True)
class Trial:
    """What an export is measured by.

    Attributes:
        trained: The trained model.
        reference: What its rewards are against.
        chat: Its conversation format.
        examples: The pairs its run held out.
        beta: Of the run.
        max_length: Of the run, in tokens.
        dtype: The models are computed in; None for what each is loaded in by default.
        recorded: Margin that the run itself measured on its pairs; None where it says none.
    """

    trained: Source
    reference: Source
    chat: ChatFormat
    examples: Sequence[PreferenceExample]
    beta: float
    max_length: int
    dtype: str | None
    recorded: float | None


@dataclass(frozen=True)
class Margin:
    """The mean margin of a trained model on held-out pairs, with its 95 % interval."""

    num_pairs: int
    mean: float
    low: float
    high: float

    @property
    def is_measurable(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.4f} to {self.high:+.4f}"
        pairs = f"{self.num_pairs} held-out pair{'s'[: self.num_pairs != 1]}"
        return f"{self.mean:+.4f} on {pairs} ({interval})"


@dataclass(frozen=True)
class Proof:
    """What an export keeps.

    Attributes:
        trained: Margin before.
        exported: Mean margin after.
        moved_by_training, moved: Mean absolute change of a response's log-prob, in nats, from the
            reference to the trained model, and from that to the exported one.
    """

    trained: Margin
    exported: float
    moved_by_training: float
    moved: float

    @property
    def kept(self) -> float | None:
        """Share of the mean margin, at least 0; None where the one before may be zero.

        It is the ratio of the two, and 2 less the ratio where that is above 1: rounding that makes
        a margin larger has changed the model as much.
        """
        if not self.trained.is_measurable:
            return None
        return max(0.0, 1 - abs(self.exported / self.trained.mean - 1))

    @property
    def shown(self) -> str:
        """`kept` in two digits, never rounded up to what is enough."""
        assert self.kept is not None
        return f"{self.kept if self.is_enough else min(self.kept, ENOUGH - 0.01):.2f}"

    @property
    def is_enough(self) -> bool:
        """Whether the export may be written without being asked for twice."""
        return self.kept is None or self.kept >= ENOUGH

    @property
    def is_drowned(self) -> bool:
        """Whether rounding moved log-probs by more than training did: a margin may hide that."""
        return self.moved > self.moved_by_training

    def lines(self) -> tuple[str, str]:
        """What is kept, and by how much log-probs moved."""
        kept = f"{self.exported:+.4f}: "
        if self.kept is None:
            kept += "the interval of the run's own margin includes 0: nothing measurable to keep"
        else:
            kept += f"{self.shown} of the margin"
        moved = f"log-probs by {self.moved:.3f} nats on average; training moved them by "
        return kept, f"{moved}{self.moved_by_training:.3f}"

    def as_record(self) -> dict[str, Any]:
        """For ``dpo.json``."""
        own = self.trained
        return {
            "pairs": own.num_pairs,
            "margin": own.mean,
            "interval": [own.low, own.high] if math.isfinite(own.low) else None,
            "margin_exported": self.exported,
            "kept": self.kept,
            "nats_moved": self.moved,
            "nats_moved_by_training": self.moved_by_training,
        }


def plan_trial(source: Source, data: str | None = None, *, exported: str | None = None) -> Trial:
    """Find the pairs that the run of a trained model held out, and what it was trained against.

    Args:
        source: The trained model.
        data: The file with the pairs, where it has moved.
        exported: Dtype of the export; a float32 one is computed in float32.

    Raises:
        NotMeasurableError: If there are no such pairs, or the reference is not there.
        UsageError: If `data` can't be read.
        DataError: If `data` is another file than the run's, or a pair can't be used.
    """
    record = read_record(source.origin)
    if not record:
        raise NotMeasurableError("no dpo.json says which pairs its run held out")
    settings = record.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    rows = _held_out(record, settings, data)
    reference = _reference(source, record, settings)
    chat = chat_format(load_tokenizer(source.folder), date_of(source.origin))
    max_length = int(setting_of_run(record, "max_length"))
    drop_bad = settings.get("drop_bad") is True
    examples = encode_preferences(rows, chat, max_length=max_length, drop_bad=drop_bad).examples
    if not examples:
        raise NotMeasurableError("none of the pairs that its run held out can be scored")
    dtype = settings.get("dtype") if settings.get("dtype") in DTYPES else None
    results = record.get("held_out")
    recorded = results.get("reward_margin") if isinstance(results, dict) else None
    return Trial(
        trained=source,
        reference=reference,
        chat=chat,
        examples=examples,
        beta=float(setting_of_run(record, "beta")),
        max_length=max_length,
        dtype="float32" if exported == "float32" else dtype,
        recorded=recorded if isinstance(recorded, float) else None,
    )


def score(trial: Trial, source: Source, name: str, progress: ShowProgress) -> Logprobs:
    """Log-probs of the held-out pairs under a model, which is let go of; float32 (2, N).

    Args:
        trial: Names the pairs.
        source: The model.
        name: What it is called on the screen.
        progress: Called as pairs are scored.

    Raises:
        UsageError: If it can't be loaded or has another tokenizer.
        NonFiniteError: If a log-prob is not finite.
    """
    progress(name, len(trial.examples), 0)
    model = load_source(source, trial.dtype)
    model.freeze()
    model.eval()
    chat = chat_format(load_tokenizer(source.folder))
    loaded = LoadedModel(Named(name), model, chat, source, {})
    check_same_tokens(trial.chat, loaded)
    scores = score_pairs(
        loaded,
        trial.examples,
        max_length=trial.max_length,
        after_batch=lambda more: progress(name, len(trial.examples), more),
    )
    del model, loaded
    gc.collect()
    mx.clear_cache()
    return scores.logprobs


def margin_of(trained: Logprobs, reference: Logprobs, *, beta: float) -> Margin:
    """Mean margin of log-probs (2, N), with its interval by Student's t."""
    values = margins(trained, reference, beta=beta)
    mean = float(values.mean())
    spread = _half_width(values)
    return Margin(values.size, mean, mean - spread, mean + spread)


def prove(exported: Logprobs, trained: Logprobs, reference: Logprobs, *, beta: float) -> Proof:
    """Compare what an export and the trained model give their pairs; log-probs are (2, N)."""
    return Proof(
        trained=margin_of(trained, reference, beta=beta),
        exported=float(margins(exported, reference, beta=beta).mean()),
        moved_by_training=_mean_change(trained, reference),
        moved=_mean_change(exported, trained),
    )


def _mean_change(after: Logprobs, before: Logprobs) -> float:
    return float(np.abs(after.astype(np.float64) - before).mean())


def _half_width(values: npt.NDArray[np.float64]) -> float:
    """Of the 95 % interval of a mean; infinite for a single value."""
    freedom = values.size - 1
    if freedom < 1:
        return math.inf
    # Expansion of Cornish and Fisher; to 0.002 from 11 degrees on.
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.372 / freedom + 2.823 / freedom**2
    return t * float(values.std(ddof=1)) / math.sqrt(values.size)


def _held_out(
    record: dict[str, Any], settings: dict[str, Any], data: str | None
) -> list[Preference]:
    """The rows that the run of a record held out, in the order of their file."""
    try:
        split = record["data"]["split"]
        held, train = (set(map(str, split[side])) for side in ("held_out", "train"))
        own = settings.get("eval_data")
        file = str(data or (held_out_file(str(own)) if own else record["data"]["file"]))
    except (KeyError, TypeError):
        raise NotMeasurableError("its dpo.json does not say which pairs were held out") from None
    except UsageError as error:
        raise NotMeasurableError(str(error), moved=True) from None
    if not held:
        raise NotMeasurableError("its run held out no pairs")
    if data is None and not Path(file).is_file():
        raise NotMeasurableError(
            f"{file}, the file with the held-out pairs, is not there", moved=True
        )
    try:
        rows = read_preferences(file, Problems(), drop_bad=settings.get("drop_bad") is True)
    except DataError as error:
        if data is None:
            raise NotMeasurableError(str(error), moved=True) from None
        raise
    missing = (held if own else held | train) - {row.id for row in rows}
    if missing:
        reason = (
            f"{file}: has no pair {min(missing)}, which the run used: it is another file, or was "
            "changed since"
        )
        raise DataError(reason) if data else NotMeasurableError(reason, moved=True)
    return [row for row in rows if row.id in held]


def _reference(source: Source, record: dict[str, Any], settings: dict[str, Any]) -> Source:
    """What the rewards of a run are against: the model, and the adapter, that it began with."""
    first = settings.get("adapter") if settings.get("adapter_reference") != "base" else None
    try:
        if source.adapter is not None:
            return locate(source.folder, first)
        return locate(str(record["trained_from"]["model"]), first)
    except (KeyError, TypeError):
        raise NotMeasurableError("its dpo.json does not say what it was trained from") from None
    except UsageError as error:
        raise NotMeasurableError(f"what it was trained from is not there ({error})") from None
