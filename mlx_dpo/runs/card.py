"""The model card of a finished folder: what it is, made from what, how, and how well it did.

It is written from the folder's ``dpo.json`` alone, and names no path of the machine it was made on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.files import check_ordinary, inside, text_of
from mlx_dpo.models.hub import is_hub_id
from mlx_dpo.runs.config import LAST
from mlx_dpo.runs.scores import GroupScore, wilson_interval

CARD = "README.md"
UNTAUGHT = "not trained on"  # held-out kinds that no training pair is of

_MAX_CARD = 1_000_000  # bytes of a base's card, which are read for its licence
_LICENCE = ("license", "license_name", "license_link")
_UNSAFE = re.compile(r"[^\w .,:;/@+()#%=-]")  # in Markdown, HTML or a table

_SETTINGS = {
    "beta": "beta",
    "learning_rate": "learning rate",
    "optimizer": "optimizer",
    "batch_size": "pairs a batch",
    "grad_accumulation": "batches a step",
    "epochs": "epochs",
    "max_length": "longest prompt + answer, in tokens",
    "dtype": "number type",
    "seed": "seed",
}

_HELD_OUT = """\
## On held-out pairs

| kind | pairs | right (95 % interval) | likelier, before and after | margin | loss |
|---|---|---|---|---|---|
{rows}

*right*: pairs whose better answer gained more than the worse one; by chance 0.50. *likelier*: pairs
whose better answer is the likelier one under the model itself. The loss is log 2 = 0.6931 before
training.{selected}
"""

_USE_MODEL = """\
    mlx_lm.generate --model {name} --prompt "Hello"
    mlx_lm.chat --model {name}
"""
_USE_ADAPTER = """\
The adapter means something only on the weights it was trained on.

    mlx_lm.generate --model {base} --adapter-path {name} --prompt "Hello"
    mlx_lm.chat --model {base} --adapter-path {name}
"""
_USE_PEFT = """\
The adapter means something only on the weights it was trained on.

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("{base}")
    model = PeftModel.from_pretrained(model, "{name}")
"""


def model_card(
    record: Mapping[str, Any], name: str, licence: Mapping[str, str], *, library: str = "mlx"
) -> str:
    """The README.md of a finished folder, with the metadata that the hub reads.

    Args:
        record: Its ``dpo.json``. What is missing there is missing from the card.
        name: Of the folder or its repository.
        licence: Of the base, as from `licence_of`.
        library: ``mlx`` or ``peft``.
    """
    settings, export = _part(record, "settings"), record.get("export")
    is_adapter = "adapter" in record and export is None
    base = _name(_part(record, "trained_from"), "model")
    parts = [
        _metadata(record, base, licence, library),
        f"# {_plain(name)}\n",
        _what(record, base, is_adapter),
        _table(_facts(record, settings)),
        _held_out(record),
        "## To use it\n",
        _use(is_adapter, library).format(base=base, name=_plain(name)),
    ]
    return "\n".join(filter(None, parts))


def published(model: Any) -> str:
    """What others may read of a model's or data set's name: its hub id, or its folder's name."""
    name = str(model or "an unnamed model")
    if is_hub_id(name) and not Path(name).exists():
        return name
    return _plain(Path(name).expanduser().resolve().name)


def licence_of(folder: Path) -> dict[str, str]:
    """What the card of a model folder says of its licence; empty where it says nothing."""
    from huggingface_hub import RepoCard

    try:
        check_ordinary(folder / CARD)
        file = inside(folder, CARD)
        if file.stat().st_size > _MAX_CARD:
            return {}
        card = RepoCard(text_of(file), ignore_metadata_errors=True)
        found: dict[str, Any] = vars(card.data)
    except Exception:  # YAML by strangers: no licence is better than no model after hours
        return {}
    return {
        key: _UNSAFE.sub("_", found[key])[:200]
        for key in _LICENCE
        if isinstance(found.get(key), str)
    }


