"""Malformed rejected answers among good ones: what do they do to the format of answers?

    python -m tools.experiments.malformed_row

In one training pair, and then in every fourth, the rejected answer is replaced by something broken.
Rows that `mlx_dpo train` refuses are shown with its message; on the others the embedded model is
trained and its answers to the held-out prompts are looked at.
"""

import sys
from collections.abc import Sequence

from tools.experiments.commands import (
    Refused,
    Row,
    figures,
    settings_of,
    split,
    train,
    write,
)
from tools.tiny_sft.rules import is_right
from tools.tiny_sft.tables import table

BROKEN = {
    "role markers": "<|assistant|>\n<|assistant|>\nNo.",
    "a number": 7,
    "empty": "",
    "80 words of one": ("no " * 80).strip(),
    "noise": "{{{ ]] %% ### ;;; </div> \\x00 0xfe",
}
FIRST = 3  # the first broken row
HEAD = (
    *("broken rejected answer", "rows", "held-out reward accuracy", "of format pairs"),
    *("format answers right by rule", "ended", "answer, tokens", "same greedy answers"),
)


def broken(rows: Sequence[Row], answer: object, every: int | None) -> list[Row]:
    """The rows with a broken rejected answer in one of them, or in every n-th."""
    places = range(FIRST, len(rows), every) if every else (FIRST,)
    return [
        row | {"rejected": answer} if number in places else row for number, row in enumerate(rows)
    ]


def measure(name: str, rows: Sequence[Row], settings: Sequence[str]) -> dict[str, list[str]]:
    """Train on rows; figures of the model, and its greedy answers by prompt."""
    unseen = split()[1]
    held_out = write("held-out.jsonl", unseen)
    prompts = write("prompts.jsonl", [{"kind": r["kind"], "prompt": r["user"]} for r in unseen])
    data = write(f"{name}.jsonl", rows)
    model = train(name, settings, "--data", data, "--eval-data", held_out)
    judged = figures("eval", "--model", model, "--data", held_out, "--num-prompts", "0")
    accuracy = {group["name"]: group["reward_accuracy"] for group in judged["groups"]}
    source = judged["reference"]
    compared = figures("compare", source, model, "--prompts", prompts)
    answers = [prompt["greedy"][1] for prompt in compared["prompts"]]
    right = [
        is_right("format", row["user"], answer["text"])
        for row, answer in zip(unseen, answers, strict=True)
        if row["kind"] == "format"
    ]
    return {
        "figures": [
            f"{accuracy['all']:.2f}",
            f"{accuracy['format']:.2f}",
            f"{sum(right)}/{len(right)}",
            f"{sum(answer['closed'] for answer in answers)}/{len(answers)}",
            f"{sum(len(answer['ids']) for answer in answers) / len(answers):.1f}",
        ],
        "answers": [answer["text"] for answer in answers],
    }


def main() -> None:
    """Print the table line by line, then what was refused."""
    settings = settings_of(sys.argv[1:])
    pairs, _ = split()
    whole = measure("malformed-none", pairs, settings)
    first = ["none", "0", *whole["figures"], str(len(whole["answers"]))]
    print(table(HEAD, [first]), flush=True)
    refusals = []
    for name, answer in BROKEN.items():
        for every in (None, 4):
            rows = broken(pairs, answer, every)
            folder = f"malformed-{name.replace(' ', '-')}-{every or 'one'}"
            try:
                result = measure(folder, rows, settings)
            except Refused as error:
                refusals.append(f"{name}: {error}")
                break
            count = sum(a is not b for a, b in zip(rows, pairs, strict=True))
            same = sum(map(str.__eq__, result["answers"], whole["answers"]))
            line = (name, str(count), *result["figures"], str(same))
            print(f"| {' | '.join(line)} |", flush=True)
    print("", *refusals, sep="\n")


if __name__ == "__main__":
    main()
