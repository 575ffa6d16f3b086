"""Which settings of a config.json mean the same to mlx-lm and to transformers; needs torch.

For each architecture a tiny random model (`tools.tiny_models`). Each setting that either library
knows is changed in turn, in config.json itself, also to null and by leaving it out; logits of two
texts are compared, one below and one above windows and stretched lengths. What comes out is
`mlx_dpo/models/verified.json`. ``python -m tools.conversion_table`` runs it.
"""

import dataclasses
import importlib
import json
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.verify import TOLERANCE
from mlx_dpo.errors import UsageError
from mlx_dpo.models import verified
from mlx_dpo.models.dialects import RENAMED
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.verified import (
    DERIVED,
    DERIVED_SIZE,
    LENGTHS,
    METADATA,
    ROTARY,
    language_config,
    width_of_head,
)
from tools.config_values import ABSENT, MAYBE, ROPES, TOGETHER, VALUES, values_of
from tools.tiny_models import LONG, SHORT, SIZES, VOCAB, WINDOW, tiny_config, tiny_model

# Times the tolerance, where rounding alone goes beyond it: of a gated delta rule, transformers' own
# logits in float32 are 1.4e-3 of 8 away from those in float64.
_SLACK = {"qwen3_5": 5.0, "qwen3_next": 5.0}
_TEXTS = [np.random.RandomState(n).randint(0, VOCAB - 20, (2, n)) for n in (SHORT, LONG)]


@dataclasses.dataclass
class Outcome:
    """What a config came to.

    Attributes:
        known: Whether transformers makes a model of it.
        moved: Whether transformers' logits differ from those of the unchanged config.
        short: Whether ours agree on the short text.
        long: The same of the long one.
        refused: Whether we refuse the config for what it says.
        failed: Whether mlx-lm fails on it.
        near: Whether ours are off by less than ten times the tolerance.
        resolved: The language model's settings as transformers understood them.
    """

    known: bool = False
    moved: bool = False
    short: bool = False
    long: bool = False
    refused: bool = False
    failed: bool = False
    near: bool = False
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether both agree."""
        return self.short and self.long


class Bench:
    """An architecture's tiny model, and configs that differ from its own.

    Attributes:
        config: The config.json that transformers writes.
        defaults: The language model's settings, those included that are not written.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder = kind, folder
        config = tiny_config(kind)
        tiny_model(config).save_pretrained(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.defaults: dict[str, Any] = language_config(config.to_dict())
        self._plain: list[Any] | None = None
        self._plain = self._torch(self.config)[0]

    def is_derived(self, name: str) -> bool:
        """Whether a size that is left out follows from others, and is no number of its own."""
        config = tiny_config(self.kind)
        kind = type(getattr(config, "text_config", config))
        try:
            other = kind(hidden_size=66, num_attention_heads=6)
        except Exception:  # as in `compare`
            return True
        return getattr(other, name, None) in (6, 11)

    def changed(self, **settings: Any) -> dict[str, Any]:
        """The config with other settings of the language model; `ABSENT` leaves one out."""
        config: dict[str, Any] = deepcopy(self.config)
        language = language_config(config)
        for key, value in settings.items():
            language.pop(key, None)
            if value is not ABSENT:
                language[key] = value
        return config

    def compare(self, config: dict[str, Any], for_us: dict[str, Any] | None = None) -> Outcome:
        """Logits of both; `for_us` is another config for our side."""
        try:
            expected, resolved = self._torch(config)
        except Exception:  # transformers refuses what it can't build in any way
            return Outcome()
        assert self._plain is not None
        moved = not all(map(_agree, expected, self._plain))
        outcome = Outcome(True, moved, resolved=resolved)
        self._write(for_us or config)
        try:
            model = load_model(self._folder)
            found = [np.array(model(mx.array(ids)).astype(mx.float32)) for ids in _TEXTS]
        except UsageError as error:
            outcome.refused = "config.json: " in str(error)
            outcome.failed = not outcome.refused
            return outcome
        except (Exception, SystemExit):  # mlx-lm, too
            outcome.failed = True
            return outcome
        allowed = TOLERANCE * _SLACK.get(self.kind, 1)
        both = list(zip(found, expected, strict=True))
        outcome.short, outcome.long = (_agree(*each, allowed) for each in both)
        outcome.near = all(_agree(*each, 10 * allowed) for each in both)
        return outcome

    def _torch(self, config: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        import torch
        from transformers import AutoConfig

        for file in self._folder.iterdir():
            file.unlink()
        self._write(config)
        read = AutoConfig.from_pretrained(self._folder)
        model = tiny_model(read)
        with torch.no_grad():
            logits = [
                model(input_ids=torch.from_numpy(ids), use_cache=False).logits.float().numpy()
                for ids in _TEXTS
            ]
        if not all(np.isfinite(each).all() for each in logits):
            raise ValueError("logits are not finite")
        model.save_pretrained(self._folder)
        return logits, language_config(read.to_dict())

    def _write(self, config: dict[str, Any]) -> None:
        (self._folder / "config.json").write_text(json.dumps(config))


def examine(kind: str) -> dict[str, Any]:
    """What the experiment finds out about an architecture: a row of verified.json."""
    nothing_known: dict[str, Any] = {"architectures": {}, "harmless": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(verified, "table", return_value=nothing_known),
    ):
        bench = Bench(kind, Path(folder))
        plain = bench.compare(bench.config)
        if not plain.right:
            return {"wrong": True}
        row = _Row()
        for name, default in _settings(bench).items():
            row.tried[name] = [(default, plain)] if name in bench.defaults else []
            _try_values(bench, row, name, default)
            _try_without(bench, row, name)
        _try_ropes(bench, row)
        return row.as_json(bench)


def _agree(found: Any, expected: Any, tolerance: float = TOLERANCE) -> bool:
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= allowed)


def _settings(bench: Bench) -> dict[str, Any]:
    """Settings to change, with their defaults: those of transformers, and those of mlx-lm."""
    from mlx_lm.utils import MODEL_REMAPPING

    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(bench.kind, bench.kind)}")
    names = [name for name in ("ModelArgs", "TextArgs", "TextConfig", "TextModelArgs")]
    fields = [
        field.name
        for name in names
        if dataclasses.is_dataclass(arguments := getattr(module, name, None))
        for field in dataclasses.fields(arguments)
    ]
    found = {**dict.fromkeys((*fields, *MAYBE)), **bench.defaults}
    found = {key: found[key] for key in found.keys() - RENAMED.get(bench.kind, {}).keys()}
    skipped = (
        METADATA
        | ROTARY
        | SIZES.keys() - VALUES.keys()
        | {"vocab_size", "text_config", "vision_config", "per_layer_config"}
    )
    return {name: value for name, value in found.items() if name not in skipped}


