"""An API key taken out of what an endpoint says, in any form that servers echo it in."""

import re
from base64 import b64encode, urlsafe_b64encode
from html import unescape

_LENGTH = 8  # characters of a key in a row that are taken for it
_SHORTEST = 4  # characters; a shorter key is none, and a verdict may hold it
_MARK = "***"
# A character as JSON, URLs (also several times over), HTML and Python escape it, or as it is.
_UNIT = re.compile(
    r"\\+(?:u00|x)([0-9a-fA-F]{2})|%(?:25)*([0-9a-fA-F]{2})"
    r"|\\+([nrtfbv])|\\+(.)|(&(?:amp;)*#?\w{1,8};)|(.)",
    re.DOTALL,
)


class Redaction:
    """Replaces a key in texts.

    Found are the key and any 8 characters of it in a row: as they are, in capitals, with white
    space between, escaped as in JSON, URLs and HTML, in hex and in base64, alone or as a part of
    something longer.

    Args:
        key: The key; nothing is replaced for one of fewer than 4 characters.
    """

    def __init__(self, key: str) -> None:
        self._length = min(_LENGTH, len(key))
        forms = [form.lower() for form in _forms(key)] if len(key) >= _SHORTEST else []
        self._pieces = {
            form[i : i + self._length]
            for form in forms
            for i in range(len(form) - self._length + 1)
        }

    def __call__(self, text: str) -> str:
        """The text with ``***`` where the key was."""
        if not self._pieces:
            return text
        units = [
            (character, match.span())
            for match in _UNIT.finditer(text)
            if (character := _decoded(match)).isprintable() and not character.isspace()
        ]
        said = "".join(character for character, _ in units)
        parts, end = list[str](), 0
        for first in range(len(said) - self._length + 1):
            if said[first : first + self._length] not in self._pieces:
                continue
            begin, last = units[first][1][0], units[first + self._length - 1][1][1]
            if begin >= end:
                parts += [text[end:begin], _MARK]
            end = last
        return "".join((*parts, text[end:]))


def _decoded(match: re.Match[str]) -> str:
    """The one character, in lower case, that a unit of a text stands for."""
    escaped, in_url, space, quoted, entity, plain = match.groups()
    if escaped or in_url:
        found = chr(int(escaped or in_url, 16))
    elif space:
        found = " "
    elif entity:
        found = unescape(re.sub("^&(?:amp;)+", "&", entity))
    else:
        found = quoted or plain
    lower = found.lower()
    return lower if len(lower) == 1 else "\ufffd"


def _forms(key: str) -> list[str]:
    data = key.encode()
    forms = [re.sub(r"\s", "", key), data.hex()]
    for before in range(3):  # bytes of whatever the key follows in a group of three
        begin, end = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            forms.append(encode(bytes(before) + data).decode()[begin:end])
    return forms
