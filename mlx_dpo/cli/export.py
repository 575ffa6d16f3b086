"""`mlx_dpo export`."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.screen import say
from mlx_dpo.errors import MlxDpoError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.convert.sources import Source
    from mlx_dpo.insight.proof import Proof, Trial

_BITS = ("2", "3", "4", "6", "8")


@click.command(
    short_help="Fuse an adapter into its model, or pack a model, and measure what it keeps."
)
@click.argument("model", type=options.Name())
@click.argument("out", type=options.Name(path_type=Path))
@click.option("--fuse", is_flag=True, help="Sum an adapter into the model it was trained on.")
@options.path(
    "--base",
    "The model an adapter was trained on. Default: the one its dpo.json names.",
    metavar="FOLDER",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of the new weights. Default: the model's own if it has 16 bits, else bfloat16.",
)
@click.option(
    "--quantize",
    metavar="BITS",
    type=click.Choice(_BITS),
    help=f"Pack the new weights in so many bits: {', '.join(_BITS)}.",
)
@options.path("--data", "The file with the run's held-out pairs, if it has moved.")
@click.option(
    "--force",
    is_flag=True,
    help="Write OUT even if too little is kept, or if that is unknown.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if an earlier export made it.")
@options.keeps_awake
def export(
    model: str,
    out: Path,
    fuse: bool,
    base: str | None,
    dtype: str | None,
    quantize: str | None,
    data: str | None,
    force: bool,
    overwrite: bool,
) -> None:
    """Write a trained model as one folder of plain weights, and measure what it keeps.

    MODEL is the folder of an adapter, with --fuse, or of a fully trained model, with --quantize.
    OUT is loaded by mlx-lm and by whatever reads such folders. Rounding may undo what preference
    tuning did: the margin on the pairs that the run held out is measured before and after, and
    where less than 0.9 of it is kept nothing is written (exit code 1) unless --force is given.

    \b
    Examples:
      mlx_dpo export checkpoints/tiny-sft-dpo models/fused --fuse
      mlx_dpo export checkpoints/tiny-sft-dpo models/packed --fuse --quantize 8
    """
    from mlx_dpo.convert.sources import read_record
    from mlx_dpo.files import check_writable, new_folder, remove_abandoned
    from mlx_dpo.insight.proof import prove
    from mlx_dpo.models.export import left_behind, write_card, write_json
    from mlx_dpo.runs.card import licence_of, model_card, published

    bits = int(quantize) if quantize else None
    source = _located(model, fuse=fuse, base=base, packs=bits is not None)
    _check_packing(model, source, bits)
    _check_out(out, source, overwrite)
    check_writable(out)
    remove_abandoned(out.parent, out.name)
    dtype = dtype or _own_dtype(source)
    trial = _trial(source, data, dtype, model, packs=bits is not None, force=force)
    before = _before(trial) if trial else None
    with new_folder(out, replace=overwrite) as folder:
        packing = _write(folder, source, dtype, bits)
        proof = None
        if trial and before:
            proof = prove(_after(trial, folder), *before, beta=trial.beta)
            _check(proof, out, dtype, bits, force)
        exported = {
            "model": model,
            "base": str(source.folder) if source.adapter else None,
            "dtype": dtype,
            "quantization": packing,
            "proof": proof.as_record() if proof else None,
        }
        record = read_record(source.origin) | {"export": exported}
        if base is not None:  # where it is now
            record["trained_from"] = record.get("trained_from", {}) | {
                "model": base,
                "name": published(base),
            }
        write_json(folder / "dpo.json", record)
        write_card(folder, model_card(record, out.name, licence_of(source.folder)))
    say(f"wrote   {out}  ({_what(dtype, bits)})")
    if names := left_behind(source.folder):
        say(f"left    {', '.join(names)}, in {source.folder}: not copied")


def _located(name: str, *, fuse: bool, base: str | None, packs: bool) -> "Source":
    """The model to export.

    Raises:
        UsageError: If it is not there, or the options are not for what it is.
    """
    from mlx_dpo.convert.sources import RECORD, find, is_adapter, locate

    if is_adapter(find(name)):
        if not fuse:
            raise UsageError(
                f"{name}: is an adapter: --fuse sums it into its model, and mlx_dpo adapter "
                "convert writes it for PEFT or mlx-lm"
            )
        if base is not None:
            return locate(base, name)
        try:
            return locate(name)
        except UsageError as error:
            reason = str(error) if (find(name) / RECORD).is_file() else "no dpo.json in it says"
            raise UsageError(
                f"{name}: the model it was trained on: {reason}; pass that as --base"
            ) from None
    for given, option in ((fuse, "--fuse"), (base is not None, "--base")):
        if given:
            raise UsageError(
                f"{name}: is a full model, no adapter: {option} means nothing for it; leave it out"
            )
    if not packs:
        raise UsageError(
            f"{name}: is a full model as it stands: mlx_dpo convert copies it, in another dtype or "
            "for PyTorch; --quantize BITS packs it"
        )
    return locate(name)


def _check_packing(name: str, source: "Source", bits: int | None) -> None:
    """Refuse to pack what nobody would load, or what is packed already.

    Raises:
        UsageError: If that is asked for.
    """
    from mlx_dpo.convert.course.checkpoint import is_course_folder
    from mlx_dpo.models.hub import is_quantised, read_config

    if bits is None:
        return
    if is_course_folder(source.folder):
        raise UsageError(f"{name}: is a model of the course, which nothing loads packed; leave "
                         "--quantize out")  # fmt: skip
    if source.adapter is None and is_quantised(read_config(source.folder)):
        raise UsageError(f"{name}: is quantised already; --quantize takes the model before that")


def _check_out(out: Path, source: "Source", overwrite: bool) -> None:
    """Refuse a folder that is in use, or holds what no export made.

    Raises:
        UsageError: If it does.
    """
    from mlx_dpo.convert.sources import read_record
    from mlx_dpo.runs.folder import is_inside

    for folder in filter(None, {source.folder, source.adapter, source.origin}):
        here, there = folder.resolve(), out.resolve()
        if is_inside(here, there) or is_inside(there, here):
            raise UsageError(f"{out}: overlaps {folder}, which is only read; choose another name")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out}: exists; pass --overwrite to replace it, or another name")
    if out.is_symlink() or "export" not in read_record(out):
        raise UsageError(f"{out}: exists and no export made it; choose another name")


def _own_dtype(source: "Source") -> str:
    from mlx_dpo.models.hub import own_dtype

    own = own_dtype(source.folder)
    return "bfloat16" if own == "float32" else own


def _trial(
    source: "Source", data: str | None, dtype: str, name: str, *, packs: bool, force: bool
) -> "Trial | None":
    """What to measure by; None, after a line that says why, where nothing can be measured.

    Raises:
        UsageError: If nothing can be measured, and the weights are to be packed without --force.
    """
    from mlx_dpo.insight.proof import NotMeasurableError, plan_trial

    try:
        footer.doing("reading the held-out pairs")
        if not packs:
            _check_memory(source, dtype)
        return plan_trial(source, data, exported=dtype)
    except NotMeasurableError as error:
        if packs and not force:
            hint = "--data with the run's pairs, or " if error.moved else ""
            raise UsageError(
                f"{name}: what --quantize would keep of it can't be measured: {error}; pass "
                f"{hint}--force to write it unmeasured"
            ) from None
        say(f"kept    not measured: {error}")
        return None


def _check_memory(source: "Source", dtype: str) -> None:
    """Whether dense weights can be loaded here to be measured; writing them takes little.

    Raises:
        NotMeasurableError: If they take more memory than this machine has for a GPU.
    """
    from mlx_dpo.insight.proof import NotMeasurableError
    from mlx_dpo.memory.solve import recommended_here
    from mlx_dpo.models.hub import read_config, stored_shapes
    from mlx_dpo.models.parameters import tensor_shapes
    from mlx_dpo.runs.plan import gigabytes

    recommended = recommended_here()
    shapes = stored_shapes(read_config(source.folder), tensor_shapes(source.folder))
    size = sum(map(math.prod, shapes)) * (4 if dtype == "float32" else 2)
    if recommended is not None and size > recommended:
        raise NotMeasurableError(
            f"its weights take {gigabytes(size)}, and this machine has {gigabytes(recommended)} "
            "for them"
        )


def _before(trial: "Trial") -> "tuple[Any, Any]":
    """Log-probs of the trained model and of its reference; the margin is shown."""
    from mlx_dpo.insight.proof import margin_of, score

    footer.doing("loading the models")
    with progress() as advance:
        reference = score(trial, trial.reference, "reference", advance)
        trained = score(trial, trial.trained, "trained", advance)
    margin = margin_of(trained, reference, beta=trial.beta)
    say(f"margin  {margin}")
    if trial.recorded is not None and abs(trial.recorded - margin.mean) > 0.02 + 0.1 * abs(
        trial.recorded
    ):
        say(
            f"warning: the run itself recorded a margin of {trial.recorded:+.4f}: these may not be "
            "the pairs that it held out",
            err=True,
        )
    return trained, reference


def _write(folder: Path, source: "Source", dtype: str, bits: int | None) -> dict[str, Any] | None:
    """The new folder but for its dpo.json; how it is packed."""
    import mlx.core as mx

    from mlx_dpo.convert.sources import load_stored
    from mlx_dpo.models.export import write_fused

    footer.doing("loading the weights")
    with progress() as advance:
        model, target = load_stored(source), getattr(mx, dtype)
        return write_fused(folder, model, source.folder, target, bits=bits, progress=advance)


def _after(trial: "Trial", folder: Path) -> Any:
    """Log-probs of what was written, loaded from its files."""
    from mlx_dpo.convert.sources import Source
    from mlx_dpo.insight.proof import score

    footer.doing("loading what was written")
    with progress() as advance:
        return score(trial, Source(folder, None, folder), "exported", advance)


def _check(proof: "Proof", out: Path, dtype: str, bits: int | None, force: bool) -> None:
    """Say what is kept.

    Raises:
        MlxDpoError: If it is too little, and was not asked for by --force.
    """
    from mlx_dpo.insight.proof import ENOUGH

    kept, moved = proof.lines()
    say(f"kept    {kept}")
    say(f"moved   {moved}")
    if proof.is_drowned:
        say("warning: rounding moved log-probs further than training did", err=True)
    if proof.is_enough:
        return
    finer = "leave --quantize out for 16 bits, or give it more bits" if bits else "--dtype float32"
    lost = (
        f"{_what(dtype, bits)} keeps {proof.shown} of the margin on held-out pairs, less than "
        f"{ENOUGH}"
    )
    if not force:
        raise MlxDpoError(f"{out}: not written: {lost}; {finer}; --force writes it all the same")
    say(f"warning: {lost}; {finer}", err=True)


def _what(dtype: str, bits: int | None) -> str:
    return f"{bits} bits" if bits else dtype
