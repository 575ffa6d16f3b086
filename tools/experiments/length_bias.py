"""Length-bias injection: lengthen chosen answers on purpose, and see who notices.

    python -m tools.experiments.length_bias

Filler that says nothing is put around a share of the chosen answers; the rejected ones and the
held-out pairs stay as they are. Printed for each share: what `mlx_dpo audit` says of the pairs, and
what `mlx_dpo eval` measures of the model trained on them.
"""

import sys
from collections.abc import Sequence
from itertools import cycle

from tools.experiments.commands import (
    Row,
    figures,
    model_of,
    settings_of,
    split,
    train,
    write,
)
from tools.tiny_sft.tables import table

SHARES = (0.0, 0.2, 0.5, 1.0)
# Phrases the embedded model knows; several, so that no one phrase is learned instead of the length.
OPENINGS = ("Well, as you may know", "To be honest", "At the end of the day", "As everyone knows")
ENDING = "if you think about it, you see"
HEAD = (
    *("chosen answers lengthened", "audit: length bias", '"longer wins" is right in'),
    *("answer, tokens", "reference", "held-out reward accuracy", "chosen longer", "chosen shorter"),
)


def lengthen(rows: Sequence[Row], share: float) -> list[Row]:
    """Pad the chosen answer of a share of the rows with filler, spread evenly over the file."""
    openings = cycle(OPENINGS)
    changed = []
    for number, row in enumerate(rows):
        if int((number + 1) * share) > int(number * share):
            padded = f"{next(openings)}, {_uncapitalised(row['chosen']).rstrip('.')}, {ENDING}."
            row = row | {"chosen": padded}
        changed.append(row)
    return changed


def _uncapitalised(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def measure(share: float, settings: Sequence[str], num_prompts: int) -> list[str]:
    """A line of the table."""
    pairs, unseen = split()
    name = f"length-bias-{round(100 * share)}"
    data = write(f"{name}.jsonl", lengthen(pairs, share))
    held_out = write("held-out.jsonl", unseen)
    audit = figures("audit", data, "--model", model_of(settings), "--eval-data", held_out)
    (bias,) = (check for check in audit["checks"] if check["name"] == "length bias")
    model = train(name, settings, "--data", data, "--eval-data", held_out)
    judged = figures(
        *("eval", "--model", model, "--data", held_out, "--num-prompts", str(num_prompts))
    )
    by_length = {
        group["name"]: group["reward_wins"] / group["num_pairs"] for group in judged["lengths"]
    }
    return [
        f"{share:.0%}",
        bias["verdict"],
        f"{bias['figures']['auc']:.2f}",
        f"{judged['drift']['policy_length']:.1f}",
        f"{judged['drift']['reference_length']:.1f}",
        f"{judged['groups'][0]['reward_accuracy']:.2f}",
        f"{by_length['chosen longer']:.2f}",
        f"{by_length['chosen shorter']:.2f}",
    ]


def main() -> None:
    """Print the table."""
    settings = settings_of(sys.argv[1:])
    print(table(HEAD, [measure(share, settings, num_prompts=50) for share in SHARES]))


if __name__ == "__main__":
    main()
