"""Does DPO on the tiny SFT model carry over to pairs and questions it was not trained on?

    python -m tools.tiny_sft.crossval                      # the pairs that the demo holds out
    python -m tools.tiny_sft.crossval --data folds         # 5 folds of all the demo's pairs
    python -m tools.tiny_sft.crossval --data all-kinds     # 5 folds, knowledge trained on too
    python -m tools.tiny_sft.crossval --data development   # for choosing settings

Settings are those of `checkpoints/tiny-sft/train.toml`. They, the pairs to train on and the model's
text were chosen on `development.json`; the others only report. Run from the root of the repository.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mlx_dpo import load
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.scores import untaught_kinds
from mlx_dpo.records import Preference
from mlx_dpo.runs.config import RunConfig, resolve
from tools.tiny_sft.outcomes import (
    AnswerOutcome,
    PairOutcome,
    answer_outcomes,
    pair_outcomes,
    train_policy,
)
from tools.tiny_sft.tables import answer_table, pair_table, rules_text, unrelated_table

CONFIG = Path("checkpoints/tiny-sft/train.toml")
DEVELOPMENT = Path("data/dpo/development.json")
ALL_KINDS = Path("data/dpo/preferences.json")
NUM_FOLDS = 5
FOLD_SEED = 0

Outcomes = tuple[list[PairOutcome], list[AnswerOutcome]]


def folds(preferences: list[Preference], seed: int = FOLD_SEED) -> list[list[Preference]]:
    """Five parts, each with a fifth of every kind."""
    by_kind: dict[str, list[Preference]] = defaultdict(list)
    for row in preferences:
        by_kind[row.kind].append(row)
    parts: list[list[Preference]] = [[] for _ in range(NUM_FOLDS)]
    rng, count = random.Random(seed), 0
    for kind in sorted(by_kind):
        rows = by_kind[kind]
        rng.shuffle(rows)
        for row in rows:
            parts[count % NUM_FOLDS].append(row)
            count += 1
    return parts


def measure(config: RunConfig, train: list[Preference], new: list[Preference]) -> Outcomes:
    """Train from the SFT model on one part and measure on the other."""
    assert config.model is not None
    policy, tokenizer = load(config.model)
    sft, _ = load(config.model)
    chat = chat_format(tokenizer)
    trainer = train_policy(config, policy, sft, chat, train)
    return (
        pair_outcomes(trainer, chat, new),
        answer_outcomes(policy, sft, chat, new),
    )


def cross_validate(
    config: RunConfig, preferences: list[Preference], untaught: Collection[str] = ()
) -> Outcomes:
    """Outcomes of all pairs, each measured by a policy that was not trained on it.

    No policy is trained on kinds that are `untaught`.
    """
    parts = folds(preferences)
    pairs: list[PairOutcome] = []
    answers: list[AnswerOutcome] = []
    for number, part in enumerate(parts, 1):
        began = time.perf_counter()
        others = [row for other in parts if other is not part for row in other]
        train = [row for row in others if row.kind not in untaught]
        new_pairs, new_answers = measure(config, train, part)
        pairs += new_pairs
        answers += new_answers
        print(f"fold {number} of {NUM_FOLDS}: {time.perf_counter() - began:.0f} s", flush=True)
    return pairs, answers


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    choices = ("held-out", "folds", "all-kinds", "development")
    parser.add_argument("--data", choices=choices, default="held-out")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--model", help="another model than that of the config")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--beta", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--show", action="store_true", help="print every answer before and after")
    options = parser.parse_args()
    config = resolve(options.config, {})
    changed = {
        name: getattr(options, name)
        for name in ("model", "learning_rate", "beta", "epochs", "seed")
    }
    config = replace(config, **{name: v for name, v in changed.items() if v is not None})

    assert config.data is not None
    assert config.eval_data is not None
    train, held = (read_preferences(Path(file)) for file in (config.data, config.eval_data))
    if options.data == "folds":
        untaught = untaught_kinds([row.kind for row in train], [row.kind for row in held])
        pairs, answers = cross_validate(config, train + held, untaught)
    elif options.data == "all-kinds":
        pairs, answers = cross_validate(config, read_preferences(ALL_KINDS))
    else:
        new = held if options.data == "held-out" else read_preferences(DEVELOPMENT)
        pairs, answers = measure(config, train, new)
    print(
        f"\nlearning rate {config.learning_rate:g}, beta {config.beta:g}, epochs {config.epochs}, "
        f"batch {config.batch_size}, seed {config.seed}\n"
    )
    print(pair_table(pairs), answer_table(answers), unrelated_table(answers), sep="\n\n")
    print(rules_text())
    if options.show:
        for a in answers:
            print(f"{a.kind} | {a.question} | {a.sft.text} | {a.dpo.text}")


if __name__ == "__main__":
    main()
