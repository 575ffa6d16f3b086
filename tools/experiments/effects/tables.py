"""The tables of docs/effects.md, from the cells that are finished."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.experiments.effects.cells import Row, results
from tools.experiments.effects.intervals import (
    Array,
    Indices,
    bootstrap,
    mean_error,
    partial_spearman,
    spearman,
)
from tools.experiments.effects.judged import (
    LONGER,
    MATCHED,
    SHORTER,
    TERCILES,
    Finished,
    Judged,
    judged,
)
from tools.tiny_sft.tables import table


def all_tables(out: Path) -> str:
    """Every table that has a finished cell, with its heading."""
    done = Finished(results(out))
    parts = {
        "Accuracy": accuracy_table(done),
        "Length": length_table(done),
        "CHES": ches_table(done),
        "CHES terciles, trained together": tercile_table(done),
        "A model a tercile": third_table(done),
        "Rates": rate_table(done),
        "One token": token_table(done),
    }
    return "\n\n".join(f"{name}\n\n{text}" for name, text in parts.items() if text)


def _some(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = list(rows)
    return table(head, lines) if lines else ""


def accuracy_table(done: Finished) -> str:
    """Accuracy before and after, of all pairs and of those of like length."""
    head = ("trained on", "measured on", "pairs", "log-prob, before", "reward, after",
            "log-prob, after", "of like length: pairs", "log-prob, before", "reward, after",
            "log-prob, after")  # fmt: skip
    rows = []
    for pool, where, found in done.measured():
        groups = {"": np.arange(found.before.shape[1]), MATCHED: found.length_groups()[MATCHED]}
        line = [pool, where]
        for members in groups.values():
            line.append(str(len(members)))
            line += [share(right, found.prompts, members) for right in found.rights.values()]
        rows.append(line)
    return _some(head, rows)


def length_table(done: Finished) -> str:
    """Accuracy where the chosen answer is longer, shorter, and the mean of both."""
    head = ("trained on", "measured on", "by", "chosen longer", "chosen shorter", "mean of both")
    rows = []
    for pool, where, found in done.measured():
        groups = found.length_groups()
        for name, right in found.rights.items():
            both = [groups[LONGER], groups[SHORTER]]
            shares = [share(right, found.prompts, members) for members in both]
            rows.append([pool, where, name, *shares, balanced(right, found.prompts, both)])
    return _some(head, rows)


def share(right: Array, prompts: Sequence[int], members: Indices) -> str:
    """A share over pairs and runs, with the interval over prompts and runs."""
    if not len(members):
        return "none"
    own = right[:, members]
    low, high = bootstrap(
        lambda rows, runs: float(own[np.ix_(runs, rows)].mean()), _of(prompts, members), len(own)
    )
    return f"{own.mean():.2f} ({low:.2f}-{high:.2f})"


def balanced(right: Array, prompts: Sequence[int], parts: Sequence[Indices]) -> str:
    """The mean of two groups' shares, with its interval."""
    if not all(map(len, parts)):
        return "none"
    side = np.full(right.shape[1], -1)
    for number, members in enumerate(parts):
        side[members] = number
    members = np.concatenate(list(parts))
    own, side = right[:, members], side[members]

    def value(rows: Indices, runs: Indices) -> float:
        drawn = own[np.ix_(runs, rows)].mean(axis=0)
        means = [drawn[side[rows] == number] for number in (0, 1)]
        return float(np.mean([m.mean() for m in means])) if all(map(len, means)) else float("nan")

    low, high = bootstrap(value, _of(prompts, members), len(own))
    whole = value(np.arange(len(members)), np.arange(len(own)))
    return f"{whole:.2f} ({low:.2f}-{high:.2f})"


def _of(prompts: Sequence[int], members: Indices) -> list[int]:
    return [prompts[row] for row in members]


def changes(done: Finished) -> Iterator[tuple[str, Row, Judged]]:
    """Sets with CHES of their training pairs, and these before and after."""
    for pool, runs in done.whole():
        before = done.cells[f"before/{pool}-train"]
        yield pool, before, judged(before, runs, "train")


