"""Which token is computed where: rows, the prompts they share, and forwards of rows of like width.

Everything here is arithmetic on lengths and lists; no model and no array of MLX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import NamedTuple

from mlx_dpo.models.device import on_gpu
from mlx_dpo.records import PreferenceExample

# Price of one more forward and backward, in tokens: each writes and adds a whole gradient of the
# weights, which takes as long as computing about this many tokens. On a CPU that was measured; for
# a GPU it is an estimate from bandwidth and launches, measured on none (`mlx_dpo doctor` does).
FORWARD_PRICE = 32
GPU_FORWARD_PRICE = 128
# Widths are multiples of this, so that buffers are reused and a GPU's tiles are full. A CPU gains
# nothing by it.
WIDTH_MULTIPLE = 8 if on_gpu() else 1


class Row(NamedTuple):
    """One response of a batch, as the model reads it.

    Attributes:
        slot: 2-tuple, side (0 chosen, 1 rejected) and position of the pair in the batch.
        context: Index of the prompt whose keys and values it continues; None for a row that holds
            its prompt itself.
        inputs: Ids to read.
        targets: The id that should follow each of them.
        first_scored: Position of the first target that is a response token.
    """

    slot: tuple[int, int]
    context: int | None
    inputs: list[int]
    targets: list[int]
    first_scored: int


class Group(NamedTuple):
    """Rows (or prompts) that go through the model together.

    Attributes:
        members: Their indices.
        width: Positions of each, padding included.
    """

    members: list[int]
    width: int


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the layers for a batch of pairs.

    Attributes:
        real_tokens: Without padding.
        computed_tokens: With padding.
        unshared_tokens: Without padding, were each response to bring its own prompt.
    """

    real_tokens: int
    computed_tokens: int
    unshared_tokens: int

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.real_tokens + other.real_tokens,
            self.computed_tokens + other.computed_tokens,
            self.unshared_tokens + other.unshared_tokens,
        )


@dataclass(frozen=True)
class Layout:
    """A batch of pairs, laid out.

    Attributes:
        contexts: Distinct prompts without their last token, none empty.
        prefix: How many tokens all of them begin with that are read once for all; 0 where a
            forward of its own costs more. Chat templates begin with a system prompt.
        context_groups: Forwards of prompts.
        rows: Responses with something to score.
        row_groups: Forwards of rows, all of which continue a prompt or none.
    """

    contexts: list[tuple[int, ...]]
    prefix: int
    context_groups: list[Group]
    rows: list[Row]
    row_groups: list[Group]

    def work(self) -> Work:
        """Tokens this layout computes."""
        contexts = sum(len(context) - self.prefix for context in self.contexts)
        read = self.prefix + contexts + sum(len(row.inputs) for row in self.rows)
        groups = [*self.context_groups, *self.row_groups]
        return Work(
            real_tokens=read,
            computed_tokens=self.prefix + sum(len(group.members) * group.width for group in groups),
            unshared_tokens=sum(
                len(row.inputs) + (0 if row.context is None else len(self.contexts[row.context]))
                for row in self.rows
            ),
        )


