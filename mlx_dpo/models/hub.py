"""Model folders in Hugging Face layout: download, check and load. No other file loads by mlx-lm."""

import codecs
import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.files import check_links, inside, text_of
from mlx_dpo.models.adapters import wrapped_module
from mlx_dpo.models.course import MODEL_TYPE
from mlx_dpo.models.dialects import (
    check_sizes,
    for_mlx,
    model_classes,
    tied_entry_of_folder,
)
from mlx_dpo.models.packed import multiply_dense
from mlx_dpo.models.parameters import check_finite, has_weights, named_arrays, tensor_shapes
from mlx_dpo.models.parts import is_embedding
from mlx_dpo.models.rotary import longest_short_text
from mlx_dpo.models.verified import exact_up_to

MAX_CONFIG = 4_000_000  # bytes
MAX_JSON = 64 * 2**20  # bytes
MAX_TOKENIZER = 256 * 2**20  # bytes of tokenizer.json
INDEX = "model.safetensors.index.json"
MOST_TOKENS = 10_000_000
MOST_GROWTH = 1000  # of a text by the replacements of a tokenizer

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

PACKINGS = ("quantization", "quantization_config")  # of config.json; MLX writes both
_DTYPE_OF = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

NAMED_TEMPLATES = "additional_chat_templates"  # a folder inside that of the model
_TEMPLATES = ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")
_TOKENS_JSON = ("special_tokens_map.json", "added_tokens.json")

# What architectures call their tables of learned positions and of tokens.
_POSITIONS = ("wpe", "pos_embed", "embed_positions", "position_embeddings")
_TOKENS = (
    *("embed_tokens", "wte", "token_embed", "tok_embeddings", "embed_in", "word_embeddings"),
)


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here may be looked up on the hub.

    A path that begins with ``.``, ``/`` or ``~``, or lies in a folder that is here, may not: a
    typo in a path should not ask the network.
    """
    parent = Path(name).parent
    is_path = name[:1] in "./~" or (parent != Path(".") and (parent / ".").is_dir())
    return not is_path and _HUB_ID.fullmatch(name) is not None


def hub_id_of(folder: Path) -> str | None:
    """The hub id of a folder in the hub's cache, which it is named after; None elsewhere."""
    place = folder.expanduser().resolve().parent
    parts = place.parent.name.split("--", 2)
    if place.name != "snapshots" or parts[0] != "models":
        return None
    name = "/".join(parts[1:])
    return name if _HUB_ID.fullmatch(name) else None


def download(
    name: str, patterns: Sequence[str], kind: Literal["model", "dataset"] = "model"
) -> Path:
    """The folder of a hub repository in the hub's cache, downloaded where it is not there yet.

    Args:
        name: ``owner/name``.
        patterns: The files to download, as a shell would match them.
        kind: What the repository holds.

    Raises:
        UsageError: If the hub can't be reached or has no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"{name}: no such folder here, and the download from the hub failed (no network, no "
            f"such {kind}, or it needs a login): {one_line(error)}"
        ) from None


def load_folder(folder: Path, dtype: mx.Dtype | None = mx.float32) -> tuple[nn.Module, Any]:
    """A model folder's model and mlx-lm's tokenizer wrapper; see `load_model`."""
    return load_model(folder, dtype), load_tokenizer(folder)


def load_model(folder: Path, dtype: mx.Dtype | None = mx.float32) -> nn.Module:
    """Load the weights of a model folder as MLX arrays.

    Quantised weights stay packed; on a CPU their layers multiply by dense ones (`models.packed`).

    Args:
        folder: Holds ``config.json`` and ``model*.safetensors``.
        dtype: Of the parameters of floating point, whatever the file holds; None for that of the
            file. At DPO learning rates an update of a weight is smaller than half a step of
            bfloat16, which needs `mlx_dpo.training.optimizers.StochasticRounding`.

    Raises:
        UsageError: If a file is missing or damaged, or the architecture or packing is unknown.
    """
    config = checked_config(folder)
    shapes = tensor_shapes(folder)
    _check_index(folder)
    try:
        check_sizes(config, stored_shapes(config, shapes))
        if not is_quantised(config):
            _check_floats(shapes)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    from mlx_lm.utils import load_model as load

    model: nn.Module
    try:
        config |= tied_entry_of_folder(config, folder)
        model, _ = load(
            folder, lazy=True, model_config=for_mlx(config), get_model_classes=model_classes
        )
        if dtype is not None:
            model.set_dtype(dtype)
        mx.eval(model.parameters())
        if is_quantised(config):
            multiply_dense(model)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # mlx-lm raises anything for a folder that is wrong
        raise UsageError(f"{folder}: cannot be loaded: {one_line(error)}") from None
    check_finite(named_arrays(model.parameters()), folder)
    return model


def asks_for_date(folder: Path) -> bool:
    """Whether a chat template in a model folder has a word for the date."""
    return any(b"strftime" in file.read_bytes() for file in _texts(folder, _TEMPLATES))


def _texts(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of some files that a folder has, and its named chat templates."""
    files = [folder / name for name in names]
    files += sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))
    return [file for file in files if file.is_file()]


