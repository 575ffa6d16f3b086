"""The end of a run: what it writes, and what it returns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.models.export import export_folder
from mlx_dpo.models.generate import answer
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job, is_result_of
from mlx_dpo.runs.loop import ANSWER_TOKENS, Loop
from mlx_dpo.training.loss import pair_metrics
from mlx_dpo.training.trainer import DPOTrainer

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt as answered before and after training."""

    prompt: str
    kind: str
    sft: str
    dpo: str


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        job: What it worked with; the policy is trained now.
        folder: The run's folder.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: float32 (2, N), before training.
        answers: Some prompts, answered by both.
        seconds: Time spent in steps, of this process.
        totals: Sums over the steps of this process: seconds by phase, pairs, tokens.
        peak_bytes: Peak of MLX's memory.
    """

    job: Job
    folder: Path
    policy: Scores
    reference: Scores
    answers: list[BeforeAfter]
    seconds: float
    totals: Mapping[str, float]
    peak_bytes: int


def shown_answers(job: Job, stop: Stop) -> list[str]:
    """What the policy answers now to the prompts that are shown.

    Raises:
        StoppedError: If a signal came.
    """
    texts = []
    for row in job.data.shown:
        stop.check()
        texts.append(answer(job.policy, job.chat, row.prompt, max_tokens=ANSWER_TOKENS).text)
    return texts


def _scores(job: Job, trainer: DPOTrainer) -> tuple[Scores, Scores]:
    if not job.held_out.examples:
        return np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)
    return trainer.score_pairs(job.held_out.examples)


def finish(loop: Loop, sft_answers: list[str]) -> RunResult:
    """Score the held-out pairs, answer once more, and write checkpoint and results.

    Args:
        loop: The run, after its last step.
        sft_answers: What `shown_answers` returned before the first.

    Raises:
        MlxDpoError: If the reference has changed.
    """
    job, trainer, folder = loop.job, loop.trainer, loop.folder
    if trainer.ref_model is not None and fingerprint(trainer.ref_model) != job.weights:
        raise MlxDpoError("the reference changed during the run: its results can't be trusted")
    # A run that stopped between its last step and here is resumed with nothing left to train.
    policy, reference = loop.scores or _scores(job, trainer)
    dpo_answers = shown_answers(job, loop.stop)
    answers = [
        BeforeAfter(row.question, row.kind, sft, dpo)
        for row, sft, dpo in zip(job.data.shown, sft_answers, dpo_answers, strict=True)
    ]
    held_out = {
        "ids": job.held_out.ids,
        "kinds": job.held_out.kinds,
        "reference": reference.tolist(),
        "policy": policy.tolist(),
    }
    results = pair_metrics(policy, reference, beta=job.config.beta) if policy.size else {}
    record = {
        "trained_from": {"model": str(job.config.model), "fingerprint": job.weights},
        "data": {"file": str(job.config.data), "digest": job.data.digest, "split": job.split()},
        "settings": asdict(job.config),
        "steps": trainer.step,
        "held_out": results,
        "environment": environment(),
    }
    # It is there where a run was killed right after this: a folder appears whole or not at all.
    if not is_result_of(job.config, job.out) or job.config.overwrite:
        export_folder(trainer.model, job.source, job.out, record, replace=job.config.overwrite)
    folder.write_json("held_out.json", held_out)
    # Last: its presence says that the run is finished.
    folder.write_json("result.json", {"out": str(job.out), "answers": [asdict(a) for a in answers]})
    return RunResult(
        job,
        folder.path,
        policy,
        reference,
        answers,
        loop.seconds,
        loop.totals,
        mx.get_peak_memory(),
    )
