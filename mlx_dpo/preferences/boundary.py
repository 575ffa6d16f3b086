"""Where the words of an answer begin and end in what a chat template writes.

The open prompt and the finished conversation should nest: prompt, words, closing token. Templates
break that in many ways. What can be mended is; the rest becomes a finding of the pair.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.records import Message

# Words of a question and an answer, to see what is written around them.
QUESTION, PROBE = "mlxdpoquestion", "mlxdpoprobe"

_OWN = ("assistant", "model")  # roles whose words an answer is made of
# Tags around a block of a name: either one, the one that opens, the one that closes.
_TAGS = (
    (re.compile(r"</?([A-Za-z][\w:-]*)>"), "<{}>", "</{}>"),
    (re.compile(r"\[/?([A-Za-z]\w*)\]"), "[{}]", "[/{}]"),
    (re.compile(r"<\|(?:begin|end)_of_(\w+)\|>"), "<|begin_of_{}|>", "<|end_of_{}|>"),
    (re.compile(r"<\|(?:START|END)_(\w+)\|>"), "<|START_{}|>", "<|END_{}|>"),
    (re.compile(r"◁/?(\w+)▷"), "◁{}▷", "◁/{}▷"),
)
_THOUGHT = re.compile("think|thought|reason", re.IGNORECASE)
_THOUGHTS_END = re.compile(r"</\w*(?:think|thought|reason)\w*>|\[/THINK\]", re.IGNORECASE)
_EMPTY_BLOCK = re.compile(
    r"<(\w+)>\s*</\1>|\[(\w+)\]\s*\[/\2\]|</\w{0,20}(?:think|thought|reason)\w*>", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Frame:
    r"""What a template writes around the words of an answer, seen at one question and answer.

    Attributes:
        closing: The text of the closing token.
        opening: End of an open prompt that finished conversations lack, such as ``<think>\n``.
        before: What finished conversations have between that place and the words.
        after: What they have after the words.
        rest: The end of `after` that follows the closing token; no answer has it.
        turns: What stands before the question; tags in it are those of turns, not of blocks.
        source: The template and the tokenizer's own tokens, to see which tags are known.
    """

    closing: str = ""
    opening: str = ""
    before: str = ""
    after: str = ""
    rest: str = ""
    turns: str = field(default="", repr=False)
    source: str = field(default="", repr=False)

    def answer(
        self, prompt: Sequence[Message], begin: str, whole: str, response: Sequence[Message]
    ) -> tuple[str, list[Finding]]:
        """What follows an open prompt when the assistant has answered, and what is odd about it.

        Args:
            prompt: The turns before the answer.
            begin: Those as text, open.
            whole: The finished conversation as text.
            response: The turns of the answer.

        Raises:
            DataError: If an answer of several turns can't be told from its prompt.
        """
        seen = self._ended(whole[len(begin) :], response) if whole.startswith(begin) else None
        findings = []
        if len(response) > 1:
            text = _or_refuse(seen)
            if not all(_is_in(turn.content, text) for turn in response):
                findings.append(_changed())
        else:
            text, is_changed = self._one_turn(prompt, begin, seen, response[0].content)
            findings += [_changed()] if is_changed else []
            lead = "" if seen is None else self._lead(seen, response[0].content.strip())
            if _has_words(lead):
                findings.append(_template_words(lead))
        if any(turn.role not in _OWN for turn in response):
            findings.append(_other_words(response))
        if reason := self._odd_block(_tail(prompt, begin), text):
            hint = "an answer should go on where the prompt ends; see mlx_dpo data preview"
            findings.append(Finding("open-block", 0, reason, hint))
        return text, findings

    def _one_turn(
        self, prompt: Sequence[Message], begin: str, seen: str | None, words: str
    ) -> tuple[str, bool]:
        """The text of an answer of one turn, and whether the template changed its words."""
        opened = self._opened(prompt, begin)
        if seen is not None and _is_in(words, seen):
            return _without(opened, seen), False
        # Some templates open an answer with text that they leave out of finished conversations, or
        # leave thoughts out of those; what the model will see when it answers is the prompt, then
        # the words.
        given = self._given(_without(opened, words))
        if seen is None:
            return given + self.closing, False
        if _squeezed(words).endswith(_squeezed(seen.removesuffix(self.closing))):
            return given + self.closing, False
        return seen, True

    def _given(self, words: str) -> str:
        """Words of an answer after what has none: white space, or the end of an empty block."""
        has_own = any(closes in words for _, closes in self._blocks(self.before))
        return words if _has_words(self.before) or has_own else self.before + words

    def _lead(self, seen: str, words: str) -> str:
        """What the template writes between an open prompt and the words of an answer."""
        if not words or words not in seen:
            return self.before
        return seen.removesuffix(self.closing).rpartition(words)[0]

    def _ended(self, text: str, response: Sequence[Message]) -> str:
        """An answer as the template writes it, without what follows the closing token."""
        if self.after and text.endswith(self.after):
            return text.removesuffix(self.rest)
        words = response[-1].content.strip()
        end = text.rfind(words) + len(words)  # the text that follows depends on the conversation
        closes = text.find(self.closing, end) if self.closing and words in text else -1
        return text if closes < 0 else text[: closes + len(self.closing)]

    def _opened(self, prompt: Sequence[Message], begin: str) -> str:
        """The end of an open prompt that an answer may repeat."""
        if self.opening.strip() and begin.endswith(self.opening):
            return self.opening
        tail = _tail(prompt, begin)
        starts = [tail.rfind(opens) for opens, closes in self._blocks(tail) if closes not in tail]
        return tail[min(starts) :] if starts and min(starts) >= 0 else ""

    def _blocks(self, text: str) -> set[tuple[str, str]]:
        """Opening and closing tags of the blocks of which a text has one."""
        return {
            (opens.format(name), closes.format(name))
            for either, opens, closes in _TAGS
            for name in set(either.findall(text))
            if closes.format(name) in self.source or _THOUGHT.search(name)
        }

    def _odd_block(self, tail: str, text: str) -> str:
        """What is wrong with a block, of thoughts or any that the prompt opens; empty if nothing.

        Args:
            tail: The end of the prompt, which the template writes after the last words.
            text: The answer.
        """
        for opens, closes in sorted(self._blocks(tail + text)):
            is_begun, is_thought = opens in tail, _THOUGHT.search(opens) is not None
            if not is_thought and (not is_begun or opens in self.turns):
                continue
            if is_thought and closes in tail and not is_begun and opens in text:
                return f"the prompt has {closes[:60]!r} already, and an answer begins such a block"
            if not is_begun and closes not in self.source:
                continue
            whole = tail + text if is_begun else text
            tags = re.findall(f"{re.escape(opens)}|{re.escape(closes)}", whole)
            if tags and tags[-1] == opens:
                return f"{'the prompt' if is_begun else 'an answer'} opens {opens[:60]!r}" + (
                    " and an answer does not close it" if is_begun else " and does not close it"
                )
            if tags and tags[0] == closes:
                return f"an answer has {closes[:60]!r}, which nothing has opened"
            if is_begun and tags.count(opens) > 1:
                return f"the prompt has {opens[:60]!r} already, and an answer has it once more"
        return ""


def _tail(prompt: Sequence[Message], begin: str) -> str:
    """What a template writes after the last words of an open prompt."""
    words = prompt[-1].content.strip() if prompt else ""
    at = begin.rfind(words)
    return begin[at + len(words) :] if at >= 0 else begin[-100:]


def frame_of(prompt: str, whole: str, closing: str, source: str) -> Frame:
    """The frame of a template, from `QUESTION` as an open prompt and with `PROBE` as answer."""
    begin, found, after = whole.rpartition(PROBE)
    turns = prompt.partition(QUESTION)[0]
    if not found:
        return Frame(closing, turns=turns, source=source)
    shorter = min(len(prompt), len(begin))
    shared = next((i for i in range(shorter) if prompt[i] != begin[i]), shorter)
    end = after.find(closing)
    rest = after[end + len(closing) :] if end >= 0 else ""
    return Frame(closing, prompt[shared:], begin[shared:], after, rest, turns, source)


def lost_turn(prompt: Sequence[Message], begin: str) -> Finding | None:
    """A finding where the words of a turn are not in an open prompt.

    Thoughts of earlier answers, which templates leave out, are not missed.
    """
    for turn in prompt:
        words = _THOUGHTS_END.split(turn.content)[-1] if turn.role in _OWN else turn.content
        if not _is_in(words.strip(), begin):
            reason = f"the chat template does not write the words of a turn of {turn.role[:60]!r}"
            hint = "mlx_dpo data preview shows the prompt; put the words into the user's turn"
            return Finding("prompt-changed", "prompt", reason, hint)
    return None


def _or_refuse(seen: str | None) -> str:
    if seen is None:
        raise DataError(
            "the chat template writes an answer of several turns differently from its own "
            "prompt; give the last answer alone and the turns before it in 'prompt'"
        )
    return seen


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _is_in(words: str, text: str) -> bool:
    """Whether a text has the words; templates may trim and break lines."""
    return words in text or _squeezed(words) in _squeezed(text)


def _without(opened: str, text: str) -> str:
    """A text without what the prompt has opened already."""
    tag = opened.strip()
    if text.startswith(opened) or not tag or not text.lstrip().startswith(tag):
        return text.removeprefix(opened) if tag else text
    return text.lstrip().removeprefix(tag).lstrip()


def _has_words(text: str) -> bool:
    """Whether there is more than white space and blocks of thoughts without content."""
    return bool(_EMPTY_BLOCK.sub("", text).strip())


def _changed() -> Finding:
    reason = "the chat template does not write the words of an answer as they are"
    return Finding("answer-changed", 0, reason, "mlx_dpo data preview shows what is learned")


def _template_words(text: str) -> Finding:
    reason = f"the chat template writes {text[:60]!r} before an answer and not into the open prompt"
    hint = "where both answers have it, it counts as prompt; the model has to write it by itself"
    return Finding("template-words", 0, reason, hint)


def _other_words(response: Sequence[Message]) -> Finding:
    role = next(turn.role for turn in response if turn.role not in _OWN)
    reason = f"an answer holds a turn of {role[:60]!r}, whose words are scored as the model's"
    hint = "give the last answer alone and the turns before it in 'prompt'"
    return Finding("other-words", 0, reason, hint)