def _check_index(folder: Path) -> None:
    """Refuse files of weights that the index does not name: which of two would win is chance."""
    if not (folder / INDEX).is_file():
        return
    places = read_json(folder / INDEX).get("weight_map")
    named = set(map(str, places.values())) if isinstance(places, dict) else set[str]()
    found = sorted(file.name for file in folder.glob("model*.safetensors"))
    if stray := [name for name in found if name not in named] if named & set(found) else []:
        raise UsageError(
            f"{folder}: {INDEX} does not name {stray[0]}, which may be left from an older save; "
            "move it out of the folder"
        )


def _check_floats(shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuse weights of whole numbers, which no layer computes with unless they are packed."""
    for name, (_, code) in shapes.items():
        if name.endswith(".weight") and code.startswith(("I", "U", "BOOL")):
            raise UsageError(
                f"{name} is stored as {code}, and config.json names no quantization; expected "
                "float32, float16 or bfloat16"
            )


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's wrapper of a folder's tokenizer, with all ids that end an answer of the model.

    Raises:
        UsageError: If there is none or it can't be loaded.
    """
    config = read_config(folder)
    from mlx_lm.utils import load_tokenizer as load
    from transformers import AutoConfig, PretrainedConfig

    if config.get("model_type") == MODEL_TYPE:
        # transformers reads config.json on its way to the tokenizer, and warns of unknown types.
        course_config = type("CourseConfig", (PretrainedConfig,), {"model_type": MODEL_TYPE})
        AutoConfig.register(MODEL_TYPE, course_config, exist_ok=True)
    _check_tokenizer(folder)
    _check_texts(folder)
    try:
        # Left unset, transformers asks at a terminal whether to run code from the folder.
        return load(folder, {"trust_remote_code": False}, eos_token_ids=_eos_ids(folder, config))
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # anything, for a folder that is wrong: panics of Rust too
        raise UsageError(f"{folder}: no usable tokenizer: {one_line(error)}") from None


def other_templates(folder: Path, used: Any) -> list[str]:
    """Files of a model folder with another chat template than the one that its tokenizer uses.

    Args:
        folder: The folder.
        used: The template, or several by name.
    """
    own = (used, used.get("default")) if isinstance(used, dict) else (used,)
    found = []
    for file in _texts(folder, ("tokenizer_config.json", "chat_template.json")):
        template = read_json(file).get("chat_template") if file.suffix == ".json" else None
        if isinstance(template, str) and template not in own:
            found.append(file.name)
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UsageError: If it is missing or not a JSON object, or the folder has a link that leads out.
    """
    path = folder / "config.json"
    if folder.is_dir():
        check_links(folder)
    if not path.exists():
        raise UsageError(f"{folder}: no config.json; a model folder holds one")
    return read_json(path, MAX_CONFIG)


def read_json(path: Path, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """An object in a JSON file, its keys in the file's order.

    Raises:
        UsageError: If the file is missing, leads out of its folder, is too large or holds
            anything else.
    """
    file = inside(path.parent, path.name)
    try:
        if file.stat().st_size > max_bytes:
            raise UsageError(f"{path}: has more than {max_bytes} bytes")
        content = json.loads(text_of(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return content


def checked_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a model that can be loaded.

    Raises:
        UsageError: If it can't be read, the model is quantised by others than MLX, or it names code
            to run.
    """
    config = read_config(folder)
    if "model_file" in config:
        raise UsageError(f"{folder}: its config.json names code to run; that is never done here")
    if (foreign := foreign_packing(config)) is not None:
        raise UsageError(
            f"{folder}: is quantised by {foreign}, which MLX does not train through; start from "
            "the full-precision model, or from one packed by mlx_lm.convert --quantize"
        )
    return config


def is_quantised(config: dict[str, Any]) -> bool:
    """Whether a config.json says that its model, or the language model inside, is quantised."""
    return any(holder.get(key) for holder in _holders(config) for key in PACKINGS)


def foreign_packing(config: dict[str, Any]) -> str | None:
    """How a model is quantised otherwise than by MLX, such as ``awq``; None where it is not.

    MLX writes its own settings twice: as ``quantization``, and for others to see.
    """
    for holder in _holders(config):
        settings = holder.get("quantization_config")
        if settings and not any(each.get("quantization") for each in _holders(config)):
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            return str(method or "an unnamed method")
    return None


def stored_shapes(
    config: dict[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> list[tuple[int, ...]]:
    """Shapes of a folder's tensors, those of packed ones as they are once unpacked."""
    packing: Any = next(
        (holder[key] for holder in _holders(config) for key in PACKINGS if holder.get(key)), {}
    )
    found = []
    for name, (shape, _) in shapes.items():
        path = name.removesuffix(".weight")
        scales = shapes.get(f"{path}.scales")
        if name.endswith(".weight") and scales is not None and isinstance(packing, dict):
            own = packing.get(path)
            group = (own if isinstance(own, dict) else packing).get("group_size")
            # Scales have one column for each group of columns.
            shape = (*shape[:-1], scales[0][-1] * (group if isinstance(group, int) else 1))
        found.append(shape)
    return found


def num_stored_parameters(folder: Path) -> int:
    """Weights of a model folder, by the headers of its files; packed ones as they are unpacked.

    Raises:
        UsageError: If there is no config.json or no weights, or a file is malformed.
    """
    shapes = tensor_shapes(folder)
    scales = {name for name in shapes if name.endswith(".scales")}
    helpers = scales | {f"{name.removesuffix('.scales')}.biases" for name in scales}
    sizes = zip(shapes, stored_shapes(read_config(folder), shapes), strict=True)
    return sum(math.prod(shape) for name, shape in sizes if name not in helpers)


def own_dtype(folder: Path) -> str:
    """``float32``, ``bfloat16`` or ``float16``: what most of a folder's numbers are stored as.

    Of a quantised model those that are not packed: scales, norms. Of a folder without weights what
    its config.json names.
    """
    if not has_weights(folder):
        config = read_config(folder)
        named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return named if named in _DTYPE_OF.values() else "float32"
    sizes = Counter[str]()
    for shape, code in tensor_shapes(folder).values():
        sizes[code] += math.prod(shape)
    found = [_DTYPE_OF[code] for code, _ in sizes.most_common() if code in _DTYPE_OF]
    return found[0] if found else "float32"


def _holders(config: dict[str, Any]) -> list[dict[str, Any]]:
    text = config.get("text_config")
    return [config, text if isinstance(text, dict) else {}]


def model_digest(weights: str, folder: Path) -> str:
    """sha256 of all that decides a model's log-probs: parameters, config, and mlx-lm's version.

    Args:
        weights: `fingerprint` of the model.
        folder: The folder it was loaded from.
    """
    digest = hashlib.sha256(weights.encode())
    digest.update(json.dumps(read_config(folder), sort_keys=True).encode())
    digest.update(version("mlx-lm").encode())
    return digest.hexdigest()


def check_ids(model: nn.Module, folder: Path, *, largest_id: int, longest: int) -> None:
    """Refuse token ids and lengths the model has no row for: MLX reads past the end unchecked.

    Args:
        model: The model.
        folder: Where it came from, for the message.
        largest_id: Largest token id in the data.
        longest: Longest sequence in the data, in tokens.

    Raises:
        UsageError: If the model can't embed them.
    """
    positions, tokens = num_positions(model), _num_rows(model, _TOKENS)
    _check_exact(model, folder, longest)
    if positions is not None and longest > positions:
        raise UsageError(
            f"{folder}: has {positions} positions, and the longest row needs {longest}; "
            f"pass --max-length {positions}"
        )
    if tokens is not None and largest_id >= tokens:
        raise UsageError(
            f"{folder}: its tokenizer gives id {largest_id}, and its embedding ends at "
            f"{tokens - 1}: the tokenizer is not this model's"
        )


def _check_exact(model: nn.Module, folder: Path, longest: int) -> None:
    """Refuse rows beyond the length up to which the model is computed as transformers does."""
    limit, short = exact_up_to(read_config(folder)), longest_short_text(model)
    if limit is not None and longest > limit:
        raise UsageError(
            f"{folder}: mlx-lm computes what transformers does up to {limit} tokens (it leaves out "
            f"the window), and the longest row needs {longest}; pass --max-length {limit}"
        )
    if short is not None and longest > short:
        raise UsageError(
            f"{folder}: its longrope positions have other factors in batches beyond {short} "
            f"tokens, and the longest row needs {longest}; pass --max-length {short}"
        )


def num_positions(model: nn.Module) -> int | None:
    """Length of a model's table of learned positions; None where it has none."""
    return _num_rows(model, _POSITIONS)


def _num_rows(model: nn.Module, names: tuple[str, ...]) -> int | None:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names and is_embedding(module):
            return int(wrapped_module(module).weight.shape[0])
    return None


def _check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer.json that makes texts far longer, or has ids far beyond any model's.

    Both fill the memory of the process that loads it.
    """
    if not (folder / "tokenizer.json").is_file():
        return
    content = read_json(folder / "tokenizer.json", MAX_TOKENIZER)
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [t.get("id") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    largest = max((each for each in ids if type(each) is int), default=0)
    if largest > MOST_TOKENS:
        raise UsageError(
            f"{folder}: no usable tokenizer: its tokenizer.json has id {largest}, and no model has "
            f"{MOST_TOKENS} tokens: it is broken or hostile; choose another model"
        )
    for part in ("normalizer", "decoder"):
        if (growth := _growth(content.get(part))) > MOST_GROWTH:
            raise UsageError(
                f"{folder}: no usable tokenizer: the {part} in its tokenizer.json makes a text up "
                f"to {growth:.0e} times as long; it is broken or hostile: choose another model"
            )


def _check_texts(folder: Path) -> None:
    """Refuse templates and tokens that are not UTF-8, or hold what no tokenizer can read."""
    if (folder / NAMED_TEMPLATES).is_dir():
        check_links(folder / NAMED_TEMPLATES)
    for file in _texts(folder, (*_TEMPLATES, *_TOKENS_JSON)):
        if file.suffix == ".json":
            try:
                json.dumps(read_json(file), ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"{file}: holds half of a surrogate pair: a character was cut in two when it "
                    "was written; correct it, or choose another model"
                ) from None
        elif text_of(file) and file.read_bytes().startswith(codecs.BOM_UTF8):
            raise UsageError(
                f"{file}:1: begins with a byte order mark, which every prompt would begin with; "
                "save it as UTF-8 without"
            )


def _growth(part: Any) -> float:
    """How many times as long a text may get by the replacements of a part of a tokenizer."""
    if isinstance(part, list):
        return min(math.prod(map(_growth, part), start=1.0), sys.float_info.max)
    if not isinstance(part, dict):
        return 1.0
    content, pattern = part.get("content"), part.get("pattern")
    if part.get("type") == "Replace" and isinstance(content, str):
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1.0, len(content) / max(1, len(replaced) if isinstance(replaced, str) else 1))
    return _growth(part.get("normalizers") or part.get("decoders"))


def _eos_ids(folder: Path, config: dict[str, Any]) -> Any:
    try:
        return read_json(folder / "generation_config.json")["eos_token_id"]
    except (UsageError, KeyError):  # no such file or entry, or a damaged one
        return config.get("eos_token_id")
