"""The model card of a finished folder: what it is, made from what, how, and how well it did.

It is written from the folder's ``dpo.json`` and from the metadata of the base's card, and names no
path of the machine it was made on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.models.hub import hub_id_of, is_hub_id
from mlx_dpo.models.parameters import read_header
from mlx_dpo.paths import check_ordinary, inside
from mlx_dpo.preferences.scores import GroupScore, wilson_interval

CARD = "README.md"
UNTAUGHT = "not trained on"  # held-out kinds that no training pair is of

_MAX_CARD = 1_000_000  # bytes of a base's card, which are read
_LAST = "last"  # of `kept.by` in a record: no step was selected
_METADATA = "---"  # a line before and after it
_CARRIED = ("license", "license_name", "license_link", "base_model")
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

_USE = {
    "mlx": """\
    mlx_lm.generate --model {name} --prompt "Hello"
    mlx_lm.chat --model {name}
""",
    "transformers": """\
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("{name}")
    tokenizer = AutoTokenizer.from_pretrained("{name}")
""",
    "gguf": """\
    ollama create {short} -f Modelfile
    ollama run {short}
""",
}
_USE_ADAPTER = {
    "mlx": """\
The adapter works only with the weights it was trained on.

    mlx_lm.generate --model {base} --adapter-path {name} --prompt "Hello"
    mlx_lm.chat --model {base} --adapter-path {name}
""",
    "peft": """\
The adapter works only with the weights it was trained on.

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("{base}")
    model = PeftModel.from_pretrained(model, "{name}")
""",
}


def model_card(
    record: Mapping[str, Any], name: str, origin: Mapping[str, str], *, library: str = "mlx"
) -> str:
    """The README.md of a finished folder, with the metadata that the hub reads.

    Args:
        record: Its ``dpo.json``. What is missing there is missing from the card.
        name: Of the folder or its repository.
        origin: Of the base, as from `origin_of`.
        library: ``mlx``, ``peft``, ``transformers`` or ``gguf``.
    """
    settings, export = _part(record, "settings"), record.get("export")
    is_adapter = library == "peft" or ("adapter" in record and export is None)
    base, uses = _name(_part(record, "trained_from"), "model"), _USE_ADAPTER if is_adapter else _USE
    parts = [
        _metadata(record, base, origin, library),
        f"# {_plain(name)}\n",
        _what(record, base, is_adapter),
        _table(_facts(record, settings)),
        _held_out(record),
        "## To use it\n",
        uses.get(library, uses["mlx"]).format(
            base=base, name=_plain(name), short=_plain(name).rsplit("/")[-1]
        ),
    ]
    return "\n".join(filter(None, parts))


def carried_card(source: Path, record: Mapping[str, Any], name: str, *, library: str) -> str | None:
    """The card of a folder in another form, as a conversion writes it; None where there is none.

    Args:
        source: What is converted.
        record: Its ``dpo.json``; empty for a base, whose own card goes along.
        name: Of the new folder.
        library: That the new folder is for, as for `model_card`.
    """
    made = renewed_card(source, record, name, library) if "trained_from" in record else None
    content = own_card(source) if made is None else made
    hub_id = hub_id_of(source)
    if made is not None or hub_id is None:
        return content
    return _with_base(content or "", hub_id)


def renewed_card(
    folder: Path, record: Mapping[str, Any], name: str, library: str | None = None
) -> str | None:
    """A finished folder's card with another name; None where a person edited the one it has.

    Args:
        folder: With its ``dpo.json`` or in the making.
        record: That.
        name: The new name.
        library: The new one; None for the folder's.
    """
    origin, here = origin_of(folder), library_of(folder, record)
    own = own_card(folder)
    if own not in (None, model_card(record, folder.resolve().name, origin, library=here)):
        return None
    return model_card(record, name, origin, library=library or here)


def library_of(folder: Path, record: Mapping[str, Any]) -> str:
    """What a finished folder is for, by what lies in it."""
    if "adapter" in record and "export" not in record:
        return "mlx" if (folder / "adapters.safetensors").is_file() else "peft"
    if next(folder.glob("*.gguf"), None) is not None:
        return "gguf"
    weights = next(folder.glob("model*.safetensors"), None)
    is_torch = weights is not None and (read_header(weights).metadata or {}).get("format") == "pt"
    return "transformers" if is_torch else "mlx"


def published(model: Any) -> str:
    """What others may read of a model's or data set's name: its hub id, or its folder's name."""
    name = str(model or "an unnamed model")
    if is_hub_id(name) and not Path(name).exists():
        return name
    path = Path(name).expanduser()
    own = path.resolve() if path.is_dir() else path  # a file may be a link to a blob
    return _plain(hub_id_of(path) or own.name)


