"""Memory of a run from its settings: what it will hold, and which settings keep a budget.

A budget that was solved once is not solved again while nothing that decides it has changed.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.convert.sources import adapter_to_train, find_mlx
from mlx_dpo.errors import BudgetError
from mlx_dpo.files import make_folder, mark_used, write_file
from mlx_dpo.memory.predict import Predictor
from mlx_dpo.memory.settings import Prediction, Settings, Workload
from mlx_dpo.memory.shapes import packed, shell
from mlx_dpo.memory.solve import SHARE, NoSolution, changed, solve
from mlx_dpo.models.adapters import Adapter
from mlx_dpo.models.config import is_quantised, read_config
from mlx_dpo.models.device import recommended_here
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.preferences.chat import chat_format, pad_id_of
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.store import BytesDone, lengths
from mlx_dpo.runs.config import RunConfig, parse_size
from mlx_dpo.runs.data import Data, load_data
from mlx_dpo.runs.defaults import LORA, LORA_SETTINGS, decided, decided_by_pairs
from mlx_dpo.runs.folder import PLANS

_VERSION = "3"  # changes whenever the same plan and budget may be solved otherwise
_NAMES = {f.name for f in fields(Settings)}
_SHORTER = (0.75, 0.5, 0.25)  # of the longest pair, where nothing else helps


@dataclass(frozen=True)
class Plan:
    """A run, before it.

    Attributes:
        settings: Those it was planned with.
        predictor: Predicts its peak under any settings.
        data: Its pairs, for the run to use.
        config_file: The model's ``config.json``.
    """

    settings: Settings
    predictor: Predictor
    data: Data
    config_file: Path

    @cached_property
    def prediction(self) -> Prediction:
        """The peak under the settings it was planned with."""
        return self.predictor(self.settings)


@dataclass(frozen=True)
class Fit:
    """Settings fitted to a budget.

    Attributes:
        asked: The peak under the settings asked for.
        chosen: The peak under those that keep the budget.
    """

    asked: Prediction
    chosen: Prediction


def make_plan(
    config: RunConfig,
    *,
    keep: bool = False,
    progress: BytesDone | None = None,
    problems: Callable[[Problems], None] | None = None,
) -> Plan:
    """Prepare to predict a run's peak from its data's lengths and its model's shapes.

    No weights are read, nor are those of a model on the hub downloaded.

    Args:
        config: The settings.
        keep: Whether a later run may find the token ids.
        progress: Called with the bytes of the data that are tokenized, and all of them.
        problems: Called with what is wrong with the data, before it is refused for it.

    Raises:
        UsageError: If model or settings are not as they must be.
        DataError: If the data can't be used.
    """
    config = decided(config, weights=False)
    assert config.model is not None
    source = find_mlx(config.model, weights=False)
    chat = chat_format(load_tokenizer(source), config.date)
    data = load_data(config, chat, keep=keep, progress=progress, report=problems)
    config, _ = decided_by_pairs(config, len(data.train.examples))

    def make_shell(dtype: str) -> nn.Module:
        return shell(source, getattr(mx, dtype))

    def start(model: nn.Module) -> Adapter:
        assert config.adapter is not None
        return adapter_to_train(config.adapter, source, model)

    workload = Workload(
        make_shell,
        data.train.examples,
        max_length=config.max_length,
        pad_id=pad_id_of(chat.tokenizer),
        seed=config.seed,
        epochs=config.epochs,
        steps=config.steps,
        adapter=None if config.adapter is None else start,
    )
    return Plan(settings_of(config), Predictor(workload), data, source / "config.json")


def fit(
    plan: Plan,
    budget: int,
    given: Collection[str],
    *,
    keep: bool = False,
    planning: Callable[[], None] = lambda: None,
) -> Fit:
    """The cheapest settings that keep a budget.

    Args:
        plan: The run.
        budget: In bytes.
        given: Settings that were given by hand, and stay.
        keep: Whether to look for what an earlier run found for the same plan and budget, and to
            let a later one find it.
        planning: Called before anything is traced.

    Raises:
        BudgetError: If none do; the message names the smallest change that would.
        DiskError: If the result can't be kept.
    """
    file = PLANS / f"{_key(plan, budget, given)}.json"
    solution = _read(file) if keep else None
    if solution is None:
        planning()
        solved = solve(plan.settings, budget, plan.predictor.bounds, given)
        if isinstance(solved, NoSolution):
            raise BudgetError(_advice(solved, plan, budget))
        solution = Fit(plan.prediction, plan.predictor(solved))
        if keep:
            make_folder(PLANS)
            write_file(file, json.dumps(asdict(solution)))
    else:
        mark_used(file)
    return solution


def _key(plan: Plan, budget: int, given: Collection[str]) -> str:
    """Digest of all that decides what a budget is solved to."""
    work = plan.predictor.workload
    config = plan.config_file.read_bytes() if plan.config_file.is_file() else b""
    parameters = named_arrays(plan.predictor.shell(plan.settings).parameters())
    fixed = sorted(_NAMES & set(given))
    parts = [
        *(_VERSION, version("mlx"), version("mlx-lm"), budget, fixed, plan.settings),
        *(work.max_length, work.pad_id, work.seed, work.epochs, work.steps),
        [(name, array.shape) for name, array in parameters.items()],
        hashlib.sha256(config).hexdigest(),
        hashlib.sha256(lengths(work.examples).tobytes()).hexdigest(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _read(file: Path) -> Fit | None:
    """What `fit` wrote; None where there is no such file, or another."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        asked, chosen = (
            Prediction(
                **{
                    **content[name],
                    "settings": Settings(**content[name]["settings"]),
                    "pairs": [tuple(pair) for pair in content[name]["pairs"]],
                }
            )
            for name in ("asked", "chosen")
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Fit(asked, chosen)


