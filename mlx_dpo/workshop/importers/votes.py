"""Shapes whose rows hold two answers to one prompt and a verdict between them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from mlx_dpo.workshop.importers.chosen import pair, prompt_turns
from mlx_dpo.workshop.importers.fields import (
    Fields,
    Format,
    LeftOutError,
    Row,
    first_of,
    has,
    number,
    parsed,
    truth,
)
from mlx_dpo.workshop.importers.rankings import ranked_pairs
from mlx_dpo.workshop.importers.turns import Turns, are_messages, as_turns, turn
from mlx_dpo.workshop.importers.verdicts import named, vote_of


@dataclass(frozen=True)
class _Two:
    """Where a row has its two answers and who won.

    Attributes:
        answers: The two columns.
        verdicts: The columns that may hold the verdict.
        better: 1 if a verdict means the first answer, -1 if the second, 0 for a tie; None where it
            is none.
        prompt: The column of the prompt, where it has a name of its own.
    """

    answers: tuple[str, str]
    verdicts: tuple[str, ...]
    better: Callable[[Any], float | None]
    prompt: str | None = None

    def fits(self, row: Fields) -> bool:
        return has(row, *self.answers) and first_of(row, self.verdicts) is not None

    def pairs(self, row: Row, _: bool) -> list[Fields]:
        for name in self.answers:
            if row.values.get(name) is None:
                raise LeftOutError("missing-key", f"key {name!r} is missing")
        answers = [as_turns(row, name, row.get(name), "assistant") for name in self.answers]
        if self.prompt is None:
            prompt = prompt_turns(row)
        else:
            row.asked = (self.prompt,)  # and no earlier rounds of it
            prompt = as_turns(row, self.prompt, row.get(self.prompt), "user")
        return [_decided(row, prompt, answers, _verdict(row, self.verdicts, self.better))]


def _verdict(row: Row, names: tuple[str, ...], better: Callable[[Any], float | None]) -> float:
    name = row.first(*names)
    found = None if name is None else better(row.values[name])
    if found is None:
        said = f"{row.values[name]!r:.40} in {name!r}" if name else f"no {names[0]!r}"
        raise LeftOutError("no-pair", f"{said} is not a verdict between the two answers")
    return found


def _decided(row: Row, prompt: Turns | None, answers: list[Turns], better: float) -> Fields:
    if better == 0:
        raise LeftOutError("tie", "neither answer is better")
    chosen, rejected = answers if better > 0 else answers[::-1]
    return pair(row, prompt, chosen, rejected)


def _index(value: Any, first: int) -> float | None:
    """A verdict that is the number of the better answer, counted from `first`."""
    found = number(value)
    return {float(first): 1, first + 1.0: -1, first - 1.0: 0, first + 0.5: 0}.get(
        -9.0 if found is None else found
    )


def _is_first(value: Any) -> float | None:
    """A verdict that says whether the first answer is better."""
    said = truth(value)
    return None if said is None else 2 * said - 1


def _strength(value: Any) -> float | None:
    """A verdict from -3, the first answer is much better, to 3, the second is."""
    found = number(value)
    return None if found is None or abs(found) > 3 else -found


_SHP = _Two(("human_ref_A", "human_ref_B"), ("labels",), _is_first, "history")
_PKU = _Two(("response_0", "response_1"), ("better_response_id",), partial(_index, first=0))
_PKU_SAFER = _Two(("response_0", "response_1"), ("safer_response_id",), partial(_index, first=0))
_HELPSTEER_2 = _Two(("response_1", "response_2"), ("preference_strength",), _strength)
_HELPSTEER_3 = _Two(("response1", "response2"), ("overall_preference",), _strength)


def _vote_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    vote = vote_of(row.values)
    if vote is None:
        raise LeftOutError("missing-key", "no two answers with a verdict")
    if len(vote.answers) > 2:
        reason = f"has {len(vote.answers)} answers, and {vote.verdict!r} names one"
        raise LeftOutError("no-pair", reason, "write pairs, or scores of all the answers")
    one, two = vote.answers
    return _Two((one, two), (vote.verdict,), partial(named, answers=(one, two))).pairs(
        row, all_pairs
    )


def _either(kinds: list[_Two], row: Row, all_pairs: bool) -> list[Fields]:
    kind = next((kind for kind in kinds if kind.fits(row.values)), kinds[0])
    return kind.pairs(row, all_pairs)


def _pku_pairs(kind: _Two, row: Row, all_pairs: bool) -> list[Fields]:
    found = kind.pairs(row, all_pairs)
    verdicts = [row.get(name) for name in ("better_response_id", "safer_response_id")]
    if None not in verdicts and verdicts[0] != verdicts[1]:
        row.notes.append("the better answer is not the safer one (pku-safer takes the safer)")
    chosen = row.values.get(kind.verdicts[0])
    if truth(row.values.get(f"is_response_{chosen}_safe")) is False:
        row.notes.append("the chosen answer is marked unsafe")
    return found


def _shp_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    ratio = number(row.values.get("score_ratio"))
    if ratio is not None and ratio < 2:
        row.notes.append("score_ratio is under 2: a weak preference")
    return _SHP.pairs(row, all_pairs)


# Votes of an arena: two whole conversations, or lists of turns as JSON in a table.


def _is_arena(row: Fields) -> bool:
    return has(row, "conversation_a", "conversation_b", "winner")


def _arena_pairs(row: Row, _: bool) -> list[Fields]:
    names = ("conversation_a", "conversation_b")
    if not all(are_messages(parsed(row.values.get(name))) for name in names):
        raise LeftOutError("wrong-type", "'conversation_a' and 'conversation_b' must be messages")
    both = [as_turns(row, name, row.get(name), "user") for name in names]
    judged = number(row.get("turn"))
    if judged is not None and judged >= 1:  # a vote on an earlier turn says nothing of later ones
        both = [_up_to(turns, judged) for turns in both]
    return [_decided(row, None, both, _verdict(row, ("winner",), partial(named, answers=names)))]


def _up_to(turns: Turns, judged: float) -> Turns:
    """A conversation up to its answer of a number, from 1; a greeting is no answer."""
    roles = [each["role"] for each in turns]
    ends = [n for n, role in enumerate(roles, 1) if role == "assistant" and "user" in roles[:n]]
    return turns[: ends[int(judged) - 1]] if judged < len(ends) else turns


def _is_arena_table(row: Fields) -> bool:
    return has(row, "response_a", "response_b", "winner_model_a", "winner_model_b")


def _arena_table_pairs(row: Row, _: bool) -> list[Fields]:
    asked, first, second = (_texts(row, name) for name in ("prompt", "response_a", "response_b"))
    won = [number(row.get(name)) for name in ("winner_model_a", "winner_model_b")]
    row.use("winner_tie")
    if None in won:
        raise LeftOutError("no-pair", "'winner_model_a' and 'winner_model_b' are not a verdict")
    if not len(asked) == len(first) == len(second):
        raise LeftOutError("wrong-type", "prompt and responses have different numbers of turns")
    both: list[Turns] = [
        [each for round_ in zip(asked, said, strict=True) for each in _round(*round_)]
        for said in (first, second)
    ]
    return [_decided(row, None, both, float(won[0] or 0) - float(won[1] or 0))]


def _round(asked: Any, said: Any) -> Turns:
    return [turn("user", asked), turn("assistant", said)]


def _texts(row: Row, name: str) -> list[Any]:
    value = parsed(row.get(name))
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise LeftOutError("wrong-type", f"{name!r} must be a text or a list of texts")
    return texts


# OpenAI's comparisons: WebGPT, and summaries.


def _is_webgpt(row: Fields) -> bool:
    return has(row, "question", "answer_0", "answer_1", "score_0", "score_1")


def _webgpt_pairs(row: Row, _: bool) -> list[Fields]:
    question = parsed(row.get("question"))
    asked = (
        row.inner("question", question).get("full_text")
        if isinstance(question, dict)
        else (question)
    )
    if not isinstance(asked, str):
        raise LeftOutError("wrong-type", "'question' must be a text or have a 'full_text'")
    scores = [number(row.get(f"score_{n}")) for n in (0, 1)]
    if None in scores:
        raise LeftOutError("no-pair", "'score_0' and 'score_1' must be numbers")
    answers = [as_turns(row, f"answer_{n}", row.get(f"answer_{n}"), "assistant") for n in (0, 1)]
    if any("[1]" in str(answer[-1]["content"]) for answer in answers):
        row.notes.append("an answer cites quotes ([1]) that the prompt does not show")
    return [_decided(row, [turn("user", asked)], answers, (scores[0] or 0) - (scores[1] or 0))]


def _is_summaries(row: Fields) -> bool:
    return isinstance(row.get("info"), dict) and has(row, "summaries", "choice")


def _summaries_pairs(row: Row, _: bool) -> list[Fields]:
    info = row.inner("info", row.values.get("info") or {})
    summaries = row.get("summaries")
    texts = [
        row.inner("summaries", each).get("text") if isinstance(each, dict) else None
        for each in (summaries if isinstance(summaries, list) else [])
    ]
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise LeftOutError("wrong-type", "'summaries' must be two objects with 'text'")
    article, post, title, forum = (info.get(k) for k in ("article", "post", "title", "subreddit"))
    if post:
        lines = [f"SUBREDDIT: r/{forum}"] * bool(forum) + [f"TITLE: {title}"] * bool(title)
        asked = "\n".join([*lines, f"POST: {post}", "TL;DR:"])
    elif article:
        asked = "\n".join([f"TITLE: {title}"] * bool(title) + [f"ARTICLE: {article}", "TL;DR:"])
    else:
        raise LeftOutError("missing-key", "'info' has neither 'post' nor 'article'")
    answers = [[turn("assistant", str(text).strip())] for text in texts]
    better = _verdict(row, ("choice",), partial(_index, first=0))
    return [_decided(row, [turn("user", asked)], answers, better)]


# FineGrainedRLHF: four predictions, and a verdict between every two.


def _is_fine_grained(row: Fields) -> bool:
    return has(row, "question", "prediction 1", "prediction 2", "preference")


def _fine_grained_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    names = [f"prediction {n}" for n in range(1, 10) if f"prediction {n}" in row.values]
    answers = [as_turns(row, name, row.get(name), "assistant") for name in names]
    twos = list(combinations(range(len(answers)), 2))
    verdicts = row.get("preference")
    if not isinstance(verdicts, list) or len(verdicts) != len(twos):
        raise LeftOutError("wrong-type", f"'preference' must be a list of {len(twos)} verdicts")
    question, passages = row.get("question"), row.get("passages") or []
    if not isinstance(question, str) or not isinstance(passages, list):
        raise LeftOutError("wrong-type", "'question' must be text, and 'passages' a list")
    shown = [
        "\n".join(map(str, passage)) if isinstance(passage, list) else str(passage)
        for passage in passages
    ]
    prompt = [turn("user", "\n\n".join([question, *shown]))]
    wins, found = [0.0] * len(answers), []
    for (one, other), said in zip(twos, verdicts, strict=True):
        better = _index(said, 1)
        if better:
            winner, loser = (one, other) if better > 0 else (other, one)
            wins[winner] += 1
            wins[loser] -= 1
            found.append(pair(row, prompt, answers[winner], answers[loser]))
    if all_pairs and found:
        return found
    ranked = list(zip(wins, answers, strict=True))
    return [pair(row, prompt, *two) for two in ranked_pairs(ranked, False)]


SHP = Format(
    "shp",
    "Stanford Human Preferences",
    "history, human_ref_A, human_ref_B, labels",
    _SHP.fits,
    _shp_pairs,
)
PKU = Format(
    "pku-saferlhf",
    "PKU-SafeRLHF, the more helpful answer",
    "prompt, response_0, response_1, better_response_id",
    _PKU.fits,
    partial(_pku_pairs, _PKU),
)
PKU_SAFER = Format(
    "pku-safer",
    "PKU-SafeRLHF, the safer answer",
    "prompt, response_0, response_1, safer_response_id",
    _PKU_SAFER.fits,
    partial(_pku_pairs, _PKU_SAFER),
)
HELPSTEER = Format(
    "helpsteer",
    "preferences of HelpSteer2 and HelpSteer3",
    "prompt, response_1, response_2, preference_strength; "
    "or context, response1, response2, overall_preference",
    lambda row: _HELPSTEER_2.fits(row) or _HELPSTEER_3.fits(row),
    partial(_either, [_HELPSTEER_2, _HELPSTEER_3]),
)
ARENA = Format(
    "arena",
    "votes between two conversations (Chatbot Arena, MT-Bench)",
    "conversation_a, conversation_b, winner",
    _is_arena,
    _arena_pairs,
)
ARENA_TABLE = Format(
    "arena-table",
    "votes between two responses, a column for each outcome",
    "prompt, response_a, response_b, winner_model_a, winner_model_b",
    _is_arena_table,
    _arena_table_pairs,
)
WEBGPT = Format(
    "webgpt",
    "WebGPT comparisons",
    "question.full_text, answer_0, answer_1, score_0, score_1",
    _is_webgpt,
    _webgpt_pairs,
)
SUMMARIES = Format(
    "summaries",
    "summarize-from-feedback's comparisons",
    "info, summaries: [{text}, {text}], choice",
    _is_summaries,
    _summaries_pairs,
)
FINE_GRAINED = Format(
    "fine-grained",
    "FineGrainedRLHF's predictions with verdicts between every two",
    "question, passages, prediction 1 to 4, preference",
    _is_fine_grained,
    _fine_grained_pairs,
)
VOTES = Format(
    "votes",
    "two answers and the better one's letter or number",
    "prompt, response_a, response_b (or answer_, output_1, output_2), winner (or preference)",
    lambda row: vote_of(row) is not None,
    _vote_pairs,
)
