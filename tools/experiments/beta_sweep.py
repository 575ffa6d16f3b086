"""Beta: margin, accuracy, drift and answers of a model trained at each.

python -m tools.experiments.beta_sweep
"""

import sys
from collections.abc import Sequence

from tools.experiments.commands import PAIRS, figures, settings_of, train
from tools.tiny_sft.tables import table

BETAS = ("0.01", "0.05", "0.1", "0.3", "1.0")
HEAD = (
    *("beta", "held-out margin", "margin / beta, nats", "reward accuracy", "log-prob accuracy"),
    *("chosen", "rejected", "KL a token", "answer, tokens", "reference"),
)


def measure(beta: str, settings: Sequence[str], num_prompts: int = 50) -> list[str]:
    """A line of the table."""
    model = train(f"beta-{beta}", settings, "--beta", beta)
    found = figures(*("eval", "--model", model, "--data", PAIRS, "--num-prompts", str(num_prompts)))
    every, drift = found["groups"][0], found["drift"]
    before, after = every["logprob_accuracy_before"], every["logprob_accuracy_after"]
    return [
        beta,
        f"{every['margin']:+.3f}",
        f"{every['margin'] / float(beta):+.2f}",
        f"{every['reward_accuracy']:.2f}",
        f"{before:.2f} → {after:.2f}",
        f"{every['chosen_reward']:+.3f}",
        f"{every['rejected_reward']:+.3f}",
        f"{drift['kl_per_token']:.3f}",
        f"{drift['policy_length']:.1f}",
        f"{drift['reference_length']:.1f}",
    ]


def main() -> None:
    """Print the table; `--betas 0.1,0.3` takes others."""
    words = sys.argv[1:]
    betas: Sequence[str] = BETAS
    if words[:1] == ["--betas"]:
        betas, words = words[1].split(","), words[2:]
    settings = settings_of(words)
    print(table(HEAD, [measure(beta, settings) for beta in betas]))


if __name__ == "__main__":
    main()
