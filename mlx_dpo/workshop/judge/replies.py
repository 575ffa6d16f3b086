"""What an endpoint says: the answer in a reply, the words of a refusal, what to ask otherwise.

Servers agree on the request and on little else. Their words are quoted where they are not
understood.
"""

import json
import re
from html import unescape
from typing import Any, NamedTuple

_LONGEST_QUOTE = 300  # characters
_DEEPEST = 8  # objects in each other

# Keys that hold an error's words, or the object or list that holds them.
_WORDS = ("error", "errors", "message", "detail", "msg", "error_description", "reason", "title")
_PLACES = ("loc", "param", "code")  # keys that say what the error is about

_UNKNOWN = re.compile(
    r"unsupported|(?:not|n't) (?:be )?(?:currently )?(?:support|permit|allow|recogni[sz]|accept)"
    r"|unknown|unrecogni[sz]ed|unexpected|extra|forbidden|additional propert|deprecated|removed"
    r"|not a valid (?:param|field|argument)|invalid (?:param|field|argument)|no such"
)
_LENGTH = re.compile(r"\b(?:max_\w*tokens|num_predict|n_predict)\b")
_POSITIVE = re.compile(r"positive|(?:greater|larger) than 0|above 0|> ?0|\b0(?:\.0)? ?<")
_OF_THE_PAIR = re.compile(
    r"context.?(?:length|window|size)|maximum context|too many (?:input )?tokens"
    r"|(?:prompt|input|request) (?:is )?too long|content.?(?:filter|management|policy)"
)
_NO_CREDIT = re.compile(r"insufficient[ _](?:quota|balance|funds|credits?)")

Request = dict[str, Any]


class Reply(NamedTuple):
    """A reply that was read.

    Attributes:
        text: What the model said.
        thought: What it thought, where the endpoint keeps that apart.
        ended: Why it ended, such as ``stop``.
    """

    text: str
    thought: str
    ended: str

    @property
    def is_cut(self) -> bool:
        """Whether it may have gone on with more tokens."""
        return self.ended in ("length", "max_tokens", "max_output_tokens", "model_length")


def read_reply(content: Any) -> Reply:
    """The first choice of a chat completion.

    Args:
        content: The body, parsed.

    Raises:
        LookupError, TypeError, AttributeError: If it is not that of a chat endpoint.
    """
    choice = content["choices"][0]
    message = choice["message"] if "message" in choice else {"content": choice["text"]}
    said = joined(message.get("content"))
    if not said.strip():
        said = joined(message.get("refusal"))
    thought = joined(message.get("reasoning_content") or message.get("reasoning"))
    return Reply(said, thought, str(choice.get("finish_reason")))


def joined(content: Any) -> str:
    """The text of a message, which may be a list of parts; thoughts among them don't count."""
    if isinstance(content, dict):
        if content.get("type") in ("thinking", "reasoning", "redacted_thinking"):
            return ""
        return joined(content.get("text", content.get("value", content.get("content"))))
    if isinstance(content, list):
        return "".join(map(joined, content[:1000]))
    return content if isinstance(content, str) else ""


def parsed(data: bytes) -> Any:
    """A body's JSON; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def error_inside(content: Any) -> Any:
    """The error that a body with status 200 reports instead of a reply; None for none."""
    if not isinstance(content, dict):
        return None
    choices = content.get("choices")
    if isinstance(choices, list) and choices:
        return choices[0].get("error") if isinstance(choices[0], dict) else None
    return next((content[key] for key in ("error", "errors", "detail") if content.get(key)), None)


def words_of(data: bytes) -> str:
    """What a body says, on one line: an error's words in any shape, or a page's text."""
    content = parsed(data)
    text = data.decode(errors="replace")
    if content is not None:
        text = _words(content, 0) or text
    elif re.search(r"<(?:!doctype|html|head|body|title|p|h1)\b", text[:2000], re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", text[:20_000])
        text = unescape(re.sub(r"<[^<>]*>", " ", text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def quoted(text: str) -> str:
    """As much of an endpoint's words as fits a message."""
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} ..."


def _words(value: Any, depth: int) -> str:
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_words(each, depth + 1) for each in value[:10])))
    if isinstance(value, dict):
        found = [text for key in _WORDS if (text := _words(value.get(key), depth + 1))]
        places = [_place(value[key]) for key in _PLACES if value.get(key)]
        said = "; ".join(dict.fromkeys(found))
        new = [place for place in places if place and place not in said]
        return f"{said} ({', '.join(new)})" if said and new else said or ", ".join(new)
    if isinstance(value, str) and value[:1] in ("{", "["):  # an error passed on by a proxy
        return _words(parsed(value.encode(errors="replace")), depth + 1) or value
    return value if isinstance(value, str) else ""


def _place(value: Any) -> str:
    return ".".join(map(str, value)) if isinstance(value, list) else str(value)


def is_of_the_pair(words: str) -> bool:
    """Whether a refusal is of what was asked (too long, filtered), and not of how."""
    return _OF_THE_PAIR.search(words.lower()) is not None


def is_out_of_credit(words: str) -> bool:
    """Whether waiting will not help against a limit."""
    return _NO_CREDIT.search(words.lower()) is not None


def asked_otherwise(request: Request, words: str) -> list[Request]:
    """The parameters as an endpoint's refusal may want them, the likeliest first.

    Args:
        request: Parameters that were sent: a limit on tokens, a temperature.
        words: Of the refusal.
    """
    said = words.lower()
    if is_of_the_pair(said):
        return []
    found = []
    limit = next((name for name in request if _LENGTH.fullmatch(name)), None)
    is_unknown = _UNKNOWN.search(said) is not None
    others = [name for name in _LENGTH.findall(said) if name not in request]
    if limit and (is_unknown or limit in said):
        found += [_renamed(request, limit, other) for other in others]
    if limit and limit in said and is_unknown:
        found += [_renamed(request, limit, "max_completion_tokens"), _without(request, limit)]
    if "temperature" in said and "temperature" in request:
        if _POSITIVE.search(said):
            found.append({**request, "temperature": 0.01})
        found.append(_without(request, "temperature"))
    return found


def _without(request: Request, name: str) -> Request:
    return {key: value for key, value in request.items() if key != name}


def _renamed(request: Request, old: str, new: str) -> Request:
    return {(new if name == old else name): value for name, value in request.items()}
