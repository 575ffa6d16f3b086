"""Shapes whose rows name the better and the worse answer to one prompt."""

from typing import Any

from mlx_dpo.workshop.importers.fields import (
    Fields,
    Format,
    LeftOutError,
    Row,
    first_of,
    has,
    is_blank,
    number,
    parsed,
    truth,
)
from mlx_dpo.workshop.importers.turns import (
    Turns,
    are_messages,
    as_turns,
    is_transcript,
    transcript_turns,
    turn,
    with_context,
)

PROMPTS = ("prompt", "question", "instruction", "input", "query", "user", "problem")
DIALOGUES = (
    *("conversations", "messages", "prompt_messages", "conversation", "trajectory", "context"),
    "contents",
)
CHOSEN = (
    *("chosen", "chosen_response", "response_chosen", "chosen_conversations"),
    *("chosen_messages", "preferred", "response_j"),
)
REJECTED = (
    *("rejected", "rejected_response", "response_rejected", "rejected_conversations"),
    *("rejected_messages", "dispreferred", "response_k"),
)
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
)


def pair(row: Row, prompt: Turns | None, chosen: Turns, rejected: Turns) -> Fields:
    """A pair of a row, with the row's system text, earlier turns and kind.

    Args:
        row: The row.
        prompt: Turns of its prompt; None where the answers are dialogues that begin with it.
        chosen: Turns of the better answer, or of the dialogue with it.
        rejected: The same of the worse one.

    Raises:
        LeftOutError: If the two answers are to different prompts.
    """
    if prompt is None or any(each["role"] != "assistant" for each in (chosen[0], rejected[0])):
        chosen, rejected, prompt = _split(prompt, chosen, rejected)
    else:
        chosen, rejected = _without_prompt(row, prompt, chosen, rejected)
    made: Fields = {"prompt": with_context(row, prompt), "chosen": chosen, "rejected": rejected}
    kind = row.get("kind")
    return made | ({"kind": kind} if kind else {})


def _split(prompt: Turns | None, chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Two answers and their prompt, of dialogues that differ in the assistant's last turn alone."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            reason = f"{name!r} is not a dialogue that ends with the assistant's turn"
            raise LeftOutError("no-common-prompt", reason)
    if chosen[:-1] != rejected[:-1]:
        raise LeftOutError(
            "no-common-prompt",
            "chosen and rejected differ before the last answer; they answer different prompts",
        )
    said = {_plain(each) for each in chosen[:-1]}
    if prompt is not None and any(_plain(each) not in said for each in prompt):
        raise LeftOutError("no-common-prompt", "the prompt is no turn of the two dialogues")
    return chosen[-1:], rejected[-1:], chosen[:-1]


def _plain(message: Fields) -> str:
    return str(message["content"]).strip()


def _without_prompt(row: Row, prompt: Turns, chosen: Turns, rejected: Turns) -> tuple[Turns, Turns]:
    """Two answers without the prompt's text, where both begin with all of it."""
    asked = str(prompt[-1]["content"]).strip() if prompt else ""
    texts = [turns[0]["content"] for turns in (chosen, rejected)]
    rests = [_after(text, asked) for text in texts]
    if not asked or None in rests:
        return chosen, rejected
    is_word = len(asked.split()) == 1 and len(asked.encode(errors="replace")) < 16
    if is_word:  # "Hello", to which both answer with the same; Chinese has no spaces
        row.notes.append("both answers begin with the prompt, one word; it is left there")
        return chosen, rejected
    row.notes.append("both answers repeated the whole prompt, which is taken off them")
    better, worse = (
        [turn("assistant", rest), *turns[1:]]
        for rest, turns in zip(rests, (chosen, rejected), strict=True)
    )
    return better, worse


def _after(text: Any, asked: str) -> str | None:
    """What follows a question in a text that begins with it, as words of their own; or None."""
    if not isinstance(text, str) or not text.lstrip().startswith(asked):
        return None
    rest = text.lstrip()[len(asked) :]
    if rest[:1].isalnum() and asked[-1:].isalnum():
        return None
    line = rest.lstrip(" \t")
    return line.lstrip("\r\n") if line[:1] in ("\r", "\n") else line  # code keeps its indents


def prompt_turns(row: Row) -> Turns | None:
    """The prompt of a row, from whichever column holds it; None if none does."""
    name = row.first(*PROMPTS)
    if name is None or is_blank(row.values[name]):
        dialogue = first_of(row.values, DIALOGUES)
        if dialogue is not None and are_messages(parsed(row.values[dialogue])):
            return as_turns(row, dialogue, row.get(dialogue), "user")
        if name is None:
            return None
    turns = as_turns(row, name, row.values[name], "user")
    extra = row.values.get("input")
    if name == "instruction" and isinstance(extra, str):
        # Alpaca's convention: the text that the instruction is about has a column of its own.
        row.use("input")
        turns[-1]["content"] = f"{turns[-1]['content']}\n{extra}".rstrip("\n")
    return turns


def _refuse_ties(row: Row) -> None:
    """Leave out a tie, and note what the row itself says against its pair."""
    if row.get("status") == "tie":
        raise LeftOutError("tie", "marked as a tie")
    for names in _SCORES:
        if not has(row.values, *names):
            continue
        better, worse = (row.get(name) for name in names)
        if better == worse:
            raise LeftOutError("tie", f"both answers have the score {better}")
        high, low = number(better), number(worse)
        if high is not None and low is not None and high < low:
            row.notes.append("the chosen answer has the lower score")
        if names[0] == "score_chosen" and high == 10:
            row.notes.append("score_chosen is 10, which early UltraFeedback wrote for 1 too")
    if truth(row.values.get("in_gsm8k_train")):
        row.notes.append("the prompt is marked as one of GSM8K's training set")


# Transcripts: "\n\nHuman: ... \n\nAssistant: ..." (Anthropic's hh-rlhf), and NeMo's.


def _is_hh(row: Fields) -> bool:
    return is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))