def origin_of(folder: Path) -> dict[str, str]:
    """What the card of a model folder says of its licence and its base; empty where nothing."""
    from huggingface_hub import RepoCard

    try:
        content = own_card(folder) or ""
        if not content.lstrip().startswith(_METADATA):
            return {}
        found: dict[str, Any] = vars(RepoCard(content, ignore_metadata_errors=True).data)
    except Exception:  # a file by strangers: no licence is better than no model after hours
        return {}
    if isinstance(base := found.get("base_model"), list) and len(base) == 1:
        found["base_model"] = base[0]
    origin = {
        key: _UNSAFE.sub("_", found[key])[:200]
        for key in _CARRIED
        if isinstance(found.get(key), str)
    }
    if not is_hub_id(origin.get("base_model", "")):
        origin.pop("base_model", None)
    return origin


def own_card(folder: Path) -> str | None:
    """A folder's README; None where it has none, or one that is too long to be a card."""
    if not (folder / CARD).is_file():
        return None
    check_ordinary(folder / CARD)
    file = inside(folder, CARD)
    if file.stat().st_size > _MAX_CARD:
        return None
    return file.read_text(encoding="utf-8", errors="replace")


def _with_base(content: str, hub_id: str) -> str:
    """A card that names the repository which the model is from."""
    from huggingface_hub import RepoCard

    if not content.lstrip().startswith(_METADATA):
        return f"{_METADATA}\nbase_model: {hub_id}\n{_METADATA}\n{content}"
    try:
        card = RepoCard(content, ignore_metadata_errors=True)
        vars(card.data)["base_model"] = hub_id
        return str(card.content)
    except Exception:  # as in `origin_of`
        return content


def _metadata(record: Mapping[str, Any], base: str, origin: Mapping[str, str], library: str) -> str:
    from huggingface_hub import ModelCardData

    data = _name(_part(record, "data"), "file")
    is_lora = "adapter" in record
    others: dict[str, Any] = {**origin}
    if is_hub_id(base):  # the hub knows no other names
        others["base_model"] = base
    metadata = ModelCardData(
        datasets=[data] if is_hub_id(data) else None,
        library_name=None if library == "gguf" else library,
        pipeline_tag="text-generation",
        tags=["dpo", "mlx-dpo", *[library] * (library in ("mlx", "gguf")), *["lora"] * is_lora],
        **others,
    )
    return f"---\n{metadata.to_yaml()}\n---"


def _what(record: Mapping[str, Any], base: str, is_adapter: bool) -> str:
    kind = f"A LoRA adapter for `{base}`" if is_adapter else f"The model `{base}`"
    method = "trained with DPO (Rafailov et al. 2023)"
    export = record.get("export")
    packing = _part(export, "quantization")
    end = f" and packed in {_shown(packing['bits'])} bits" if packing.get("bits") else ""
    if packing.get("gguf"):
        end = f" and packed as {_shown(packing['gguf'])}"
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
    is_selected = _part(record, "kept").get("by", _LAST) != _LAST
    note = " These pairs selected the step, so their figures are a little too good."
    return _HELD_OUT.format(rows=rows, selected=note if is_selected else "")


def _row(group: GroupScore) -> str:
    right, pairs = group.reward_accuracy, group.num_pairs
    low, high = wilson_interval(right * pairs, pairs)
    before, after = group.logprob_accuracy_before, group.logprob_accuracy_after
    return (
        f"| {_plain(group.name)} | {pairs} | {right:.2f} ({low:.2f} to {high:.2f}) "
        f"| {before:.2f}, {after:.2f} | {group.margin:+.3f} | {group.loss:.4f} |"
    )


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
