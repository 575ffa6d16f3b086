"""What only shows across rows: ids and pairs that come twice, and rows that contradict others.

Rows are remembered by digests of 16 bytes, so that a hundred thousand of them stay small.
"""

import json
from hashlib import blake2b

from mlx_dpo.preferences.strict_json import Finding
from mlx_dpo.records import Message, Preference


def text_digest(*texts: tuple[Message, ...]) -> bytes:
    """16 bytes that stand for some lists of messages."""
    return blake2b(json.dumps(texts).encode(), digest_size=16).digest()


class Repeats:
    """Remembers rows, and tells of those that were there before."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pairs: dict[bytes, int] = {}

    def look(self, preference: Preference, number: int) -> tuple[list[Finding], int | None]:
        """Compare a row with those before it, and remember it.

        Args:
            preference: The row.
            number: Its number in the file.

        Returns:
            What is wrong with it, and the number of an earlier row that prefers the other way.
        """
        found = []
        same_id = self._ids.setdefault(preference.id, number)
        if same_id != number:
            reason = f"id {preference.id!r:.60} is that of row {same_id} too"
            found.append(Finding("duplicate-id", "id", reason, "give each row an id, or none"))
        prompt, chosen, rejected = preference.prompt, preference.chosen, preference.rejected
        opposite = None
        if chosen != rejected:
            opposite = self._pairs.get(text_digest(prompt, rejected, chosen))
        if opposite is not None:
            reason = f"row {opposite} prefers the other way round"
            found.append(Finding("contradiction", "chosen", reason, "decide, and remove one"))
        same_pair = self._pairs.setdefault(text_digest(prompt, chosen, rejected), number)
        if same_pair != number:
            reason = f"the same pair as row {same_pair}; it counts twice"
            found.append(Finding("duplicate-pair", 0, reason, "remove one unless that is meant"))
        return found, opposite