def ches_table(done: Finished) -> str:
    """Rank correlation of CHES before training with the change of log p(chosen)."""
    head = ("trained on", "pairs", "CHES of", "change of log p(chosen)", "a token",
            "with the length held fixed")  # fmt: skip
    rows = []
    for pool, before, found in changes(done):
        change = (found.after - found.before)[:, 0].mean(axis=0)
        length = found.lengths[0]
        for name, ches in zip(("sums", "means"), np.array(before["ches"]), strict=True):
            line = [pool, str(len(change)), name]
            for y in (change, change / length):
                line.append(_correlation(ches, y, found.prompts))
            line.append(_correlation(ches, change, found.prompts, length))
            rows.append(line)
    return _some(head, rows)


def _correlation(x: Array, y: Array, prompts: Sequence[int], z: Array | None = None) -> str:
    def value(rows: Indices, _: Indices) -> float:
        if z is None:
            return spearman(x[rows], y[rows])
        return partial_spearman(x[rows], y[rows], z[rows])

    low, high = bootstrap(value, prompts)
    return f"{value(np.arange(len(x)), np.arange(1)):+.2f} ({low:+.2f} to {high:+.2f})"


def tercile_means(ches: Array, found: Judged) -> list[tuple[float, tuple[float, float]]]:
    """Mean change of log p(chosen) in each tercile of CHES, with its interval."""
    change = (found.after - found.before)[:, 0].mean(axis=0)
    means = []
    for members in np.array_split(np.argsort(ches, kind="stable"), 3):
        own = change[members]
        spread = bootstrap(lambda rows, _, own=own: float(own[rows].mean()),  # type: ignore[misc]
                           _of(found.prompts, members))  # fmt: skip
        means.append((float(own.mean()), spread))
    return means


def tercile_table(done: Finished) -> str:
    """Mean change of log p(chosen) by tercile of CHES, all pairs trained together."""
    rows = []
    for pool, before, found in changes(done):
        for name, ches in zip(("sums", "means"), np.array(before["ches"]), strict=True):
            means = tercile_means(ches, found)
            rows.append([pool, name, *(_interval(*mean) for mean in means)])
    return _some(("trained on", "CHES of", *TERCILES), rows)


def _interval(value: float, bounds: tuple[float, float]) -> str:
    return f"{value:+.2f} ({bounds[0]:+.2f} to {bounds[1]:+.2f})"


def third_table(done: Finished) -> str:
    """Mean change of log p(chosen) where each tercile of CHES was trained on alone."""
    rows = []
    thirds = [pool.rpartition("-")[::2] for pool in done.pools]
    for name, tercile in sorted(
        (third for third in thirds if third[1] in TERCILES),
        key=lambda third: (third[0], TERCILES.index(third[1])),
    ):
        pool = f"{name}-{tercile}"
        for runs in done.runs(pool).values():
            found = judged(done.cells[f"before/{pool}-held"], runs, "held")
            for side, label in ((0, "chosen"), (1, "rejected")):
                change = (found.after - found.before)[:, side].mean(axis=0)
                spread = bootstrap(lambda rows, _, c=change: float(c[rows].mean()), found.prompts)  # type: ignore[misc]
                rows.append([name, tercile, label, _interval(float(change.mean()), spread)])
    return _some(("set", "tercile", "answer", "mean change of log p"), rows)


@dataclass(frozen=True)
class RateLine:
    """The runs at one rate, judged on held-out pairs: means over seeds, with standard errors.

    Attributes:
        method: ``lora`` or ``full``.
        rate: Learning rate.
        loss, margin, accuracy: On held-out pairs; accuracy is that of the implicit reward.
        change: Of log p(chosen) and log p(rejected), in nats.
        kl: Divergence on the model's own answers, nats a token; None where it was not measured.
    """

    method: str
    rate: float
    loss: tuple[float, float]
    margin: tuple[float, float]
    accuracy: tuple[float, float]
    change: tuple[tuple[float, float], tuple[float, float]]
    kl: float | None


