"""Which settings of a config.json were compared with transformers, and the results.

mlx-lm reads a config in its own way. Where that gives another model than in transformers, nothing
else shows it: every other check here compares the program with itself. `verified.json` is
the result of an experiment (``python -m tools.conversion_table``): for each architecture a tiny
model, each setting changed in turn, logits of both compared.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.models.course import MODEL_TYPE
from mlx_dpo.models.rotary import rope_type, scaling_of

DOCS = "docs/conversion.md of the repository"
_FOLDER = Path(__file__).parent
_OTHER = "mlx-lm's {} computes other logits than transformers"
_RIGHT, _WRONG, _UNKNOWN = "right", "wrong", "unknown"
_SHOWN = 5  # names listed in a line

# Settings that no forward pass of a language model reads: tokens, dropout, losses, names.
METADATA = frozenset((_FOLDER / "metadata.txt").read_text(encoding="utf-8").split())

# Rotary positions, looked at together.
ROTARY = frozenset(
    (
        *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct"),
        *("rotary_emb_base", "rope_local_base_freq", "original_max_position_embeddings"),
    )
)

# Settings that say up to how many tokens a model is the same without them.
LENGTHS = (
    *("sliding_window", "use_sliding_window", "attention_window_size", "attention_chunk_size"),
    "index_topk",
)

# Configs inside a config, and the size that the weights tell.
_PARTS = ("text_config", "vision_config", "audio_config", "vocab_size")

_SHARE = "partial_rotary_factor"
_OF_ANY_ROPE = ("type", "rope_type", "rope_theta", _SHARE, "mrope_section", "mrope_interleaved")

# Sizes that follow from others where a config leaves them out.
DERIVED_SIZE = "hidden_size / num_attention_heads"
DERIVED = ("head_dim", "num_key_value_heads")


@dataclass(frozen=True)
class Findings:
    """What is known about a config.json.

    Attributes:
        wrong: What mlx-lm computes otherwise than transformers, as a message says it.
        unknown: Settings, or values of them, that were never compared.
        limit: Tokens up to which it is right; None for any number.
    """

    wrong: list[str]
    unknown: list[str]
    limit: int | None


def language_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model: a multimodal model's holds it inside."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


@cache
def table() -> dict[str, Any]:
    """The results by architecture, and the versions they are of.

    A row has ``any`` (settings verified with any value), ``idle`` (any value; none changes
    transformers' logits), ``only`` (values that are right), ``but`` (numbers that are wrong),
    ``up_to`` (right up to so many tokens), ``null`` and ``not_null`` (settings that may be, or may
    not be, null), ``absent`` (what transformers takes where mlx-lm would take something else; null
    for what follows from the sizes), ``required`` (must not be left out), ``rope`` (kinds of scaled
    positions with their verified settings), ``inside`` (the kind of its ``text_config``), or
    ``wrong``. ``sizes`` follow from the shapes of the weights.
    """
    content: dict[str, Any] = json.loads((_FOLDER / "verified.json").read_text(encoding="utf-8"))
    return content


def row_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """What is known about a config's architecture; None for nothing."""
    row: dict[str, Any] | None = table()["architectures"].get(str(config.get("model_type")))
    return row


def check(config: dict[str, Any]) -> None:
    """Refuse settings with which mlx-lm computes another model than transformers.

    Raises:
        UsageError: Naming the setting and its value.
    """
    found = examine(config)
    if found is not None and found.wrong:
        raise UsageError(f"config.json: {found.wrong[0]}")


def examine(config: dict[str, Any]) -> Findings | None:
    """Look every setting of a config up; None for an architecture that is not in the table."""
    row = row_of(config)
    if row is None:
        return None
    kind = config["model_type"]
    if row.get("wrong"):
        return Findings([f"model_type is {kind!r}: {_OTHER.format(kind)}"], [], None)
    language, wrong, unknown = language_config(config), [], []
    skipped, harmless = METADATA | ROTARY | {*_PARTS}, {*table()["harmless"], *table()["sizes"]}
    settings = {k: v for k, v in language.items() if k not in skipped}
    rope = scaling_of(language)
    if (share := rope.get(_SHARE, language.get(_SHARE))) is not None:
        settings[_SHARE] = share
    for name, value in settings.items():
        verdict = _verdict(row, language, name, value)
        if verdict == _WRONG:
            verified = row.get("only", {}).get(name)
            verified = verified["of"] if isinstance(verified, dict) else verified
            verified = [verified] if isinstance(verified, str) else verified
            right = f"; right is {_listed(verified)}" if verified else ""
            shown = json.dumps(value)[:60]
            wrong.append(f"{name} is {shown}, with which {_OTHER.format(kind)}{right}")
        elif verdict == _UNKNOWN and name not in harmless:
            unknown.append(name)
    for name in row.get("required", ()):
        if language.get(name) is None:
            wrong.append(f"{name} is left out, and without it {_OTHER.format(kind)}")
    inside = language.get("model_type", row.get("inside"))
    if language is not config and inside != row.get("inside"):
        unknown.append(f"a {inside} in text_config")
    _look_at_rope(row, kind, rope, wrong, unknown)
    return Findings(wrong, unknown, _limit(row, language))


def known(config: dict[str, Any]) -> tuple[bool, str]:
    """Whether all of a config that `check` accepts is verified, and in words how."""
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        return True, f"the course's model, verified against PyTorch ({DOCS})"
    found = examine(config)
    if found is None:
        return False, f"NOT verified for model_type {kind}"
    versions = table()["versions"]
    against = f"against transformers {'.'.join(versions['transformers'].split('.')[:2])}"
    if (installed := version("mlx-lm")) != versions["mlx-lm"]:
        against += f" with mlx-lm {versions['mlx-lm']}, and {installed} is installed"
    limit = "" if found.limit is None else f", up to {found.limit} tokens"
    if found.unknown:
        names = _listed(found.unknown)
        return False, f"{kind}, verified {against}{limit}, but NOT for {names} in config.json"
    return True, f"{kind}, every setting of config.json verified {against}{limit} ({DOCS})"


def statement(config: dict[str, Any], name: str) -> str:
    """One line on whether, and how, the forward pass of a config is known to be the model's own.

    Args:
        config: A config.json that `check` accepts.
        name: Of the model, as the user gave it.
    """
    is_known, text = known(config)
    compare = "" if is_known else f": mlx_dpo doctor --model {name} compares it with transformers"
    return f"forward pass: {text}{compare}"


def width_of_head(config: dict[str, Any]) -> int | None:
    """Width by heads of a language model's config; None where it does not say."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        return width // heads
    return None


def exact_up_to(config: dict[str, Any]) -> int | None:
    """Tokens up to which mlx-lm computes what transformers does; None for any number."""
    row = row_of(config)
    return _limit(row, language_config(config)) if row else None


def _verdict(row: dict[str, Any], language: dict[str, Any], name: str, value: Any) -> str:
    if name in row.get("idle", ()):
        return _RIGHT
    if value is None:
        if name in row.get("not_null", ()):
            return _WRONG
        return _RIGHT if name in row.get("null", ()) else _UNKNOWN
    if name in row.get("any", ()) or name in row.get("up_to", ()):
        return _RIGHT
    if name in row.get("but", {}):
        return _WRONG if _among(value, row["but"][name]) else _RIGHT
    accepted = row["only"].get(name)
    if accepted is None:
        return _UNKNOWN
    if isinstance(accepted, dict):  # a list may consist of these entries
        is_right = isinstance(value, list) and all(str(each) in accepted["of"] for each in value)
        return _RIGHT if is_right else _WRONG
    if accepted == DERIVED_SIZE:
        accepted = [size for size in [width_of_head(language)] if size]
    return _RIGHT if _among(value, accepted) else _WRONG


def _among(value: Any, others: list[Any]) -> bool:
    """Whether a value is one of others; a switch is no number, although True equals 1."""
    kind = isinstance(value, bool)
    return any(value == each and kind == isinstance(each, bool) for each in others)


def _look_at_rope(
    row: dict[str, Any], kind: str, rope: dict[str, Any], wrong: list[str], unknown: list[str]
) -> None:
    layers = {name: each for name, each in rope.items() if isinstance(each, dict)}
    for layer, settings in (layers or {"": rope}).items():
        scaling = rope_type(settings, kind)
        is_local = layer not in ("", "full_attention")
        known = {"default": []} if is_local else row.get("rope", {"default": []})
        if scaling not in known:
            where = f" of {layer}" if layer else ""
            wrong.append(
                f"rope_type{where} is {scaling!r}, with which {_OTHER.format(kind)}; right is "
                f"{_listed(known)}"
            )
        elif scaling != "default":
            given = {name for name, value in settings.items() if value is not None}
            for name in sorted(given - {*known[scaling], *_OF_ANY_ROPE}):
                what = f"{name} of {scaling} positions"
                if name in table()["rope"].get(scaling, ()):
                    shown = json.dumps(settings[name])[:60]
                    wrong.append(f"{what} is {shown}, with which {_OTHER.format(kind)}")
                else:
                    unknown.append(what)


def _limit(row: dict[str, Any], language: dict[str, Any]) -> int | None:
    names = set(row.get("up_to", ()))
    if {"sliding_window", "use_sliding_window"} & names:
        names -= {"sliding_window", "use_sliding_window"}
        if language.get("use_sliding_window", True):
            names.add("sliding_window")
    limits = [language[name] for name in names if isinstance(language.get(name), int)]
    return min((limit for limit in limits if limit > 0), default=None)


def _listed(names: Iterable[Any]) -> str:
    shown = [name if isinstance(name, str) else json.dumps(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
