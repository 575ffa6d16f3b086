"""Measure what docs/effects.md shows, one resumable cell at a time.

    python -m tools.experiments.effects.study                    # the embedded model, minutes
    python -m tools.experiments.effects.study --model SmolLM2-135M-Instruct --pandalm FILE ...

Each cell is a folder below --out with its result.json. The same command goes on where it was
stopped. A set that is not named is left out. At the end the tables of all finished cells are
printed; --tables prints them and measures nothing.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlx_dpo.insight import scoring
from mlx_dpo.insight.drift import measure_drift
from mlx_dpo.preferences.store import lengths
from tools.experiments import commands
from tools.experiments.effects import sets, single_tokens, tables
from tools.experiments.effects.cells import Row, cell, digest
from tools.experiments.effects.sets import Pool, Side
from tools.experiments.effects.tuning import (
    Model,
    Recipe,
    Scores,
    as_lists,
    both_ches,
    open_chat,
    open_model,
    tuned,
)

OUT = Path("runs/effects")
SEEDS = (0, 1, 2)
FACTORS = (1.0, 3.0, 1 / 3, 9.0, 1 / 9)  # of the default rate, the nearest first
LORA_RATE = 1e-4  # the default of `mlx_dpo train`
EMBEDDED_RATE, EMBEDDED_EPOCHS = 4e-4, 3  # of checkpoints/tiny-sft/train.toml
PARTS = ("embedded", "rates", "accuracy", "tokens", "terciles")
DRIFT_PROMPTS, DRIFT_TOKENS = 24, 32
NO_OTHERS = Side([], [], [])


@dataclass(frozen=True)
class Study:
    """Where results go, and what decides the size of a cell.

    Attributes:
        out: Folder of the cells.
        model: The real model; None for the embedded one alone.
        most_tokens: Of a pair, prompt and both answers.
        num_train: Pairs to train on.
        num_held: Pairs held out.
        seeds: Runs of a recipe.
    """

    out: Path
    model: str | None
    most_tokens: int
    num_train: int
    num_held: int
    seeds: Sequence[int]

    def before(self, model: str, name: str, side: Side, *, ches: bool = False) -> Row:
        """What a model thinks of pairs before it is trained."""
        settings = {"model": Path(model).name, "pairs": digest(side.examples), "ches": ches}

        def measure() -> Row:
            opened = open_model(model)
            _, chosen, rejected = lengths(side.examples).T.tolist()
            found: Row = {"logprobs": as_lists(opened.logprobs(side.examples))}
            found |= {"lengths": [chosen, rejected], "prompts": side.prompts, "kinds": side.kinds}
            if ches:
                found["ches"] = as_lists(both_ches(opened, side.examples))
            return found

        return cell(self.out / "before" / name, settings, measure)

    def tuned(
        self, recipe: Recipe, pool: Pool, *, whole: Side | None = None, drift: bool = False
    ) -> Row:
        """What a model thinks of pairs after it is trained on a pool.

        Args:
            recipe: How.
            pool: To train on and to be held out.
            whole: Other pairs to measure, and then the training pairs too; None for neither.
            drift: Whether the divergence on the model's own answers is measured.
        """
        before = self.before(recipe.model, f"{pool.name}-train", pool.train, ches=True)
        settings = recipe.settings() | {
            "train": digest(pool.train.examples),
            "held": digest(pool.held.examples),
            "others": digest(whole.examples) if whole is not None else None,
            "drift": drift,
        }

        def measure() -> Row:
            model, steps = tuned(recipe, pool.train.examples, _scores(before))
            found: Row = {"steps": steps}
            found["held"] = as_lists(model.logprobs(pool.held.examples))
            if whole is not None:
                found["train"] = as_lists(model.logprobs(pool.train.examples))
                found["others"] = as_lists(model.logprobs(whole.examples))
            if drift:
                found |= _drift(recipe.model, model, pool.held)
            return found

        name = f"{recipe.method}-{recipe.rate:.2g}"
        return cell(
            self.out / "tuned" / pool.name / name / f"seed-{recipe.seed}", settings, measure
        )


def _scores(before: Row) -> Scores:
    return np.array(before["logprobs"], np.float32)


def _drift(name: str, model: Model, held: Side) -> Row:
    """Divergence from the reference on the model's own answers."""
    reference = scoring.open_model(name)
    policy = replace(reference, model=model.net)
    prompts = list({number: e.prompt_ids for number, e in zip(held.prompts, held.examples,
                                                              strict=True)}.values())  # fmt: skip
    every = max(1, len(prompts) // DRIFT_PROMPTS)
    drift = measure_drift(
        policy, reference, prompts[::every][:DRIFT_PROMPTS], max_tokens=DRIFT_TOKENS, seed=0
    )
    return {"kl_per_token": drift.kl_per_token, "answer_length": drift.policy_length,
            "reference_length": drift.reference_length}  # fmt: skip


def embedded(study: Study) -> None:
    """Rates on the embedded model, all weights, with the drift of one seed."""
    model = commands.MODEL
    for pool in sets.embedded(open_chat(model)):
        study.before(model, f"{pool.name}-held", pool.held)
        for seed in study.seeds:
            for factor in FACTORS:
                rate = factor * EMBEDDED_RATE
                recipe = Recipe(model, "full", rate, epochs=EMBEDDED_EPOCHS, seed=seed)
                whole = NO_OTHERS if factor == 1 else None
                study.tuned(recipe, pool, whole=whole, drift=seed == 0)


def rates(study: Study, pool: Pool, whole: Side | None) -> None:
    """Rates around the default, adapters; the default is the cell of `accuracy`."""
    assert study.model is not None
    for seed in study.seeds:
        for factor in FACTORS:
            recipe = Recipe(study.model, "lora", factor * LORA_RATE, seed=seed)
            study.tuned(recipe, pool, whole=whole if factor == 1 else None)


def accuracy(study: Study, pool: Pool, whole: Side | None) -> None:
    """Held-out accuracy before and after, on pairs of the set and on others never trained on."""
    assert study.model is not None
    study.before(study.model, f"{pool.name}-held", pool.held)
    for seed in study.seeds:
        study.tuned(Recipe(study.model, "lora", LORA_RATE, seed=seed), pool, whole=whole)


def terciles(study: Study, pool: Pool) -> None:
    """Models trained on each tercile of the pairs by CHES, measured on what they trained on.

    Each sees its pairs three times: about as many steps as one epoch of all.
    """
    assert study.model is not None
    before = study.before(study.model, f"{pool.name}-train", pool.train, ches=True)
    order = np.argsort(before["ches"][1], kind="stable")
    for name, rows in zip(("low", "middle", "high"), np.array_split(order, 3), strict=True):
        part = sets.some(pool.train, sorted(rows.tolist()))
        third = Pool(f"{pool.name}-{name}", part, part)
        study.before(study.model, f"{third.name}-held", part)
        for seed in study.seeds:
            study.tuned(Recipe(study.model, "lora", LORA_RATE, epochs=3, seed=seed), third)


def main() -> None:
    """Measure what is not there yet, and print the tables."""
    words = _parser().parse_args()
    study = Study(
        words.out, words.model, words.most_tokens, words.pairs, words.held_out, words.seeds
    )
    if not words.tables:
        for part in words.parts:
            _measure(part, study, words)
    print(tables.all_tables(words.out))


def _measure(part: str, study: Study, words: argparse.Namespace) -> None:
    if part == "embedded":
        return embedded(study)
    if study.model is None:
        return None
    if part == "tokens":
        return single_tokens.measure(study.out, study.model, words.statements)
    pools = _pools(study, words)
    whole = _others(study, words)
    first = next(pools, None)
    if part == "rates" and first:
        study.before(study.model, f"{first.name}-held", first.held)
        return rates(study, first, whole)
    for pool in filter(None, (first, *pools)):
        if part == "accuracy":
            accuracy(study, pool, whole)
        elif part == "terciles":
            terciles(study, pool)
    return None


def _pools(study: Study, words: argparse.Namespace) -> Iterator[Pool]:
    """The public sets to train on, PandaLM first."""
    assert study.model is not None
    chat = open_chat(study.model)
    for name, read in (("pandalm", sets.pandalm), ("harmless", sets.harmless)):
        if (file := getattr(words, name)) is not None:
            yield sets.pool(
                name,
                read(file),
                chat,
                most_tokens=study.most_tokens,
                num_train=study.num_train,
                num_held=study.num_held,
            )


def _others(study: Study, words: argparse.Namespace) -> Side | None:
    """LLMBar, never trained on."""
    assert study.model is not None
    if not words.llmbar:
        return None
    side = sets.short(sets.llmbar(words.llmbar), open_chat(study.model), study.most_tokens)
    study.before(study.model, "llmbar", side)
    return side


def _parser() -> argparse.ArgumentParser:
    first, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=OUT, help="folder of the cells")
    add("--model", help="a real model, trained with LoRA")
    add("--pandalm", type=Path, metavar="FILE", help="testset-v1.json of WeOpenML/PandaLM")
    add("--harmless", type=Path, metavar="FILE", help="harmless-base of anthropics/hh-rlhf")
    add("--llmbar", type=Path, nargs="+", metavar="FILE", help="files of princeton-nlp/LLMBar")
    add("--statements", type=Path, metavar="FILE", help="a persona file of anthropics/evals")
    add("--pairs", type=int, default=128, help="pairs of a set to train on")
    add("--held-out", type=int, default=128, help="pairs of a set to hold out")
    add("--most-tokens", type=int, default=150, help="of a prompt and both answers")
    add("--seeds", type=int, nargs="+", default=SEEDS, help="runs of a recipe")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure, in this order")
    add("--tables", action="store_true", help="print the tables of what is finished")
    return parser


if __name__ == "__main__":
    main()
