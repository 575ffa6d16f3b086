"""Reference drift: is the reference the same to the byte, and what if it trains along?

    python -m tools.experiments.reference_drift

Two runs on the embedded model, alike but for the reference: a frozen copy, and the policy itself,
asked anew at each step. Both are judged by `mlx_dpo eval` against the SFT model.
"""

import hashlib
import sys
from pathlib import Path
from statistics import mean

from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.training.loss import Metrics
from tools.experiments.by_hand import Run, moving_reference, new_run
from tools.experiments.commands import MODEL
from tools.tiny_sft.tables import table

HEAD = (
    *("reference", "loss it shows, first", "last ten", "margin it shows", "accuracy it shows"),
    *("held-out loss", "margin", "reward accuracy", "KL a token", "answer, tokens"),
)
FILE = Path(MODEL) / "model.safetensors"


def train(run: Run, *, frozen: bool) -> list[Metrics]:
    """Train and return what each step showed."""
    shown: list[Metrics] = []
    trainer = run.trainer() if frozen else run.trainer(reference=moving_reference(run))
    trainer.train(after_step=lambda step, metrics: shown.append(metrics))
    return shown


def line(name: str, shown: list[Metrics], judged: dict[str, float]) -> list[str]:
    """A line of the table."""
    last = shown[-10:]
    return [
        name,
        f"{shown[0]['loss']:.4f}",
        f"{mean(m['loss'] for m in last):.4f}",
        f"{mean(m['reward_margin'] for m in last):+.3f}",
        f"{mean(m['accuracy'] for m in last):.2f}",
        f"{judged['loss']:.3f}",
        f"{judged['margin']:+.3f}",
        f"{judged['reward_accuracy']:.2f}",
        f"{judged['kl_per_token']:.3f}",
        f"{judged['policy_length']:.1f}",
    ]


def measure(*, frozen: bool, steps: int | None = None, num_prompts: int = 50) -> list[str]:
    """One run, judged."""
    run = new_run(steps)
    bytes_before = hashlib.sha256(FILE.read_bytes()).hexdigest()
    before = fingerprint(run.sft)
    shown = train(run, frozen=frozen)
    name = "frozen copy" if frozen else "the policy itself"
    if frozen:
        same = fingerprint(run.sft) == before
        print(f"frozen copy, sha256 before {before[:12]}, after {fingerprint(run.sft)[:12]}")
        print(f"policy, sha256 before {before[:12]}, after {fingerprint(run.policy)[:12]}")
        untouched = hashlib.sha256(FILE.read_bytes()).hexdigest() == bytes_before
        print(f"reference unchanged: {same}; {FILE} unchanged: {untouched}\n")
    judged = run.judge(f"reference-{'frozen' if frozen else 'moving'}", num_prompts)
    return line(name, shown, {**judged["groups"][0], **judged["drift"]})


def main() -> None:
    """Print the fingerprints and the table."""
    if sys.argv[1:]:
        raise SystemExit("this experiment runs on the embedded model and takes no words")
    print(table(HEAD, [measure(frozen=True), measure(frozen=False)]))


if __name__ == "__main__":
    main()
