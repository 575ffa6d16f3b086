"""Memory of a run from its settings: what it will hold, and which settings keep a budget."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.convert.course import artifact as course
from mlx_dpo.convert.sources import find_mlx, load_tokenizer
from mlx_dpo.errors import BudgetError
from mlx_dpo.memory.predict import Prediction, Predictor, Settings, Workload
from mlx_dpo.memory.shapes import emptied, shell
from mlx_dpo.memory.solve import SHARE, NoSolution, recommended_here, solve
from mlx_dpo.preferences.chat import chat_format, pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs.config import RunConfig, parse_size
from mlx_dpo.runs.data import load_data

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
_SHORTER = (0.75, 0.5, 0.25)  # of the longest pair, where nothing else helps


@dataclass(frozen=True)
class Plan:
    """A run on paper.

    Attributes:
        predictor: Predicts its peak under any settings.
        prediction: Under the settings it was planned with.
    """

    predictor: Predictor
    prediction: Prediction


def make_plan(config: RunConfig) -> Plan:
    """Predict a run's peak from its data's lengths and its model's shapes; no weights are read.

    Raises:
        UsageError: If model or settings are not as they must be.
        DataError: If the data can't be used.
    """
    assert config.model is not None
    source = find_mlx(config.model)
    chat = chat_format(load_tokenizer(source))
    examples = load_data(config, chat, keep=False).train.examples

    def make_shell(dtype: str) -> nn.Module:
        if course.is_course_folder(source):
            return emptied(course.course_shell(source), _DTYPES[dtype])
        return shell(source, _DTYPES[dtype])

    predictor = Predictor(
        Workload(
            make_shell,
            examples,
            max_length=config.max_length,
            pad_id=pad_id_of(chat.tokenizer),
            seed=config.seed,
            epochs=config.epochs,
            steps=config.steps,
        )
    )
    return Plan(predictor, predictor(settings_of(config)))


def fit(plan: Plan, budget: int, given: Collection[str]) -> Prediction:
    """The cheapest settings that keep a budget.

    Args:
        plan: The run.
        budget: In bytes.
        given: Settings that were given by hand, and stay.

    Raises:
        BudgetError: If none do; the message names the smallest change that would.
    """
    predictor = plan.predictor
    found = solve(plan.prediction.settings, budget, predictor.bounds, given)
    if isinstance(found, NoSolution):
        raise BudgetError(_advice(found, plan, budget))
    return predictor(found)


def budget_of(config: RunConfig) -> int | None:
    """Bytes a run may hold: as given, or a share of what this device recommends, if it does."""
    if config.memory_budget is not None:
        return parse_size(config.memory_budget)
    recommended = recommended_here()
    return None if recommended is None else round(SHARE * recommended)


def settings_of(config: RunConfig) -> Settings:
    """What of the settings decides memory."""
    return Settings(**{f.name: getattr(config, f.name) for f in fields(Settings)})


def changes(config: RunConfig, chosen: Settings) -> dict[str, Any]:
    """Settings to change in a config, by name."""
    return {n: value for n, value in asdict(chosen).items() if getattr(config, n) != value}


def as_options(settings: dict[str, Any]) -> str:
    """Settings as they are typed."""
    words = []
    for name, value in settings.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shown}"))
    return " ".join(words)


def gigabytes(count: int) -> str:
    """A number of bytes, in GiB or MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _advice(found: NoSolution, plan: Plan, budget: int) -> str:
    asked = asdict(plan.prediction.settings)
    least = {n: v for n, v in asdict(found.smallest).items() if v != asked[n]}
    so_far = f" with {as_options(least)}" if least else ""
    line = f"a run needs {gigabytes(found.total)}{so_far}, and the budget is {gigabytes(budget)}"
    if found.change is not None:
        would = as_options(least | found.change)
        note = ""
        if "grad_clip" in found.change:
            note = ", and changes what is trained: large gradients are no longer scaled down"
        return f"{line}; {would} would fit{note}"
    shorter = _shorter(replace(found.smallest, grad_clip=0.0), plan, budget)
    if shorter is not None:
        would = as_options({**least, "grad_clip": 0.0, "max_length": shorter})
        return f"{line}; {would} would fit: it cuts longer pairs, and no longer clips gradients"
    return f"{line}; no setting would fit: it takes a larger budget or a smaller model"


def _shorter(settings: Settings, plan: Plan, budget: int) -> int | None:
    """The longest of a few lengths to cut pairs to that keeps the budget."""
    if plan.predictor.least(settings) > budget:
        return None
    work = plan.predictor.workload
    sizes = lengths(work.examples)
    longest = min(int((sizes[:, 0] + sizes[:, 1:].max(axis=1)).max()), work.max_length)
    for share in _SHORTER:
        length = int(longest * share)
        if length > 1 and Predictor(replace(work, max_length=length))(settings).total <= budget:
            return length
    return None
