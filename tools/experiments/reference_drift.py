"""Reference drift: is the reference the same to the byte, and what if it trains along?

    python -m tools.experiments.reference_drift

Two runs on the embedded model, alike but for the reference: a frozen copy, and the policy itself,
asked anew at each step. Both are judged by `mlx_dpo eval` against the SFT model.
"""

import hashlib
import sys
from dataclasses import dataclass
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
    return run.train() if frozen else run.train(reference=moving_reference(run))


@dataclass(frozen=True)
class Outcome:
    """One run, judged.

    Attributes:
        name: Of its reference.
        shown: Metrics of each step, as a screen would show them.
        judged: Score and drift beside the SFT model.
    """

    name: str
    shown: list[Metrics]
    judged: dict[str, float]

    def line(self) -> list[str]:
        """A line of the table."""
        last, judged = self.shown[-10:], self.judged
        return [
            self.name,
            f"{self.shown[0]['loss']:.4f}",
            f"{mean(m['loss'] for m in last):.4f}",
            f"{mean(m['reward_margin'] for m in last):+.3f}",
            f"{mean(m['accuracy'] for m in last):.2f}",
            f"{judged['loss']:.3f}",
            f"{judged['margin']:+.3f}",
            f"{judged['reward_accuracy']:.2f}",
            f"{judged['kl_per_token']:.3f}",
            f"{judged['policy_length']:.1f}",
        ]


def measure(run: Run, *, frozen: bool, num_prompts: int = 50) -> Outcome:
    """Train a run with one of the two references, and judge the result."""
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
    return Outcome(name, shown, {**judged["groups"][0], **judged["drift"]})


def main() -> None:
    """Print the fingerprints and the table."""
    if sys.argv[1:]:
        raise SystemExit("this experiment runs on the embedded model and takes no words")
    print(table(HEAD, [measure(new_run(), frozen=frozen).line() for frozen in (True, False)]))


if __name__ == "__main__":
    main()
