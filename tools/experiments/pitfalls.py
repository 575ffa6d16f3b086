"""DPO done wrongly on purpose, to see the symptom of each mistake.

    python -m tools.experiments.pitfalls            # all, some minutes
    python -m tools.experiments.pitfalls swapped    # one

The embedded run with one mistake built into it. What its own lines would show, then what
`mlx_dpo eval` measures of its model.
"""

import sys
from collections.abc import Callable, Sequence
from statistics import mean

import mlx.core as mx

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.trainer import DPOTrainer
from tools.experiments.by_hand import Altered, Run, new_run
from tools.experiments.commands import MODEL, PLACE, figures
from tools.tiny_sft.tables import table

HEAD = (
    *("mistake", "first loss", "first gradient", "loss, last ten", "margin", "chosen", "rejected"),
    *("held-out reward accuracy", "KL a token", "ended", "answer, tokens"),
)


def _right(run: Run) -> DPOTrainer:
    return run.trainer()


def _mean_of_tokens(run: Run) -> DPOTrainer:
    def divide(logprobs: mx.array, pairs: Sequence[PreferenceExample]) -> mx.array:
        sides = [[len(p.chosen_ids) for p in pairs], [len(p.rejected_ids) for p in pairs]]
        return logprobs / mx.array(sides)

    return run.trainer(path=Altered(run.path(), divide))


def _prompt_scored(run: Run) -> DPOTrainer:
    pairs = [PreferenceExample(p[:1], p[1:] + c, p[1:] + r) for p, c, r in run.pairs]
    return run.trainer(examples=pairs)


def _no_closing_token(run: Run) -> DPOTrainer:
    return run.trainer(examples=[PreferenceExample(p, c[:-1], r[:-1]) for p, c, r in run.pairs])


def _swapped(run: Run) -> DPOTrainer:
    return run.trainer(examples=[PreferenceExample(p, r, c) for p, c, r in run.pairs])


def _prompts_without_template(run: Run) -> DPOTrainer:
    """The question's words alone, without `<|user|>` and `<|assistant|>`."""
    special = set(run.chat.tokenizer.all_special_ids)
    pairs = [
        PreferenceExample([token for token in p if token not in special], c, r)
        for p, c, r in run.pairs
    ]
    return run.trainer(examples=pairs)


def _rate_too_high(run: Run) -> DPOTrainer:
    return run.trainer(max_lr=10 * run.config.learning_rate)


def _half_precision(run: Run) -> DPOTrainer:
    """Both models, so that nothing differs but the rounding of the updates."""
    run.policy.set_dtype(mx.bfloat16)
    run.sft.set_dtype(mx.bfloat16)
    return run.trainer()


MISTAKES: dict[str, Callable[[Run], DPOTrainer]] = {
    "none": _right,
    "mean": _mean_of_tokens,
    "prompt-scored": _prompt_scored,
    "no-closing-token": _no_closing_token,
    "swapped": _swapped,
    "no-template": _prompts_without_template,
    "rate-x10": _rate_too_high,
    "bfloat16": _half_precision,
}


def measure(name: str, steps: int | None = None) -> list[str]:
    """A line of the table."""
    run = new_run(steps)
    trainer = MISTAKES[name](run)
    shown: list[Metrics] = []
    trainer.train(after_step=lambda step, metrics: shown.append(metrics))
    run.policy.set_dtype(mx.float32)
    judged = run.judge(f"pitfall-{name}")
    measured = {**judged["groups"][0], **judged["drift"]}
    model = PLACE / f"pitfall-{name}" / "model"
    habits = figures("compare", MODEL, model)["habits"][-1]["b"]
    return [
        name,
        f"{shown[0]['loss']:.6f}",
        f"{shown[0]['grad_norm']:.2f}",
        f"{mean(m['loss'] for m in shown[-10:]):.3f}",
        *(
            f"{mean(m[key] for m in shown[-10:]):+.2f}"
            for key in ("reward_margin", "chosen_reward", "rejected_reward")
        ),
        f"{measured['reward_accuracy']:.2f}",
        f"{measured['kl_per_token']:.3f}",
        f"{habits['num_closed']}/{habits['num_answers']}",
        f"{measured['policy_length']:.1f}",
    ]


def main() -> None:
    """Print the table, or the lines of some mistakes."""
    names = sys.argv[1:] or list(MISTAKES)
    print(table(HEAD, [measure(name) for name in names]))


if __name__ == "__main__":
    main()
