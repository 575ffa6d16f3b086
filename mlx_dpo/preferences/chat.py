"""From texts to token ids: the template is applied once, the boundary found in token space.

Prompt and response are tokenized together, as the model will see them, and separated where the
sequences of prompt, prompt + chosen and prompt + rejected part. Tokenizing them apart would score
tokens the model never meets wherever a merge crosses the boundary.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.boundary import PROBE, QUESTION, Frame, frame_of, lost_turn
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.preferences.worker import encode, render
from mlx_dpo.records import Message, Preference, PreferenceExample

# A Hugging Face tokenizer, or mlx-lm's wrapper of one; neither publishes types.
Tokenizer = Any
Encoded = tuple[PreferenceExample, bool]  # with whether a merge crossed the boundary
T = TypeVar("T")

# Of a text far longer than the length that is kept, only the beginning is tokenized: so many
# characters a token, and a margin of tokens, because a cut end is tokenized differently.
_CHARACTERS, _MARGIN = 32, 64


class CheckedPair(NamedTuple):
    """Ids of a pair, whether a merge crossed the boundary, and what is odd about the boundary.

    `goes_on` says of the prompt, and of an answer, that it has more ids than these.
    """

    example: PreferenceExample
    merged: bool
    findings: list[Finding]
    goes_on: tuple[bool, bool]


class _Texts(NamedTuple):
    """Texts of prompt, prompt + chosen and prompt + rejected, and what is odd about them."""

    prompt: str
    chosen: str
    rejected: str
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    r"""How a model's conversations are written.

    Attributes:
        tokenizer: The model's tokenizer.
        has_template: Whether the tokenizer brings a chat template. Without one, turns are
            ``<|user|>\n{text}\n`` and ``<|assistant|>\n{text}`` + closing token.
        closing_id: The token that ends an assistant turn; scored, and where generation stops.
        closing_text: The same as text.
        adds_bos: Whether plain text gets a BOS in front (a template writes its own).
        date: Today, as the template gets it, YYYY-MM-DD; None where it does not ask.
        frame: What is written around the words of an answer.
    """

    tokenizer: Tokenizer
    has_template: bool
    closing_id: int
    closing_text: str
    adds_bos: bool
    date: str | None = None
    frame: Frame = field(default_factory=Frame)

    @property
    def stop_ids(self) -> set[int]:
        """Tokens at which an answer ends: the closing token and the model's own."""
        # mlx-lm's wrapper has a set, with those of the generation config; transformers a number.
        known = getattr(self.tokenizer, "eos_token_ids", None)
        return {self.closing_id, *(known if isinstance(known, set) else {known})} - {None}

    def prompt_text(self, prompt: Sequence[Message]) -> str:
        """The text up to where the assistant begins to answer.

        Raises:
            DataError: If the chat template refuses the conversation.
        """
        (text,) = self._write([prompt], is_open=True)
        return _or_raise(text)

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """`prompt_text` as ids, to generate from."""
        (ids,) = self._encode([self.prompt_text(prompt)])
        return ids

    def encode_pair(self, preference: Preference) -> Encoded:
        """Ids of one pair, and whether a merge crossed the boundary.

        Raises:
            DataError: If the chat template refuses the conversation.
        """
        (encoded,) = self.encode_pairs([preference])
        return _or_raise(encoded)

    def encode_pairs(self, preferences: Sequence[Preference]) -> list[Encoded | DataError]:
        """`encode_pair` of each, or its error: many times faster than one by one."""
        checked = self.check_pairs(preferences)
        return [each if isinstance(each, DataError) else each[:2] for each in checked]

    def check_pairs(
        self, preferences: Sequence[Preference], max_length: int | None = None
    ) -> list[CheckedPair | DataError]:
        """`encode_pairs`, with what is odd about the boundaries.

        Args:
            preferences: The pairs.
            max_length: Tokens of prompt + response that will be kept, for which texts need not be
                tokenized to their end; None for all.
        """
        if not preferences:
            return []
        prompts = self._write([p.prompt for p in preferences], is_open=True)
        chosen = self._write([(*p.prompt, *p.chosen) for p in preferences])
        rejected = self._write([(*p.prompt, *p.rejected) for p in preferences])
        texts = list(map(self._pair_texts, preferences, prompts, chosen, rejected))
        whole = [t for each in texts if isinstance(each, _Texts) for t in each[:3]]
        ids = iter(self._begin_of(whole, max_length))
        return [
            each
            if isinstance(each, DataError)
            else self._checked(pair, each, (next(ids), next(ids), next(ids)))
            for pair, each in zip(preferences, texts, strict=True)
        ]

    def _write(
        self, conversations: Sequence[Sequence[Message]], *, is_open: bool = False
    ) -> list[str | DataError]:
        """The text of each conversation: finished, or open where the assistant is to answer."""
        if self.has_template:
            return render(
                self.tokenizer, conversations, add_generation_prompt=is_open, date=self.date
            )
        end = "<|assistant|>\n" if is_open else ""
        return [_plain_text(turns, self.closing_text, end) for turns in conversations]

    def _pair_texts(
        self,
        preference: Preference,
        prompt: str | DataError,
        chosen: str | DataError,
        rejected: str | DataError,
    ) -> _Texts | DataError:
        """Texts of a pair, from three conversations."""
        try:
            begin, frame, turns = _or_raise(prompt), self.frame, preference.prompt
            good, odd = frame.answer(turns, begin, _or_raise(chosen), preference.chosen)
            bad, too = frame.answer(turns, begin, _or_raise(rejected), preference.rejected)
        except DataError as error:
            return error
        found = {f.code: f._replace(at="rejected") for f in too}
        found |= {f.code: f._replace(at="chosen") for f in odd}  # one of each code
        if lost := lost_turn(turns, begin):
            found[lost.code] = lost
        lead = frame.before if frame.before.strip() else ""
        if good.startswith(lead) and bad.startswith(lead):  # the template's, and no answer's
            begin, good, bad = begin + lead, good.removeprefix(lead), bad.removeprefix(lead)
        return _Texts(begin, begin + good, begin + bad, list(found.values()))

    def _checked(
        self, preference: Preference, texts: _Texts, begun: Sequence[tuple[list[int], bool]]
    ) -> CheckedPair:
        """A pair of encoded texts; an answer of one turn should have one closing token, at its end.

        Args:
            preference: The pair.
            texts: Its texts.
            begun: Of each text its ids, and whether there are more.
        """
        ids_of, goes_on = zip(*begun, strict=True)
        encoded = self._split(*ids_of)
        findings = list(texts.findings)
        for part in ("chosen", "rejected"):
            ids = getattr(encoded[0], f"{part}_ids")
            if len(getattr(preference, part)) == 1 and self.closing_id in ids[:-1]:
                reason = f"{self.closing_text!r}, which ends an answer, stands inside {part!r} too"
                hint = "what follows it is never said by the model, but scored"
                findings.append(Finding("template-words", part, reason, hint))
                break
        return CheckedPair(*encoded, findings, (goes_on[0], any(goes_on)))

    def _begin_of(
        self, texts: Sequence[str], max_length: int | None
    ) -> list[tuple[list[int], bool]]:
        """More ids than `max_length` of each text, or all, and whether it has still more."""
        if max_length is None:
            return [(ids, False) for ids in self._encode(texts)]
        enough = max_length + _MARGIN
        begun = self._encode([text[: enough * _CHARACTERS] for text in texts])
        goes_on = [len(text) > enough * _CHARACTERS for text in texts]
        few = [i for i, ids in enumerate(begun) if goes_on[i] and len(ids) < enough]
        for i, ids in zip(few, self._encode([texts[i] for i in few]), strict=True):
            begun[i], goes_on[i] = ids, False
        return list(zip(begun, goes_on, strict=True))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, with the BOS in front that plain text gets, where it gets one."""
        bos = self.tokenizer.bos_token_id
        begin = [bos] if self.adds_bos and bos is not None else []
        return [
            ids if not begin or ids[:1] == begin else begin + ids
            for ids in encode(self.tokenizer, texts)
        ]

    def _split(self, alone: list[int], with_chosen: list[int], with_rejected: list[int]) -> Encoded:
        """A pair from the ids of prompt, prompt + chosen and prompt + rejected.

        The prompt keeps the tokens that all three begin with; the rest is response. Each response
        ends with one closing token: appended where it is missing, and with nothing after it where a
        template adds white space.
        """
        shared = _common_prefix(alone, with_chosen, with_rejected)
        example = PreferenceExample(
            alone[:shared],
            self._close(with_chosen[shared:]),
            self._close(with_rejected[shared:]),
        )
        return example, shared < len(alone)

    def _close(self, ids: list[int]) -> list[int]:
        if self.closing_id in ids:
            end = len(ids) - ids[::-1].index(self.closing_id)
            if end == len(ids) or not self.tokenizer.decode(ids[end:]).strip():
                return ids[:end]
        return [*ids, self.closing_id]


def chat_format(tokenizer: Tokenizer, date: str | None = None) -> ChatFormat:
    """Find out how a tokenizer's conversations are written and closed.

    The closing token is the one the template itself writes after an assistant turn, which is not
    always the tokenizer's EOS. Where the template writes none, it is the EOS.

    Args:
        tokenizer: The model's tokenizer.
        date: The date that a template gets if it asks, YYYY-MM-DD. Default: today's.

    Raises:
        UsageError: If there is neither a closing token in the template nor an EOS, the template
            refuses a plain question and answer, or it lies where no tokenizer reads it.
    """
    has_template = bool(tokenizer.chat_template)
    folder = getattr(tokenizer, "name_or_path", None)
    if not has_template and folder and (Path(folder) / "chat_template.json").is_file():
        raise UsageError(
            f"{folder}: its chat template is in chat_template.json, which tokenizers don't read; "
            "write it into a file chat_template.jinja beside it"
        )
    date = (date or today()) if asks_for_date(tokenizer) else None
    whole = _probe(tokenizer, date) if has_template else ""
    closing_id = (
        _closing_id(tokenizer, date, whole) if has_template else _course_closing_id(tokenizer)
    )
    if closing_id is None:
        closing_id = tokenizer.eos_token_id
    if closing_id is None:
        raise UsageError(
            "the tokenizer has no token that ends an answer: no EOS and none in its chat template"
        )
    closing_text = tokenizer.decode([closing_id])
    bos = tokenizer.bos_token_id
    (default,) = encode(tokenizer, ["a"], add_special_tokens=True)
    return ChatFormat(
        tokenizer=tokenizer,
        has_template=has_template,
        closing_id=closing_id,
        closing_text=closing_text,
        adds_bos=not has_template and bos is not None and default[:1] == [bos],
        date=date,
        frame=_frame(tokenizer, date, whole, closing_text) if whole else Frame(closing_text),
    )


def today() -> str:
    """The date here and now, YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def is_date(text: str) -> bool:
    """Whether a text is a date, YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def asks_for_date(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a word for the date."""
    return "strftime" in json.dumps(tokenizer.chat_template, default=str)


