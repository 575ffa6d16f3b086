"""Pairs before and after training, gathered from the cells that are finished."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.preferences.scores import TOLERANCE
from tools.experiments.effects.cells import Row
from tools.experiments.effects.intervals import Array, Indices

LONGER, MATCHED, SHORTER = "chosen longer", "matched", "chosen shorter"
TERCILES = ("low", "middle", "high")


@dataclass(frozen=True)
class Judged:
    """Pairs before training and after it, by S runs.

    Attributes:
        before: Log-probs float64 (2, N).
        after: The same after each run, (S, 2, N).
        lengths: Tokens of chosen and rejected, (2, N).
        prompts: Which pairs share a prompt.
        kinds: N names.
        beta: Of the runs.
    """

    before: Array
    after: Array
    lengths: Array
    prompts: Sequence[int]
    kinds: Sequence[str]
    beta: float = 0.1

    @property
    def margins(self) -> Array:
        """Margins (S, N), in nats."""
        change: Array = self.after - self.before
        gaps: Array = self.beta * (change[:, 0] - change[:, 1])
        return gaps

    @property
    def losses(self) -> Array:
        """DPO loss (S, N), in nats."""
        losses: Array = np.logaddexp(0, -self.margins)
        return losses

    @property
    def rights(self) -> dict[str, Array]:
        """Which pairs are right, (S, N): by log-prob before and after, and by implicit reward."""
        runs = len(self.after)
        return {
            "log-prob before": np.tile(self.before[0] > self.before[1], (runs, 1)).astype(float),
            "reward": (self.margins > 0).astype(float),
            "log-prob after": (self.after[:, 0] > self.after[:, 1]).astype(float),
        }

    def length_groups(self) -> dict[str, Indices]:
        """Pairs by length as `mlx_dpo eval` groups them: a tenth, or one token, is as long."""
        gap = self.lengths[0] - self.lengths[1]
        allowed = np.maximum(1, TOLERANCE * self.lengths.max(axis=0))
        groups = {LONGER: gap > allowed, MATCHED: abs(gap) <= allowed, SHORTER: -gap > allowed}
        return {name: np.flatnonzero(member) for name, member in groups.items()}

    def only(self, kind: str) -> "Judged":
        """The pairs of a kind."""
        rows = np.flatnonzero(np.array(self.kinds) == kind).tolist()
        return Judged(
            *(self.before[:, rows], self.after[:, :, rows], self.lengths[:, rows]),
            prompts=[self.prompts[row] for row in rows],
            kinds=[kind] * len(rows),
            beta=self.beta,
        )


def judged(before: Row, runs: Sequence[Row], side: str) -> Judged:
    """One side of some runs: ``held``, ``train`` or ``others``."""
    return Judged(
        np.array(before["logprobs"]),
        np.array([run[side] for run in runs]),
        np.array(before["lengths"], dtype=float),
        before["prompts"],
        before["kinds"],
        runs[0]["settings"]["beta"],
    )


@dataclass(frozen=True)
class Finished:
    """All finished cells of a study."""

    cells: dict[str, Row]

    def runs(self, pool: str) -> dict[tuple[str, float], list[Row]]:
        """The runs on a set by method and rate, those of all seeds together."""
        found: dict[tuple[str, float], list[Row]] = defaultdict(list)
        for path, row in self.cells.items():
            if path.startswith(f"tuned/{pool}/"):
                found[row["settings"]["method"], row["settings"]["rate"]].append(row)
        return dict(sorted(found.items()))

    def default_rate(self, pool: str) -> float | None:
        """The rate whose runs measured the training pairs too."""
        return next(
            (rate for (_, rate), runs in self.runs(pool).items() if "train" in runs[0]), None
        )

    @property
    def pools(self) -> list[str]:
        """Sets that were trained on."""
        return list(dict.fromkeys(p.split("/")[1] for p in self.cells if p.startswith("tuned/")))

    def whole(self) -> Iterator[tuple[str, list[Row]]]:
        """The runs that measured the training pairs and others, by set."""
        for pool in self.pools:
            for runs in self.runs(pool).values():
                if found := [run for run in runs if "others" in run]:
                    yield pool, found

    def public(self) -> Iterator[tuple[str, list[Row]]]:
        """Of these, the runs that measured pairs of another set, never trained on."""
        return ((pool, runs) for pool, runs in self.whole() if any(runs[0]["others"]))

    def measured(self) -> Iterator[tuple[str, str, Judged]]:
        """What was trained on, what was measured, and how it came out."""
        public = dict(self.public())
        for pool, runs in self.whole():
            yield pool, "held out", judged(self.cells[f"before/{pool}-held"], runs, "held")
            if pool in public:
                others = judged(self.cells["before/llmbar"], runs, "others")
                for kind in sorted(set(others.kinds), reverse=True):
                    yield pool, f"LLMBar, {kind}", others.only(kind)
