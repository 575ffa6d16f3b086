"""The finished model of a run, or its adapter, with the record of how it was made."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.adapters import write_mlx, write_peft
from mlx_dpo.convert.sources import RECORD
from mlx_dpo.files import make_folder, new_folder
from mlx_dpo.models.adapters import parts_of
from mlx_dpo.models.export import export_folder, write_companions
from mlx_dpo.models.hub import is_hub_id
from mlx_dpo.runs.best import Kept
from mlx_dpo.runs.config import LAST
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.scores import is_taught
from mlx_dpo.training.loss import pair_metrics

Scores = npt.NDArray[np.float32]

_CARD = """\
---
base_model: {base}
library_name: {library}
tags: [dpo, lora]
---
# {name}

A LoRA adapter for `{base}`, trained with DPO (Rafailov et al. 2023) by mlx-dpo.

| | |
|---|---|
| rank, scale, modules | {rank}, {scale:g}, {modules} |
| beta, learning rate | {beta:g}, {rate:g} |
| steps, pairs trained on | {steps}, {pairs} |
| held-out pairs | {held_out} |

The adapter means something only on the weights it was trained on. To talk to it:

    mlx_dpo generate --model {base} --adapter {name} --prompt "Hello"
{other}
"""
_OTHER = {
    "mlx": "    mlx_lm.chat --model {base} --adapter-path {name}",
    "peft": '    PeftModel.from_pretrained(model, "{name}")',
}


def write_finished(job: Job, kept: Kept, policy: Scores, reference: Scores) -> None:
    """Write the policy, or its adapter, to the job's output folder; whole or not at all.

    Args:
        job: Its policy is trained.
        kept: Which step its weights are of.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: float32 (2, N), before it.

    Raises:
        DiskError: If it can't be written, or exists and may not.
    """
    config = job.config
    judged = is_taught(job.held_out.kinds, job.data.untaught)
    results = {}
    if policy.size:
        results = pair_metrics(policy[:, judged], reference[:, judged], beta=config.beta)
    origin = {"model": str(config.model), "fingerprint": job.weights_digest}
    record: dict[str, Any] = {
        "trained_from": origin,
        "data": {"file": str(config.data), "digest": job.data.digest, "split": job.split()},
        "settings": asdict(config),
        "steps": kept.step,
        "kept": asdict(kept),
        "held_out": results,
        "environment": environment(),
    }
    if config.method != LORA:
        export_folder(job.policy, job.files, job.out, record, replace=config.overwrite)
        return
    assert job.stored_digest is not None
    origin["sha256"] = job.stored_digest
    if job.adapter_digest is not None:
        origin["adapter"] = job.adapter_digest
    _write_adapter(job, record)


def _write_adapter(job: Job, record: dict[str, Any]) -> None:
    """The adapter's files, its record and card, and the tokenizer and chat template of the base."""
    config, adapter = job.config, parts_of(job.policy)
    with new_folder(job.out, replace=config.overwrite) as folder:
        write_companions(job.files.companions, folder)
        if config.adapter_format != "peft":
            write_mlx(folder, adapter, job.policy)
        if config.adapter_format != "mlx":
            below = folder / "peft" if config.adapter_format == "both" else folder
            make_folder(below)
            write_peft(below, adapter, job.policy, _published(job))
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(job, record), encoding="utf-8")


def _published(job: Job) -> str:
    """The base's name, for files that others may read: its hub id, or its folder's name."""
    name = str(job.config.model)
    return name if is_hub_id(name) and not Path(name).exists() else job.name


def adapter_bytes(folder: Path) -> int:
    """Size of the weights of a finished adapter, in the larger of its layouts."""
    layouts = (folder, folder / "peft")
    return max(sum(f.stat().st_size for f in each.glob("adapter*.safetensors")) for each in layouts)


def _card(job: Job, record: dict[str, Any]) -> str:
    config, results = job.config, record["held_out"]
    adapter = parts_of(job.policy)
    ranks = sorted({part.rank for part in adapter.values()})
    held_out = "none"
    if results:
        held_out = (
            f"{len(job.held_out.ids)}: loss {results['loss']:.4f} (log 2 = 0.6931), accuracy "
            f"{results['accuracy']:.2f}, margin {results['reward_margin']:+.3f}"
        )
        if record["kept"]["by"] != LAST:
            held_out += "; the step was selected by these pairs"
    library = "peft" if config.adapter_format == "peft" else "mlx"
    return _CARD.format(
        library=library,
        other=_OTHER[library].format(base=_published(job), name=job.out.name),
        base=_published(job),
        name=job.out.name,
        rank=", ".join(map(str, ranks)),
        scale=next(iter(adapter.values())).scale,
        modules=config.lora_modules or f"those of {Path(str(config.adapter)).name}",
        beta=config.beta,
        rate=config.learning_rate,
        steps=record["steps"],
        pairs=len(job.train.ids),
        held_out=held_out,
    )
