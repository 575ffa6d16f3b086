"""The sets of pairs that are measured on. Public ones are files of the reader's own."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.records import Message, Preference, PreferenceExample
from tools.experiments import commands

DEMO = Path("data/dpo/demo")
HELD_OUT = "held out"


@dataclass(frozen=True)
class Side:
    """Pairs that are used together.

    Attributes:
        examples: N pairs as token ids.
        prompts: Which pairs have a prompt in common: N numbers, the same for the same prompt.
        kinds: N names.
    """

    examples: list[PreferenceExample]
    prompts: list[int]
    kinds: list[str]


@dataclass(frozen=True)
class Pool:
    """A set of pairs to train on, and others of it with other prompts."""

    name: str
    train: Side
    held: Side


def pandalm(file: Path) -> list[Preference]:
    """PandaLM's test set: the pairs on which all three annotators agree that one is better."""
    pairs = []
    for row in json.loads(file.read_text("utf-8")):
        verdicts = {row[f"annotator{number}"] for number in (1, 2, 3)}
        answers = (row["response1"], row["response2"])
        are_texts = all(isinstance(answer, str) for answer in answers)  # some are `false`
        if len(verdicts) == 1 and verdicts <= {1, 2} and are_texts and len(set(answers)) == 2:
            asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
            pairs.append(_pair(asked, answers, verdicts.pop(), "", row["idx"]))
    return pairs


def llmbar(files: Sequence[Path]) -> list[Preference]:
    """LLMBar: of kind natural or adversarial, by the path of the file."""
    pairs = []
    for file in files:
        kind = "natural" if "natural" in str(file).lower() else "adversarial"
        for number, row in enumerate(json.loads(file.read_text("utf-8"))):
            answers = (row["output_1"], row["output_2"])
            pairs.append(_pair(row["input"], answers, row["label"], kind, number))
    return pairs


def harmless(file: Path) -> list[Preference]:
    """HH-RLHF, as `mlx_dpo data import` reads it."""
    commands.PLACE.mkdir(parents=True, exist_ok=True)
    out = commands.PLACE / "harmless.jsonl"
    out.unlink(missing_ok=True)
    commands.command("data", "import", file, "--out", out)
    return read_preferences(out, drop_bad=True)


def _pair(asked: str, answers: tuple[str, str], better: int, kind: str, number: Any) -> Preference:
    chosen, rejected = answers if better == 1 else answers[::-1]
    said = [(Message("assistant", text),) for text in (chosen, rejected)]
    return Preference((Message("user", asked),), said[0], said[1], kind, str(number))


def pool(
    name: str,
    preferences: Sequence[Preference],
    chat: ChatFormat,
    *,
    most_tokens: int,
    num_train: int,
    num_held: int,
) -> Pool:
    """Short pairs of a set, divided by prompt in an order of their own.

    Args:
        name: Of the set.
        preferences: Its pairs.
        chat: The model's conversation format.
        most_tokens: Of a prompt and both answers together.
        num_train: Pairs to train on, at most.
        num_held: Pairs to hold out, at most.

    Raises:
        SystemExit: If too few pairs are short enough to train on any.
    """
    whole = short(preferences, chat, most_tokens)
    order = sorted(set(whole.prompts))
    random.Random(0).shuffle(order)
    place = {prompt: at for at, prompt in enumerate(order)}
    rows = sorted(range(len(whole.prompts)), key=lambda row: (place[whole.prompts[row]], row))
    held = rows[:num_held]
    used = {whole.prompts[row] for row in held}
    train = [row for row in rows[num_held:] if whole.prompts[row] not in used][:num_train]
    if not train:
        raise SystemExit(f"{name}: {len(rows)} pairs of at most {most_tokens} tokens are too few")
    return Pool(name, some(whole, train), some(whole, held))


def short(preferences: Sequence[Preference], chat: ChatFormat, most_tokens: int) -> Side:
    """The pairs whose prompt and answers have at most so many tokens together."""
    numbers: dict[tuple[Message, ...], int] = {}
    encoded = encode_preferences(preferences, chat, max_length=most_tokens, drop_bad=True)
    kept = [
        (example, numbers.setdefault(p.prompt, len(numbers)), p.kind)
        for example, p in zip(encoded.examples, encoded.preferences, strict=True)
        if sum(map(len, example)) <= most_tokens
    ]
    return Side([k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept])


def some(side: Side, rows: Sequence[int]) -> Side:
    """Pairs of a side, by their places."""
    return Side(
        [side.examples[row] for row in rows],
        [side.prompts[row] for row in rows],
        [side.kinds[row] for row in rows],
    )


def embedded(chat: ChatFormat) -> Iterator[Pool]:
    """The pairs of the repository: all kinds, divided as `mlx_dpo train` does, and the demo's."""
    rows = read_preferences(commands.PAIRS)
    out = held_out(rows, commands.HELD_OUT_SHARE)
    train, held = ([r for r, o in zip(rows, out, strict=True) if o == side] for side in (0, 1))
    yield Pool("all-kinds", short(train, chat, 999), short(held, chat, 999))
    train, held = (read_preferences(DEMO / f"{name}.json") for name in ("train", "valid"))
    yield Pool("demo", short(train, chat, 999), short(held, chat, 999))