class _Row:
    """Outcomes by setting, and what follows from them."""

    def __init__(self) -> None:
        self.tried: dict[str, list[tuple[Any, Outcome]]] = {}
        self.null: dict[str, bool] = {}
        self.absent: dict[str, Any] = {}
        self.required: list[str] = []
        self.ropes: dict[str, list[str]] = {}

    def as_json(self, bench: Bench) -> dict[str, Any]:
        """As verified.json has it: see `mlx_dpo.models.verified`."""
        row: dict[str, Any] = {key: [] for key in ("any", "idle", "up_to")}
        row |= {"only": {}, "but": {}}
        row["any"] = list(RENAMED.get(bench.kind, ()))
        for name, tried in sorted(self.tried.items()):
            if not tried:
                continue
            right = [value for value, outcome in tried if outcome.right]
            wrong = [value for value, outcome in tried if _is_wrong(value, outcome)]
            if not right:
                continue  # nothing is known: a config with it is named
            if not wrong:
                moved = any(outcome.moved for _, outcome in tried)
                row["any" if moved else "idle"].append(name)
            elif name in LENGTHS and all(o.short for _, o in tried if not (o.right or o.refused)):
                row["up_to"].append(name)
            elif name == "head_dim" and set(right) == {width_of_head(bench.defaults)}:
                row["only"][name] = DERIVED_SIZE
            elif len(set(map(str, right))) > 1 and all(map(_is_number, right + wrong)):
                row["but"][name] = sorted(set(wrong))
            else:
                row["only"][name] = _accepted(right)
        row["inside"] = bench.defaults.get("model_type") if "text_config" in bench.config else None
        row["null"] = sorted(name for name, right in self.null.items() if right)
        row["not_null"] = sorted(name for name, right in self.null.items() if not right)
        row |= {
            "absent": dict(sorted(self.absent.items())),
            "required": self.required,
            "rope": self.ropes,
        }
        return {key: value for key, value in row.items() if value or key == "only"}


def _is_wrong(value: Any, outcome: Outcome) -> bool:
    """Whether a value makes another model, or none, which sizes and lists may do."""
    if outcome.failed:
        return isinstance(value, bool | str)
    return not (outcome.right or outcome.refused)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _accepted(right: list[Any]) -> Any:
    """Values that are right; of lists, the entries of which they may consist."""
    if any(isinstance(value, list) for value in right):
        return {"of": sorted({str(v[0]) for v in right if v and len(set(map(str, v))) == 1})}
    found: list[Any] = []
    for value in right:
        if not any(value == each and type(value) is type(each) for each in found):
            found.append(value)
    return found


def _try_values(bench: Bench, row: _Row, name: str, default: Any) -> None:
    for value in values_of(name, default):
        outcome = bench.compare(bench.changed(**{**TOGETHER.get(name, {}), name: value}))
        if outcome.known:
            row.tried.setdefault(name, []).append((value, outcome))


