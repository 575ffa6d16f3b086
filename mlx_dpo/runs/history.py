"""Whether a model has had preference training before, by its name and by the files of its folder.

Such a model is a sound reference. But what a run adds is then measured from it, and not from SFT.
"""

import re
from pathlib import Path

from mlx_dpo.convert.sources import read_record
from mlx_dpo.errors import UsageError
from mlx_dpo.models.card import own_card
from mlx_dpo.models.config import read_config
from mlx_dpo.models.hub import hub_id_of

# What the makers of models that many people start from have published of them.
_KNOWN = {
    r"smollm2-[\d.]+[mb]-instruct": "DPO on UltraFeedback",
    r"smollm3-3b(?!-base)": "APO, a kind of DPO",
    r"zephyr-(7b|orpo-141b)-\w*?(alpha|beta|gemma|a35b)": "DPO or ORPO",
    r"tulu-(2-dpo|3(\.1)?-\d+b(?!-sft))": "DPO",
    r"olmo-2-\d+-\d+b-(instruct|dpo)": "DPO",
    r"llama-2-\d+b-chat": "RLHF",
    r"llama-3(\.\d)?-\d+b-instruct": "DPO, after other methods",
    r"gemma-(\d-)?\d+[mb]-it": "RLHF",
    r"qwen2(\.5)?-[\d.]+b-instruct": "DPO",
    r"phi-(3(\.5)?-\w+-\w+-instruct|3-\w+-instruct|4(?!\d))": "DPO",
}
_METHOD = re.compile(
    r"(?<![a-z])(dpo|orpo|kto|simpo|rlhf|rlaif|direct preference optimi[sz]ation|human feedback"
    r"|preference[- ](?:tun|align|optimi)\w+)(?![a-z])",
    re.IGNORECASE,
)
# A sentence with one of these may say that it was not done, or that it comes later.
_NOT = re.compile(r"\b(?:no|not|never|without|before|prior|yet|future)\b|n't", re.IGNORECASE)
_UNTUNED = re.compile(r"(?<![a-z])(sft|base|pretrained)(?![a-z])", re.IGNORECASE)  # by its name
_SENTENCE = re.compile(r"(?<=[.!?])\s|\n")
_HEADER = re.compile(r"\s*---\n(.*?)\n---\s*\n", re.DOTALL)
_BASE = re.compile(r"base_model: *(?:\n *- *)?[\"']?([\w./-]+)")


def tuned_before(name: str, folder: Path, adapter: str | None = None) -> str:
    """What shows that a model has had preference training, in words; empty where nothing does.

    Args:
        name: As it was given: a folder or hub id.
        folder: Where it lies.
        adapter: Folder of an adapter that is part of it.
    """
    for part in filter(None, (adapter, str(folder))):
        if "trained_from" in read_record(Path(part).expanduser()):
            return "a run of mlx_dpo made it"
    card = own_card(folder) or ""
    header = match[1] if (match := _HEADER.match(card)) else ""
    if known := _known([name, hub_id_of(folder), _named(folder), *_BASE.findall(header)]):
        return known
    if match := _METHOD.search(header):
        return f"its model card is marked {match[1].lower()!r}"
    if _UNTUNED.search(Path(name).expanduser().name):
        return ""  # its card may tell of the models that were made from it
    for sentence in _SENTENCE.split(card[len(header) :]):
        if (match := _METHOD.search(sentence)) and not _NOT.search(sentence):
            return f"its model card mentions {match[1]!r}"
    return ""


def _known(names: list[str | None]) -> str:
    """What is known by one of a model's names."""
    for last in (Path(name).expanduser().name for name in names if name):
        for pattern, method in _KNOWN.items():
            if re.search(pattern, last, re.IGNORECASE):
                return f"{last} is known to have had {method}"
        if (match := _METHOD.search(last)) and not _UNTUNED.search(last):
            return f"its name says {match[1]!r}"
    return ""


def _named(folder: Path) -> str | None:
    """The name that transformers once wrote into a config.json."""
    try:
        name = read_config(folder).get("_name_or_path")
    except UsageError:
        return None
    return name if isinstance(name, str) else None