def lay_out(
    examples: Sequence[PreferenceExample],
    *,
    max_seq_len: int,
    share_prompts: bool,
    one_length: bool = False,
    unpadded: bool = False,
    positions: int | None = None,
    forward_price: int = FORWARD_PRICE,
) -> Layout:
    """Lay out a batch.

    With shared prompts, ``prompt[:-1]`` is read once however many responses follow it, and each row
    is the prompt's last token and its response. Without, a row is prompt and response, as in
    `pad_and_collate_pref`. Prompt + response is cut to `max_seq_len` either way.

    Args:
        examples: B pairs.
        max_seq_len: Tokens kept of prompt + response.
        share_prompts: Whether prompts are read once.
        one_length: Whether rows go together only where their prompts are of one length, for
            models whose attention takes no mask of its own for each row.
        unpadded: Whether prompts go together only where they are of one length, for models whose
            states would take in what a prompt is padded with.
        positions: Length of the model's table of learned positions, past which padding must not
            reach: nothing is there to read. None where it has no such table.
        forward_price: Price of one more forward, in tokens.
    """
    index_of: dict[tuple[int, ...], int] = {}
    rows = []
    for pair, (prompt, *responses) in enumerate(examples):
        before = max(0, len(prompt) - 1)
        for side, response in enumerate(responses):
            ids = [*prompt, *response][:max_seq_len]
            if len(ids) < before + 2:  # nothing of the response is left to predict
                continue
            context = None
            first_scored = before
            if share_prompts and before:
                context = index_of.setdefault(tuple(prompt[:-1]), len(index_of))
                ids, first_scored = ids[before:], 0
            rows.append(Row((side, pair), context, ids[:-1], ids[1:], first_scored))
    contexts = list(index_of)

    def begin(number: int) -> int:
        context = rows[number].context
        return 0 if context is None else len(contexts[context])

    def kind(number: int) -> int:
        return begin(number) if one_length else rows[number].context is not None

    row_groups: list[Group] = []
    for _, same in groupby(sorted(range(len(rows)), key=kind), key=kind):
        members = list(same)
        for group in partition([len(rows[number].inputs) for number in members], forward_price):
            together = sorted(
                (members[i] for i in group.members), key=lambda i: (rows[i].context or 0, i)
            )
            row_groups.append(Group(together, group.width))
    prefix = common_prefix(contexts, forward_price)
    widths = [len(context) - prefix for context in contexts]
    context_groups = _of_one_width(widths) if unpadded else partition(widths, forward_price)
    if positions is not None:
        begins, inputs = [begin(i) for i in range(len(rows))], [len(row.inputs) for row in rows]
        row_groups = _within(positions, row_groups, begins, inputs)
        context_groups = _within(positions, context_groups, [prefix] * len(widths), widths)
    return Layout(contexts, prefix, context_groups, rows, row_groups)


def common_prefix(contexts: Sequence[tuple[int, ...]], price: int) -> int:
    """How many tokens all prompts begin with, where reading them once saves more than a forward.

    Each prompt keeps a token of its own.
    """
    if len(contexts) < 2:
        return 0
    first, last = min(contexts), max(contexts)  # between them lie all others
    same = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(first, last, strict=False)))
    count = min(same, min(map(len, contexts)) - 1)
    return count if (len(contexts) - 1) * count > price else 0


def _of_one_width(widths: Sequence[int]) -> list[Group]:
    """Forwards without any padding."""
    members: dict[int, list[int]] = {}
    for i, width in enumerate(widths):
        members.setdefault(width, []).append(i)
    return [Group(members[width], width) for width in sorted(members)]


def partition(widths: Sequence[int], price: int) -> list[Group]:
    """Split rows into forwards so that padding and the price of each forward are least together.

    The best split of rows sorted by width is into runs; which runs, a small dynamic programme
    finds exactly.

    Args:
        widths: Width of each row, all at least 1.
        price: Cost of one more forward, in tokens.

    Returns:
        The groups; every row is in one of them.
    """
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    padded = [-(-widths[i] // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for i in order]
    best, cut = [0], [0]  # least cost of the first n rows, and where their last group begins
    for end in range(1, len(order) + 1):
        cost, start = min(
            (best[start] + (end - start) * padded[end - 1] + price, start) for start in range(end)
        )
        best.append(cost)
        cut.append(start)
    groups = []
    end = len(order)
    while end:
        groups.append(Group(order[cut[end] : end], padded[end - 1]))
        end = cut[end]
    return groups[::-1]


def _within(
    positions: int, groups: Sequence[Group], begins: Sequence[int], widths: Sequence[int]
) -> list[Group]:
    """Groups that end within a model's positions.

    One that does not is split by where its members begin: each part then has the width to the last
    position, which is enough for tokens that are real.
    """
    found = []
    for group in groups:
        if max(begins[i] for i in group.members) + group.width <= positions:
            found.append(group)
            continue
        by_begin = sorted(group.members, key=lambda i: begins[i])
        for first, same in groupby(by_begin, key=lambda i: begins[i]):
            members = list(same)
            longest = max(widths[i] for i in members)
            found.append(Group(members, max(longest, min(group.width, positions - first))))
    return found