def budget_of(config: RunConfig, least: int | None = None) -> int | None:
    """Bytes a run may hold: as given, or a share of what a device recommends, if it does.

    Args:
        config: The settings.
        least: What the smallest device recommends; by default it is this one.
    """
    if config.memory_budget is not None:
        return parse_size(config.memory_budget)
    recommended = least or recommended_here()
    return None if recommended is None else round(SHARE * recommended)


def settings_of(config: RunConfig) -> Settings:
    """The settings that decide memory."""
    return Settings(**{name: getattr(config, name) for name in _NAMES})


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


def gigabytes(count: float) -> str:
    """A number of bytes, in GiB or MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _advice(found: NoSolution, plan: Plan, budget: int) -> str:
    asked = asdict(plan.settings)
    least = {n: v for n, v in asdict(found.smallest).items() if v != asked[n]}
    so_far = f" with {as_options(least)}" if least else ""
    line = f"a run needs {gigabytes(found.total)}{so_far}, and the budget is {gigabytes(budget)}"
    smaller = _trained_less(found.smallest, plan, budget)
    if found.change is not None:
        would = as_options(least | found.change)
        note = ""
        if "grad_clip" in found.change:
            note = ", and changes what is trained: large gradients are no longer scaled down"
        return f"{line}; {would} would fit{note}" + (f"; {smaller} would" if smaller else "")
    if smaller is not None:
        return f"{line}; {smaller} would fit"
    shorter = _shorter(replace(found.smallest, grad_clip=0.0), plan, budget)
    if shorter is not None:
        would = as_options({**least, "grad_clip": 0.0, "max_length": shorter})
        return f"{line}; {would} would fit: it cuts longer pairs, and no longer clips gradients"
    return f"{line}; no setting would fit: it takes a larger budget or a smaller model"


def _trained_less(smallest: Settings, plan: Plan, budget: int) -> str | None:
    """Adapters instead of all weights, or a quantised model below them, where that fits."""
    if smallest.method != LORA:
        lora = {"method": LORA, **{n: v for n, v in LORA_SETTINGS.items() if n in _NAMES}}
        settings = replace(smallest, optimizer=plan.settings.optimizer, **lora)
        total = plan.predictor(settings).total
        with_it = changed(plan.settings, settings)
        name = as_options({n: v for n, v in with_it.items() if n == "method" or n not in lora})
    elif not is_quantised(read_config(plan.config_file.parent)):
        work = plan.predictor.workload
        four_bits = replace(work, shell=lambda dtype: packed(work.shell(dtype)))
        total = Predictor(four_bits)(replace(smallest, dtype="bfloat16")).total
        name = "a 4-bit copy of the model (mlx_lm.convert --quantize)"
    else:
        return None
    return f"{name}, at about {gigabytes(total)}," if total <= budget else None


def _shorter(settings: Settings, plan: Plan, budget: int) -> int | None:
    """The longest of a few lengths to cut pairs to that keeps the budget."""
    work = plan.predictor.workload
    sizes = lengths(work.examples)
    longest = min(int((sizes[:, 0] + sizes[:, 1:].max(axis=1)).max()), work.max_length)
    for share in _SHORTER:
        length = int(longest * share)
        bounds = Predictor(replace(work, max_length=length)).bounds(settings)
        if length > 1 and all(bound <= budget for bound in bounds):
            return length
    return None
