"""The finished model of a run, or its adapter, with the record of how it was made."""

import shlex
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.adapters import write_mlx, write_peft
from mlx_dpo.convert.sources import RECORD, base_of, locate, read_record
from mlx_dpo.errors import DiskError, TakenError, UsageError
from mlx_dpo.files import make_folder
from mlx_dpo.manifest import write_digests
from mlx_dpo.models.adapters import describe, parts_of
from mlx_dpo.models.card import UNTAUGHT, model_card, origin_of, published
from mlx_dpo.models.config import is_quantised
from mlx_dpo.models.export import (
    ModelFiles,
    export_folder,
    new_model_folder,
    read_files,
    write_card,
    write_companions,
    write_json,
)
from mlx_dpo.models.parameters import stored_digest
from mlx_dpo.paths import check_target
from mlx_dpo.preferences.scores import is_taught, score_groups
from mlx_dpo.runs.best import Kept
from mlx_dpo.runs.folder import default_outs, environment, is_free
from mlx_dpo.runs.job import Job
from mlx_dpo.training.loss import pair_metrics

Scores = npt.NDArray[np.float32]


def write_finished(job: Job, kept: Kept, policy: Scores, reference: Scores, run: Path) -> Path:
    """Write the policy, or its adapter, to the job's output folder; whole or not at all.

    Args:
        job: Its policy is trained.
        kept: Which step its weights are of.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: float32 (2, N), before it.
        run: Folder of the run, which has the checkpoint.

    Returns:
        The folder: where --out names none, the next free one if another run took the job's.

    Raises:
        DiskError: If it can't be written, or exists and may not; the message ends with the command
            that writes it.
    """
    config, record = job.config, _record(job, kept, policy, reference, run.resolve().name)
    layout, whole = config.adapter_format or "mlx", config.overwrite
    for out in chain([job.out], default_outs(config)):
        if not (config.out or is_free(config, out)):
            continue
        try:
            _write(job.policy, job.files, job.source, out, record, layout, replace=whole)
            return out
        except DiskError as error:
            is_taken = isinstance(error, TakenError)
            if is_taken and not config.out:
                continue
            command = ["mlx_dpo", "train", "--resume", "--run-dir", str(run)]
            command += ["--out", "ANOTHER-NAME"] if is_taken else []
            raise type(error)(
                f"{error}; what was trained is saved, and the model is written with: "
                f"{shlex.join(command)}"
            ) from None
    raise AssertionError("names don't end")


def _record(job: Job, kept: Kept, policy: Scores, reference: Scores, run: str) -> dict[str, Any]:
    """The ``dpo.json`` of a finished model, with the name of the run's folder."""
    config = job.config
    judged = is_taught(job.held_out.kinds, job.data.untaught)
    results = {}
    if policy.size:
        results = pair_metrics(policy[:, judged], reference[:, judged], beta=config.beta)
    model = str(config.model)
    origin = {"model": model, "name": published(model), "fingerprint": job.weights_digest}
    adapter = describe(job.policy)
    record: dict[str, Any] = {
        "trained_from": origin,
        "data": {
            "file": job.data.files[0],
            "name": published(config.data),
            "digest": job.data.digest,
            "split": job.split(),
        },
        "settings": asdict(config),
        "run": run,
        "steps": kept.step,
        "kept": asdict(kept),
        "held_out": results,
        "groups": _groups(job, policy, reference),
        **({} if adapter is None else {"adapter": asdict(adapter)}),
        "environment": environment(),
    }
    if adapter is not None:
        assert job.stored_digest is not None
        origin["sha256"] = job.stored_digest
        if job.adapter_digest is not None:
            origin["adapter"] = job.adapter_digest
    return record


def save(model: nn.Module, source: str | Path, out: str | Path, *, overwrite: bool = False) -> None:
    """Save a trained model, or its adapter, as a folder that mlx-lm and `load` read.

    Args:
        model: As `load` gave it, trained; with adapters only they are written.
        source: What `load` was given: the folder or hub id. Its tokenizer, chat template and config
            go along.
        out: The new folder; it appears complete or not at all.
        overwrite: Whether `out` may be there, if this project wrote it.

    Raises:
        UsageError: If the source is not there, `out` is or overlaps it, or the model is quantised
            and has no adapters.
        DiskError: If `out` can't be written.
    """
    found, out = locate(source), Path(out)
    sources = [folder for folder in (found.folder, found.adapter) if folder is not None]
    check_target(
        out,
        sources,
        overwrite=overwrite,
        is_ours=lambda folder: bool(read_record(folder)),
        made_by="run and no `save`",
        allowed_by="pass overwrite=True",
    )
    files, adapter = read_files(found.folder), describe(model)
    base = base_of(found.adapter) if found.adapter else str(source)
    origin = {"model": base, "name": published(base)}
    record: dict[str, Any] = {"trained_from": origin, "environment": environment()}
    if adapter is not None:
        origin["sha256"] = stored_digest(found.folder)
        record["adapter"] = asdict(adapter)
    elif is_quantised(files.config):
        raise UsageError(f"{source}: is quantised, and the model has no adapters: nothing trained")
    _write(model, files, found.folder, out, record, "mlx", replace=overwrite)


def _write(
    model: nn.Module,
    files: ModelFiles,
    source: Path,
    out: Path,
    record: dict[str, Any],
    layout: str,
    *,
    replace: bool,
) -> None:
    """Write a model or its adapter with its record and card, whole or not at all."""
    library = "peft" if layout == "peft" else "mlx"
    card = model_card(record, out.name, origin_of(source), library=library)
    adapter = parts_of(model)
    if not adapter:
        export_folder(model, files, out, record, card=card, replace=replace)
        return
    with new_model_folder(out, replace=replace) as folder:
        write_companions(files.companions, folder)
        if layout != "peft":
            write_mlx(folder, adapter, model)
        if layout != "mlx":
            below = folder / "peft" if layout == "both" else folder
            make_folder(below)
            write_peft(below, adapter, model, record["trained_from"]["name"])
            if layout == "both":
                write_digests(below)
        write_json(folder / RECORD, record)
        write_card(folder, card)


def _groups(job: Job, policy: Scores, reference: Scores) -> list[dict[str, Any]]:
    """Scores of the held-out pairs: all, each kind, and those of kinds that were not trained on."""
    kinds = np.array(job.held_out.kinds, dtype=str)
    judged = is_taught(job.held_out.kinds, job.data.untaught)
    beta = job.config.beta
    groups = []
    if judged.any():
        mine = list(kinds[judged])
        groups += score_groups(policy[:, judged], reference[:, judged], mine, beta=beta)
    if not judged.all():
        rest = ~judged
        others = score_groups(policy[:, rest], reference[:, rest], [""] * rest.sum(), beta=beta)
        groups.append(replace(others[0], name=UNTAUGHT))
    return [asdict(group) for group in groups]


def adapter_bytes(folder: Path) -> int:
    """Size of the weights of a finished adapter, in the larger of its layouts."""
    layouts = (folder, folder / "peft")
    return max(sum(f.stat().st_size for f in each.glob("adapter*.safetensors")) for each in layouts)
