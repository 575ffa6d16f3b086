"""Many pairs to token ids: in batches, cut to the length, each pair kept or left out with a code.

`ChatFormat.encode_pair` says what the ids of a pair are. `encode_pairs` gives the same for many,
several times faster: a template's overhead is paid once a batch, and the tokenizer works on all
processors.
"""

import re
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.preferences.worker import encode, render
from mlx_dpo.records import EncodedPairs, Message, Preference, PreferenceExample

NO_ROOM, EQUAL = "too-long", "equal"  # why a pair is left out: codes of `problems.LEVELS`

Encoded = tuple[PreferenceExample, bool]


def encode_pairs(preferences: Sequence[Preference], chat: ChatFormat) -> list[Encoded | DataError]:
    """`chat.encode_pair` of each; the error where the chat template refuses a pair."""
    rendered = [
        _render([p.prompt for p in preferences], chat, add_generation_prompt=True),
        *(
            _render([(*p.prompt, *side(p)) for p in preferences], chat)
            for side in (attrgetter("chosen"), attrgetter("rejected"))
        ),
    ]
    pairs = [
        _join(chat, preference, *texts)
        for preference, *texts in zip(preferences, *rendered, strict=True)
    ]
    texts = [text for pair in pairs if isinstance(pair, tuple) for text in pair]
    ids = map(chat.with_bos, encode(chat.tokenizer, texts))
    return [
        chat.split_ids(next(ids), next(ids), next(ids)) if isinstance(pair, tuple) else pair
        for pair in pairs
    ]


class Fitted(NamedTuple):
    """A pair cut to the length.

    Attributes:
        example: The ids kept.
        finding: Why nothing is left to learn from; None for a pair to train on.
        cut: Whether the end of a response is missing.
    """

    example: PreferenceExample
    finding: Finding | None
    cut: bool


def fit(whole: PreferenceExample, max_length: int) -> Fitted:
    """Cut a pair to `max_length` tokens of prompt + response."""
    room = max(0, max_length - len(whole.prompt_ids))
    example = PreferenceExample(
        whole.prompt_ids, whole.chosen_ids[:room], whole.rejected_ids[:room]
    )
    finding = None
    if room == 0:
        reason = f"the prompt fills the length: {len(whole.prompt_ids)} tokens of {max_length}"
        finding = Finding(NO_ROOM, 0, reason, "raise --max-length or shorten the prompt")
    elif whole.chosen_ids == whole.rejected_ids:
        reason = "chosen equals rejected as the model sees them"
        finding = Finding(EQUAL, "rejected", reason)
    elif example.chosen_ids == example.rejected_ids:
        reason = f"chosen equals rejected once cut to {max_length} tokens"
        finding = Finding(EQUAL, "rejected", reason, "raise --max-length")
    return Fitted(example, finding, example != whole)


def encode_preferences(
    preferences: Sequence[Preference], chat: ChatFormat, *, max_length: int
) -> EncodedPairs:
    """Tokenise pairs in memory, leaving out those with nothing left to learn from.

    Args:
        preferences: Rows of a preference file.
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.

    Returns:
        The pairs kept, and what became of the others.

    Raises:
        DataError: If the chat template refuses a row; the message names it.
    """
    examples, kept = [], []
    dropped: Counter[str] = Counter()
    num_cut = num_merged = num_closed = 0
    for preference, found in zip(preferences, encode_pairs(preferences, chat), strict=True):
        if isinstance(found, DataError):
            raise DataError(f"pair {preference.id}: {found}")
        fitted = fit(found[0], max_length)
        if fitted.finding is not None:
            dropped[fitted.finding.code] += 1
            continue
        examples.append(fitted.example)
        kept.append(preference)
        num_cut += fitted.cut
        num_merged += found[1]
        num_closed += sum(ids[-1] == chat.closing_id for ids in fitted.example[1:])
    return EncodedPairs(
        examples, kept, len(preferences), dict(dropped), num_cut, num_merged, num_closed
    )


def special_tokens(chat: ChatFormat) -> re.Pattern[str] | None:
    """Matches the texts that the tokenizer reads as tokens of its own; None if it has none."""
    added = chat.tokenizer.added_tokens_decoder.values()
    texts = sorted({token.content for token in added if token.special and token.content})
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def find_special(preference: Preference, special: re.Pattern[str]) -> tuple[str, str] | None:
    """The first special token's text inside the words of a pair; they would not be words.

    Returns:
        ``prompt``, ``chosen`` or ``rejected``, and the text.
    """
    for part in ("prompt", "chosen", "rejected"):
        for turn in getattr(preference, part):
            if found := special.search(turn.content):
                return part, found[0]
    return None


def _render(
    conversations: Sequence[Sequence[Message]],
    chat: ChatFormat,
    *,
    add_generation_prompt: bool = False,
) -> list[str | DataError]:
    """The text of each conversation, or the error where the template refuses it."""
    if chat.has_template:
        return render(chat.tokenizer, conversations, add_generation_prompt=add_generation_prompt)
    found: list[str | DataError] = []
    for turns in conversations:
        try:
            write = chat.prompt_text if add_generation_prompt else chat.conversation_text
            found.append(write(turns))
        except DataError as error:
            found.append(error)
    return found


def _join(
    chat: ChatFormat,
    preference: Preference,
    prompt: str | DataError,
    chosen: str | DataError,
    rejected: str | DataError,
) -> tuple[str, str, str] | DataError:
    """Texts of prompt, prompt + chosen and prompt + rejected, from the three conversations."""
    if isinstance(prompt, DataError):
        return prompt
    texts = [prompt]
    for whole, response in ((chosen, preference.chosen), (rejected, preference.rejected)):
        if isinstance(whole, DataError):
            return whole
        try:
            texts.append(prompt + chat.after_prompt(prompt, whole, response))
        except DataError as error:
            return error
    return texts[0], texts[1], texts[2]