def _hh_pairs(row: Row, _: bool) -> list[Fields]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not is_transcript(chosen) or not is_transcript(rejected):
        raise LeftOutError("wrong-type", "'chosen' and 'rejected' must be transcripts")
    prompt = as_turns(row, "prompt", row.get("prompt"), "user") if row.first("prompt") else None
    better, worse = transcript_turns(chosen), transcript_turns(rejected)
    if prompt is None or len(better) > 1 or len(worse) > 1:
        better, worse, prompt = _split(prompt, better, worse)
    return [pair(row, prompt, better, worse)]


# TRL and columns of other names: `question` or `instruction`, `chosen_response` ...


def _is_columns(row: Fields) -> bool:
    return all(first_of(row, keys) is not None for keys in (PROMPTS[1:5], CHOSEN, REJECTED)) or (
        "prompt" in row and "chosen" not in row and first_of(row, CHOSEN[1:3]) is not None
    )


def _is_trl(row: Fields) -> bool:
    return ("chosen" in row and "rejected" in row) or all(
        first_of(row, keys) is not None for keys in (CHOSEN, REJECTED)
    )


def _named_pairs(row: Row, _: bool) -> list[Fields]:
    _refuse_ties(row)
    names = row.first(*CHOSEN), row.first(*REJECTED)
    for name, key in zip(names, ("chosen", "rejected"), strict=True):
        if name is None:
            raise LeftOutError("missing-key", f"key {key!r} is missing")
    values = [row.values[name] for name in names if name is not None]
    prompt = prompt_turns(row)
    texts = [isinstance(each, str) and not are_messages(parsed(each)) for each in values]
    if prompt is None and all(texts):
        reason = "there is no prompt, and plain texts have no turns to share"
        raise LeftOutError("no-common-prompt", reason)
    chosen, rejected = (
        _answers(row, str(name), value) for name, value in zip(names, values, strict=True)
    )
    return [pair(row, prompt, better, worse) for better in chosen for worse in rejected]


def _answers(row: Row, name: str, value: Any) -> list[Turns]:
    """The answers in a column, which may be a list of texts."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return [as_turns(row, name, text, "assistant") for text in value]
    return [as_turns(row, name, value, "assistant")]


# A dialogue, and the two turns that may follow it: LLaMA-Factory's sharegpt form, Axolotl.


def _is_continued(row: Fields) -> bool:
    return _dialogue(row) is not None and has(row, "chosen", "rejected") and "prompt" not in row


def _dialogue(row: Fields) -> str | None:
    return next((name for name in DIALOGUES if are_messages(parsed(row.get(name)))), None)


def _is_alternatives(row: Fields) -> bool:
    """LLaMA-Factory's older ranking form: ``output`` holds the better answer and the worse."""
    output = parsed(row.get("output"))
    return "instruction" in row and isinstance(output, list) and len(output) == 2


def _llama_factory_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    if not _is_alternatives(row.values):
        return _named_pairs(row, all_pairs)
    better, worse = parsed(row.get("output"))
    prompt = prompt_turns(row)
    return [pair(row, prompt, [turn("assistant", better)], [turn("assistant", worse)])]


# ms-swift: the dialogue with the better answer, and the worse one.


def _is_swift(row: Fields) -> bool:
    rejected = "rejected_response" in row or "rejected_messages" in row
    dialogue = _dialogue(row) is not None or (
        has(row, "response") and first_of(row, PROMPTS) is not None
    )
    return rejected and dialogue and first_of(row, CHOSEN) is None


