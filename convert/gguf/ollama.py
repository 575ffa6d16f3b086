"""What Ollama needs beside a GGUF file: its Modelfile, with the chat template in Ollama's language.

Ollama reads no Jinja. Its template is put together from what the model's own writes around the
turns of one conversation, and is given only if it then writes others as the model's own does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.worker import render
from mlx_dpo.records import Message

# Words that no template has.
_SYSTEM, _USER = Message("system", "zqsystem"), Message("user", "zqfirst")
_TURNS = (_SYSTEM, _USER, Message("assistant", "zqanswer"), Message("user", "zqsecond"))
_TRIED = (
    (Message("user", "Hello there."),),
    (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Who are you?")),
    (*_TURNS[1:], Message("assistant", "Two words."), Message("user", "And a third:\n1, 2")),
    (Message("system", "Be brief."), Message("user", "What is two and two?")),
    (*_TURNS, Message("assistant", "Two words."), Message("user", "And a third:\n1, 2")),
)
# Kinds that Ollama runs by MLX, from a folder of safetensors, of those that GGUF is not written of.
IMPORTED = (
    *("gemma4", "gemma4_text", "laguna", "qwen3_5", "qwen3_5_text", "qwen3_5_moe"),
    *("qwen3_moe", "qwen3_next"),
)

_UNSAYABLE = ("{{", "}}", '"""')


@dataclass(frozen=True)
class Turns:
    """Texts around the turns of a conversation.

    Attributes:
        unasked: Before the first turn where that is not the system's.
        around: Before and after a turn, by its role.
    """

    unasked: str
    around: dict[str, tuple[str, str]]

    def written(self, turns: Sequence[Message]) -> str:
        """A conversation in these texts."""
        text = "" if turns[0].role == "system" else self.unasked
        for turn in turns:
            before, after = self.around[turn.role]
            text += before + turn.content + after
        return text

    @property
    def template(self) -> str:
        """The same in the template language of Go."""
        unasked = f"{{{{ if not .System }}}}{self.unasked}{{{{ end }}}}" if self.unasked else ""
        body = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in self.around.items()
        )
        return f"{unasked}{{{{ range .Messages }}}}{{{{ {body}{{{{ end }}}}{{{{ end }}}}"

    @property
    def is_sayable(self) -> bool:
        """Whether no text would be read as part of the template language."""
        texts = [self.unasked, *(text for pair in self.around.values() for text in pair)]
        return not any(mark in text for mark in _UNSAYABLE for text in texts)


def turns_of(chat: ChatFormat, *, adds_bos: bool) -> Turns | None:
    """What a model's chat template writes around turns; None where no such texts say it.

    Args:
        chat: The model's conversation format.
        adds_bos: Whether what reads the file puts a BOS in front by itself.
    """
    if not chat.has_template:
        return None
    begin = chat.tokenizer.bos_token if adds_bos else ""
    for num_system in (1, 0):  # some templates refuse a system's turn
        chosen = [_TURNS[1 - num_system :], [_USER], *_TRIED[: 3 + 2 * num_system]]
        texts = render(chat.tokenizer, chosen, add_generation_prompt=True, date=chat.date)
        if all(isinstance(text, str) for text in texts):
            written = [str(text).removeprefix(begin) for text in texts]
            found = _turns(written[0], written[1], has_system=bool(num_system))
            tried = zip(chosen[2:], written[2:], strict=True)
            if found and all(found.written(turns) == text for turns, text in tried):
                return found if found.is_sayable else None
    return None


def _turns(whole: str, short: str, *, has_system: bool) -> Turns | None:
    """From `_TURNS`, with the system's or without, and its first user turn alone."""
    named = _TURNS if has_system else _TURNS[1:]
    parts, first = _cut(whole, [turn.content for turn in named]), _cut(short, [_USER.content])
    if parts is None or first is None:
        return None
    asking, after_user, after_answer, last = parts[-4:]
    if not after_user.startswith(last):
        return None
    before = _common_end(asking, after_answer, first[0])
    around = {"system": (parts[0], asking.removesuffix(before))} if has_system else {}
    around["user"] = (before, last)
    around["assistant"] = (after_user.removeprefix(last), after_answer.removesuffix(before))
    return Turns(first[0].removesuffix(before), around)


def modelfile(
    chat: ChatFormat, weights: str, *, adds_bos: bool, longest: int | None = None
) -> tuple[str, bool]:
    """A Modelfile for ``ollama create``.

    Args:
        chat: The model's conversation format.
        weights: Where they are, from the Modelfile.
        adds_bos: As for `turns_of`.
        longest: Tokens of a context; None leaves that to Ollama.

    Returns:
        Its text, and whether it has the chat template.
    """
    turns = turns_of(chat, adds_bos=adds_bos)
    lines = [f"FROM {weights}"]
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.template}"""')
    ends = chat.tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids - {chat.closing_id}))
    for text in dict.fromkeys((chat.closing_text, *ends)):
        if text.strip() and not {'"', "\n"} & set(text):
            lines.append(f'PARAMETER stop "{text}"')
    if longest is not None:
        lines.append(f"PARAMETER num_ctx {longest}")
    return "\n".join(lines) + "\n", turns is not None


def _cut(text: str, contents: Sequence[str]) -> list[str] | None:
    """What is before, between and after some contents, each of which is in a text once."""
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _common_end(*texts: str) -> str:
    size = 0
    while len({text[-size - 1 :] for text in texts}) == 1 and size < min(map(len, texts)):
        size += 1
    return texts[0][len(texts[0]) - size :]
