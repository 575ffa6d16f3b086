"""Implicit-reward ranking: do held-out answers of graded quality come out in order?

    python -m tools.experiments.ranking                    # trains the embedded model first
    python -m tools.experiments.ranking --trained FOLDER   # a model that a run left on these pairs

Each held-out prompt gets four answers: the chosen one (3), the rejected one (2), the chosen answer
to another prompt (1), and the chosen answer with its words shuffled (0). Every two of them are a
pair, with the better one as chosen, so that `mlx_dpo score` gives them all their implicit reward.
The training pairs were about 3 over 2 alone.
"""

import json
import random
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from tools.experiments.commands import Row, command, settings_of, split, train, write
from tools.tiny_sft.tables import table

GRADES = ("shuffled words", "another prompt's answer", "rejected", "chosen")
MEASURES: dict[str, Callable[[Row], float]] = {
    "implicit reward": lambda side: side["reward"],
    "log-prob, before": lambda side: side["reference_logprob"],
    "log-prob, after": lambda side: side["logprob"],
    "log-prob a token, before": lambda side: side["reference_logprob"] / side["num_tokens"],
    "log-prob a token, after": lambda side: side["logprob"] / side["num_tokens"],
}


def graded(rows: Sequence[Row], seed: int = 0) -> list[list[str]]:
    """Four answers for each row, the worst first, all different."""
    rng = random.Random(seed)
    ladders = []
    for place, row in enumerate(rows):
        words = row["chosen"].rstrip(".").split()
        shuffled = words
        while shuffled == words and len(set(words)) > 1:
            shuffled = rng.sample(words, len(words))
        other = rows[(place + len(rows) // 2) % len(rows)]
        ladders.append([" ".join(shuffled), other["chosen"], row["rejected"], row["chosen"]])
    return ladders


def as_pairs(rows: Sequence[Row], ladders: Sequence[Sequence[str]]) -> list[Row]:
    """Every two answers of a prompt as a pair, the better one chosen; a kind for two grades."""
    return [
        {
            "id": f"{place}-{better}-{worse}",
            "kind": f"{GRADES[better]} over {GRADES[worse]}",
            "prompt": row["user"],
            "chosen": ladder[better],
            "rejected": ladder[worse],
        }
        for place, (row, ladder) in enumerate(zip(rows, ladders, strict=True))
        for worse, better in combinations(range(len(GRADES)), 2)
        if ladder[better] != ladder[worse]
    ]


def kendall_tau(in_order: Sequence[bool]) -> float:
    """Kendall's tau: 1 where every two are in order, -1 where none are.

    With as many pairs from each prompt, that of all pairs is the mean of the prompts' own.
    """
    return 2 * sum(in_order) / len(in_order) - 1


def measure(model: str | Path, data: Path) -> list[list[str]]:
    """A line for each measure: share in order for each two grades, and tau over all."""
    scored = [
        json.loads(line) for line in command("score", "--model", model, "--data", data).splitlines()
    ]
    lines = []
    for name, value in MEASURES.items():
        in_order: dict[str, list[bool]] = {}
        for row in scored:
            better = value(row["chosen"]) > value(row["rejected"])
            in_order.setdefault(row["kind"], []).append(better)
        shares = [f"{sum(own) / len(own):.2f}" for own in in_order.values()]
        tau = kendall_tau([better for own in in_order.values() for better in own])
        lines.append([name, *shares, f"{tau:+.2f}"])
    return lines


def main() -> None:
    """Train unless a trained model is given, and print the table."""
    words = sys.argv[1:]
    _, unseen = split()
    pairs = as_pairs(unseen, graded(unseen))
    data = write("graded.jsonl", pairs)
    model = words[1] if words[:1] == ["--trained"] else train("ranking", settings_of(words))
    kinds = dict.fromkeys(pair["kind"] for pair in pairs)
    print(table(["measure", *kinds, "Kendall's tau"], measure(model, data)))


if __name__ == "__main__":
    main()
