"""The tokenizer of a model folder and its chat templates: checked, then loaded by mlx-lm."""

import codecs
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.config import read_config, read_json
from mlx_dpo.models.course import MODEL_TYPE
from mlx_dpo.paths import check_links, text_of

MAX_TOKENIZER = 256 * 2**20  # bytes of tokenizer.json
MOST_TOKENS = 10_000_000
MOST_GROWTH = 1000  # of a text by the replacements of a tokenizer
NAMED_TEMPLATES = "additional_chat_templates"  # a folder inside that of the model
_TEMPLATES = ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")
_TOKENS_JSON = ("special_tokens_map.json", "added_tokens.json")


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


def asks_for_date(folder: Path) -> bool:
    """Whether a chat template in a model folder has a word for the date."""
    return any(b"strftime" in file.read_bytes() for file in _texts(folder, _TEMPLATES))


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


def _texts(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of some files that a folder has, and its named chat templates."""
    files = [folder / name for name in names]
    files += sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))
    return [file for file in files if file.is_file()]


def _eos_ids(folder: Path, config: dict[str, Any]) -> Any:
    try:
        return read_json(folder / "generation_config.json")["eos_token_id"]
    except (UsageError, KeyError):  # no such file or entry, or a damaged one
        return config.get("eos_token_id")