def rate_lines(done: Finished, pool: str) -> list[RateLine]:
    """Rates of a set, lowest first."""
    lines = []
    for (method, rate), runs in done.runs(pool).items():
        found = judged(done.cells[f"before/{pool}-held"], runs, "held")
        change = found.after - found.before
        loss, margin, accuracy, chosen, rejected = (
            mean_error([float(own.mean()) for own in values])
            for values in (
                *(found.losses, found.margins, found.margins > 0),
                *(change[:, 0], change[:, 1]),
            )
        )
        kl = next((run["kl_per_token"] for run in runs if "kl_per_token" in run), None)
        lines.append(RateLine(method, rate, loss, margin, accuracy, (chosen, rejected), kl))
    return lines


def rate_table(done: Finished) -> str:
    """Held-out pairs by learning rate."""
    head = ("trained on", "learning rate", "seeds", "held-out loss", "less that of the default",
            "reward accuracy", "margin", "log p(chosen)", "log p(rejected)",
            "KL a token")  # fmt: skip
    rows = []
    for pool in done.pools:
        by_rate, default = done.runs(pool), done.default_rate(pool)
        if len(by_rate) < 2 or default is None:
            continue
        for line in rate_lines(done, pool):
            runs = by_rate[line.method, line.rate]
            numbers = ((line.loss, ""), (line.accuracy, ""), (line.margin, "+"))
            loss, accuracy, margin = (_spread(*number, sign) for number, sign in numbers)
            rows.append(
                [pool, f"{line.rate:.1e}", str(len(runs)), loss,
                 _against(done, pool, runs, by_rate[line.method, default]), accuracy, margin,
                 *(f"{mean:+.2f}" for mean, _ in line.change),
                 "" if line.kl is None else f"{line.kl:.3f}"]
            )  # fmt: skip
    return _some(head, rows)


def _spread(mean: float, error: float, sign: str) -> str:
    """A mean over seeds with its standard error, where there are several."""
    return f"{mean:{sign}.3f}" + (f" ± {error:.3f}" if error else "")


def _against(done: Finished, pool: str, runs: Sequence[Row], others: Sequence[Row]) -> str:
    """Held-out loss less that of other runs of the same seeds, pair by pair."""
    if runs is others:
        return ""
    seeds = [{run["settings"]["seed"]: run for run in each} for each in (runs, others)]
    common = sorted(seeds[0].keys() & seeds[1].keys())
    before = done.cells[f"before/{pool}-held"]
    one, other = (judged(before, [each[seed] for seed in common], "held") for each in seeds)
    gap = one.losses - other.losses
    spread = bootstrap(
        lambda rows, drawn: float(gap[np.ix_(drawn, rows)].mean()), one.prompts, len(common)
    )
    return f"{gap.mean():+.3f} ({spread[0]:+.3f} to {spread[1]:+.3f})"


def token_table(done: Finished) -> str:
    """Which token rises when one is preferred to another."""
    head = ("chosen", "rejected", "p(chosen): before", "least", "after", "p(rejected): before",
            "after", "rises most, other than chosen", "prompts where p(chosen) fell")  # fmt: skip
    rows = []
    for path, row in done.cells.items():
        if not path.startswith("tokens/"):
            continue
        chosen, rejected = row["settings"]["chosen"], row["settings"]["rejected"]
        first, second = (row["words"].index(word) for word in (chosen, rejected))
        before = np.array([each["before"] for each in row["rows"]])
        track = np.array([each["track"] for each in row["rows"]])  # (prompts, steps, words)
        fell = (track[:, :, first].min(axis=1) < before[:, first] - 1e-3).sum()
        rows.append(
            [chosen, rejected, f"{before[:, first].mean():.3f}",
             f"{track[:, :, first].min(axis=1).mean():.3f}", f"{track[:, -1, first].mean():.3f}",
             f"{before[:, second].mean():.3f}", f"{track[:, -1, second].mean():.3f}",
             _risers(row, chosen), f"{fell} of {len(before)}"]
        )  # fmt: skip
    return _some(head, rows)


def _risers(row: Row, chosen: str) -> str:
    """The tokens that rose most beside the chosen one, by mean change over the prompts."""
    rises: dict[str, float] = defaultdict(float)
    for each in row["rows"]:
        for token, change in each["rose"]:
            rises[token] += change / len(row["rows"])
    others = sorted(((c, t) for t, c in rises.items() if t != chosen and c > 0), reverse=True)[:3]
    return ", ".join(f"`{token.strip()}` {change:+.3f}" for change, token in others)