def _metadata(
    record: Mapping[str, Any], base: str, licence: Mapping[str, str], library: str
) -> str:
    from huggingface_hub import ModelCardData

    data = _name(_part(record, "data"), "file")
    is_lora = "adapter" in record
    others: dict[str, Any] = {**licence}
    metadata = ModelCardData(
        base_model=base if is_hub_id(base) else None,  # the hub knows no other names
        datasets=[data] if is_hub_id(data) else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["dpo", "mlx-dpo", *(["mlx"] if library == "mlx" else []), *["lora"] * is_lora],
        **others,
    )
    return f"---\n{metadata.to_yaml()}\n---"


def _what(record: Mapping[str, Any], base: str, is_adapter: bool) -> str:
    kind = f"A LoRA adapter for `{base}`" if is_adapter else f"The model `{base}`"
    method = "trained with DPO (Rafailov et al. 2023)"
    export = record.get("export")
    packing = _part(export, "quantization").get("bits") if isinstance(export, dict) else None
    end = f" and packed in {_shown(packing)} bits" if packing else ""
    return f"{kind}, {method} by mlx-dpo{end}.\n"


def _facts(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the table of settings."""
    facts: dict[str, Any] = {}
    data, split = _part(record, "data"), _part(_part(record, "data"), "split")
    if data.get("file"):
        facts["data"] = _name(data, "file")
    for side, label in (("train", "pairs trained on"), ("held_out", "pairs held out")):
        if isinstance(split.get(side), list):
            facts[label] = len(split[side])
    facts |= {label: settings.get(key) for key, label in _SETTINGS.items()}
    facts["steps"] = record.get("steps")
    adapter = _part(record, "adapter")
    for key in ("ranks", "scales"):
        if isinstance(adapter.get(key), list):
            facts[f"adapter {key}"] = ", ".join(map(_shown, adapter[key]))
    facts["adapted layers"] = adapter.get("modules")
    facts["adapter on"] = settings.get("lora_modules")
    export = record.get("export")
    if isinstance(export, dict):
        facts["exported as"] = export.get("dtype")
        facts["margin kept by the export"] = _part(export, "proof").get("kept")
    facts["mlx-dpo"] = _part(record, "environment").get("mlx-dpo")
    return facts


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {label} | {_shown(value)} |" for label, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows, ""]) if rows else ""


def _held_out(record: Mapping[str, Any]) -> str:
    groups = record.get("groups")
    try:
        scores = [GroupScore(**group) for group in groups or []]
        rows = "\n".join(map(_row, scores))
    except (TypeError, ValueError):  # of a record that was changed by hand
        return ""
    if not rows:
        return ""
    is_selected = _part(record, "kept").get("by", LAST) != LAST
    selected = " The step was selected by these pairs, which flatters them." if is_selected else ""
    return _HELD_OUT.format(rows=rows, selected=selected)


def _row(group: GroupScore) -> str:
    right, pairs = group.reward_accuracy, group.num_pairs
    low, high = wilson_interval(right * pairs, pairs)
    before, after = group.logprob_accuracy_before, group.logprob_accuracy_after
    return (
        f"| {_plain(group.name)} | {pairs} | {right:.2f} ({low:.2f} to {high:.2f}) "
        f"| {before:.2f}, {after:.2f} | {group.margin:+.3f} | {group.loss:.4f} |"
    )


def _use(is_adapter: bool, library: str) -> str:
    if not is_adapter:
        return _USE_MODEL
    return _USE_PEFT if library == "peft" else _USE_ADAPTER


def _name(origin: Mapping[str, Any], key: str) -> str:
    """What a model or data set was called where the run began; a path may mean nothing here."""
    name = origin.get("name")
    return _plain(name) if isinstance(name, str) else published(origin.get(key))


def _part(record: Any, key: str) -> dict[str, Any]:
    part = record.get(key) if isinstance(record, dict) else None
    return part if isinstance(part, dict) else {}


def _shown(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else _plain(str(value))


def _plain(text: str) -> str:
    """Text of users without what Markdown or HTML would read as its own."""
    return _UNSAFE.sub("_", " ".join(text.split()))[:100]