def _swift_pairs(row: Row, _: bool) -> list[Fields]:
    name = _dialogue(row.values)
    if name is None:
        prompt = prompt_turns(row) or []
        chosen = _answers(row, "response", row.get("response"))
    else:
        prompt = as_turns(row, name, row.get(name), "user")
        chosen = [prompt[-1:]]
        prompt = prompt[:-1]
        if not prompt or chosen[0][0]["role"] != "assistant":
            reason = f"{name!r} does not end with the assistant's answer"
            raise LeftOutError("no-common-prompt", reason)
    worse = row.first("rejected_messages", "rejected_response")
    rejected = _answers(row, str(worse), row.values[worse] if worse else None)
    if worse == "rejected_messages" and rejected[0][0]["role"] != "assistant":
        return [pair(row, None, [*prompt, *chosen[0]], rejected[0])]
    return [pair(row, prompt, one, other) for one in chosen for other in rejected]


# OpenAI's preference files; Azure, Together and Fireworks take the same.


def _is_openai(row: Fields) -> bool:
    return "preferred_output" in row and "non_preferred_output" in row


def _openai_pairs(row: Row, _: bool) -> list[Fields]:
    asked = parsed(row.get("input"))
    if not isinstance(asked, dict) or not are_messages(asked.get("messages")):
        raise LeftOutError("wrong-type", "'input' must be an object with 'messages'")
    inner = row.inner("input", asked)
    inner.use("parallel_tool_calls")  # says something of tools only
    prompt = with_context(inner, as_turns(inner, "messages", inner.get("messages"), "user"))
    names = ("preferred_output", "non_preferred_output")
    chosen, rejected = (as_turns(row, name, row.get(name), "assistant") for name in names)
    return [pair(row, prompt, chosen, rejected)]


# Step-DPO: the steps both answers begin with, and the next step of each.


def _is_step(row: Fields) -> bool:
    return has(row, "prompt", "chosen", "rejected") and "initial_reason_steps" in row


def _step_pairs(row: Row, _: bool) -> list[Fields]:
    before = row.get("initial_reason_steps") or ""
    prompt = as_turns(row, "prompt", row.get("prompt"), "user")
    steps = [row.get(name) for name in ("chosen", "rejected")]
    if not all(isinstance(text, str) for text in (before, *steps)):
        raise LeftOutError("wrong-type", "steps must be texts")
    chosen, rejected = ([turn("assistant", before + step)] for step in steps)
    return [pair(row, prompt, chosen, rejected)]


# One object whose columns are lists: a table by columns.


def _is_columnar(row: Fields) -> bool:
    columns = [row.get(name) for name in ("prompt", "chosen", "rejected")]
    return all(
        isinstance(column, list) and column and all(isinstance(cell, str) for cell in column)
        for column in columns
    )


def _columnar_pairs(row: Row, _: bool) -> list[Fields]:
    columns: list[list[Any]] = [row.get(name) or [] for name in ("prompt", "chosen", "rejected")]
    if len({len(column) for column in columns}) != 1:
        raise LeftOutError("wrong-type", "its columns have different lengths")
    pairs = []
    for prompt, chosen, rejected in zip(*columns, strict=True):
        answers = ([turn("assistant", text)] for text in (chosen, rejected))
        pairs.append(pair(row, [turn("user", prompt)], *answers))
    return pairs


OPENAI = Format(
    "openai",
    "OpenAI's preference files",
    "input.messages, preferred_output, non_preferred_output",
    _is_openai,
    _openai_pairs,
)
STEP = Format(
    "step-dpo",
    "next steps of a solution",
    "prompt, initial_reason_steps, chosen, rejected",
    _is_step,
    _step_pairs,
)
SWIFT = Format(
    "swift",
    "ms-swift's dialogues with a rejected answer",
    "messages (or query, response), rejected_response (or rejected_messages)",
    _is_swift,
    _swift_pairs,
)
LLAMA_FACTORY = Format(
    "llama-factory",
    "a dialogue and its two next turns, or two outputs",
    "conversations (or messages), chosen, rejected; or instruction, output: [better, worse]",
    lambda row: _is_continued(row) or _is_alternatives(row),
    _llama_factory_pairs,
)
HH = Format("hh-rlhf", "transcripts with an implicit prompt", "chosen, rejected", _is_hh, _hh_pairs)
COLUMNAR = Format(
    "columnar",
    "one object whose columns are lists",
    "prompt, chosen, rejected",
    _is_columnar,
    _columnar_pairs,
)
COLUMNS = Format(
    "columns",
    "question or instruction, chosen_response ...",
    "question (or instruction, input, query), chosen, rejected",
    _is_columns,
    _named_pairs,
    lenient=True,
)
TRL = Format(
    "trl",
    "prompt given or implied, chosen, rejected",
    "prompt (or none), chosen, rejected",
    _is_trl,
    _named_pairs,
    lenient=True,
)