def _try_without(bench: Bench, row: _Row, name: str) -> None:
    """The setting as null, and left out; there, what has to be filled in."""
    outcome = bench.compare(bench.changed(**{name: None}))
    if outcome.known:
        row.null[name] = outcome.right
    if name not in language_config(bench.config):
        return
    config = bench.changed(**{name: ABSENT})
    outcome = bench.compare(config)
    if not outcome.known or outcome.right:
        return
    value = outcome.resolved.get(name)
    if outcome.failed and name in SIZES and name not in DERIVED:
        return  # the shapes of the weights tell
    ours = deepcopy(config)
    language_config(ours)[name] = value
    # Near is enough: what is filled in is transformers' own value.
    if not isinstance(value, list) and bench.compare(config, ours).near:
        row.absent[name] = None if name in DERIVED and bench.is_derived(name) else value
    elif not (outcome.failed or outcome.near):
        row.required.append(name)


def _try_ropes(bench: Bench, row: _Row) -> None:
    """Kinds of scaling with their settings, in both spellings; the share that is rotated."""
    own = bench.defaults.get("rope_parameters")
    if not isinstance(own, dict):
        return
    for kind, settings in ROPES.items():
        if not _try_rope(bench, {"rope_type": kind, **_first(bench, kind)}, True):
            continue
        row.ropes[kind] = [
            name
            for name, values in settings.items()
            if all(
                _try_rope(bench, {"rope_type": kind, **_first(bench, kind), name: value}, False)
                for value in values
            )
        ]
    basic = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section"}
    mine = _own_rope(bench)
    row.ropes.setdefault(str(mine.get("rope_type")), sorted(mine.keys() - basic))
    for value in (0.5, 1.0):
        rope = {**_own_rope(bench), "partial_rotary_factor": value}
        rope = {**own, "full_attention": rope} if "full_attention" in own else rope
        outcome = bench.compare(bench.changed(rope_parameters=rope))
        if outcome.known:
            row.tried.setdefault("partial_rotary_factor", []).append((value, outcome))
    config = bench.changed(rope_parameters=ABSENT)
    outcome = bench.compare(config)
    if outcome.known and not outcome.right:
        rope = outcome.resolved["rope_parameters"]
        ours = deepcopy(config)
        language_config(ours)["rope_parameters"] = rope
        if bench.compare(config, ours).right:
            row.absent["rope_parameters"] = rope


def _first(bench: Bench, kind: str) -> dict[str, Any]:
    found = {name: values[0] for name, values in ROPES[kind].items() if values}
    if kind == "longrope":
        count = _rotated(bench) // 2
        found["short_factor"] = [1 + 0.2 * i for i in range(count)]
        found["long_factor"] = [1 + 1.5 * i for i in range(count)]
    return found


def _rotated(bench: Bench) -> int:
    """Dimensions of a head that are rotated."""
    d = bench.defaults
    size = d.get("qk_rope_head_dim") or d.get("head_dim")
    size = size or d["hidden_size"] // d["num_attention_heads"]
    rope = _own_rope(bench)
    return int(size * (rope.get("partial_rotary_factor") or 1))


def _own_rope(bench: Bench) -> dict[str, Any]:
    """The model's own rotary settings; where each kind of layer has some, those of full ones."""
    own = bench.defaults["rope_parameters"]
    return dict(own.get("full_attention", own))


def _with_rope(bench: Bench, rope: dict[str, Any], newer: bool) -> dict[str, Any]:
    kept = ("rope_theta", "partial_rotary_factor", "mrope_section", "llama_4_scaling_beta")
    own = {key: value for key, value in _own_rope(bench).items() if key in kept}
    rope = {key: value for key, value in {**own, **rope}.items() if value is not ABSENT}
    layers = bench.defaults["rope_parameters"]
    # Stretched as a text grows beyond the model's own length, which has to be a short one then.
    length = {"max_position_embeddings": WINDOW} if rope.get("rope_type") == "dynamic" else {}
    if newer and "full_attention" in layers:
        return bench.changed(rope_parameters={**layers, "full_attention": rope}, **length)
    if newer:
        return bench.changed(rope_parameters=rope, **length)
    top: dict[str, Any] = {
        key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope
    }
    if "sliding_attention" in layers:
        top["rope_local_base_freq"] = layers["sliding_attention"]["rope_theta"]
    name = "rope_type" if "full_attention" in layers else "type"
    rope[name] = rope.pop("rope_type", "default")
    scaling = None if rope == {name: "default"} else rope
    return bench.changed(rope_parameters=ABSENT, rope_scaling=scaling, **top, **length)


def _try_rope(bench: Bench, rope: dict[str, Any], need: bool) -> bool:
    """Whether both spellings agree, or mlx-lm fails on one.

    Where they are needed, transformers has to know the settings, and they have to change logits:
    with few dimensions that are rotated, some do not.
    """
    found = [bench.compare(_with_rope(bench, rope, newer)) for newer in (True, False)]
    known = [each for each in found if each.known]
    is_shown = any(each.moved for each in known) or rope["rope_type"] == "default"
    if need and not (is_shown and any(each.right for each in known)):
        return False
    return all(each.right or each.failed for each in known)