def named_templates(tokenizer: Tokenizer) -> list[str]:
    """Names of the chat templates where there are several; the one used is ``default``."""
    templates = tokenizer.chat_template
    return sorted(templates) if isinstance(templates, dict) else []


def pad_id_of(tokenizer: Any) -> int:
    """Any valid id to pad with; padding is never scored."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _probe(tokenizer: Tokenizer, date: str | None) -> str:
    """A plain question and answer as the template writes them."""
    turns = (Message("user", QUESTION), Message("assistant", PROBE))
    (text,) = render(tokenizer, [turns], add_generation_prompt=False, date=date)
    if isinstance(text, DataError):
        raise UsageError(f"the model cannot chat: {text}")
    return text


def _frame(tokenizer: Tokenizer, date: str | None, whole: str, closing_text: str) -> Frame:
    """What the template writes around the answer of `_probe`."""
    asked = [(Message("user", QUESTION),)]
    (prompt,) = render(tokenizer, asked, add_generation_prompt=True, date=date)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    source = json.dumps([tokenizer.chat_template, added], default=str, ensure_ascii=False)
    begin = whole.rpartition(PROBE)[0] if isinstance(prompt, DataError) else prompt
    return frame_of(begin, whole, closing_text, source)


def _closing_id(tokenizer: Tokenizer, date: str | None, whole: str) -> int | None:
    """The first token of its own that the template writes after the answer of `_probe`.

    Where there is none, the one that begins the next turn, if the model ends its answers with it.
    """
    after = whole.rpartition(PROBE)[2]
    added = tokenizer.added_tokens_decoder
    for token in encode(tokenizer, [after])[0]:
        if token in added or token == tokenizer.eos_token_id:
            return int(token)
    turns = (Message("user", QUESTION), Message("assistant", PROBE), Message("user", QUESTION))
    (text,) = render(tokenizer, [turns], add_generation_prompt=False, date=date)
    if isinstance(text, str):
        ends = getattr(tokenizer, "eos_token_ids", None)
        first = encode(tokenizer, [text.rpartition(PROBE)[2].lstrip()])[0][:1]
        return next((int(i) for i in first if isinstance(ends, set) and i in ends), None)
    return None


def _course_closing_id(tokenizer: Tokenizer) -> int | None:
    (ids,) = encode(tokenizer, ["<|end|>"])
    is_known = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    return int(ids[0]) if is_known else None


def _or_raise(result: T | DataError) -> T:
    if isinstance(result, DataError):
        raise result
    return result


def _plain_text(messages: Sequence[Message], closing_text: str, end: str) -> str | DataError:
    """A conversation as the course writes it."""
    parts = []
    for role, content in messages:
        if role == "user":
            parts.append(f"<|user|>\n{content}\n")
        elif role == "assistant":
            parts.append(f"<|assistant|>\n{content}{closing_text}")
        else:
            return DataError(
                f"the tokenizer has no chat template, and its plain form knows no role {role!r}; "
                "use 'user' and 'assistant'"
            )
    return "".join(parts) + end


def _common_prefix(*sequences: list[int]) -> int:
    first, *others = sequences
    length = len(first)
    for other in others:  # slices are compared at once, and mostly the first is whole in the others
        while first[:length] != other[:length]:
            length = next(
                i for i, (a, b) in enumerate(zip(first[:length], other, strict=False)) if a != b
            )
    return length
