"""`mlx_dpo export`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.screen import say, show_json, show_next
from mlx_dpo.cli.ways_out import (
    BITS,
    FORMS,
    IN_GGUF,
    MODELFILE,
    Order,
    Written,
    check_form,
    check_out,
    check_packing,
    dtype_for,
    is_imported,
    is_rounded,
    new_form,
    place_of,
    write,
    write_modelfile,
    write_torch,
)
from mlx_dpo.errors import MlxDpoError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.convert.sources import Source
    from mlx_dpo.insight.proof import Proof, Trial


@click.command(
    short_help="Write a model for MLX, PyTorch, GGUF, LM Studio or Ollama, and measure it."
)
@click.argument("model", type=options.Name())
@click.argument("out", type=options.Name())
@click.option(
    "--to",
    type=click.Choice(FORMS),
    help="What it is for. Default: mlx, which needs --fuse or --quantize.",
)
@click.option("--fuse", is_flag=True, help="Sum an adapter into its model; --to implies it.")
@options.path(
    "--base",
    "The model an adapter was trained on. Default: the one its dpo.json names.",
    metavar="FOLDER",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Type of the new weights. Default: the model's own if it has 16 bits, else bfloat16.",
)
@click.option(
    "--quantize",
    metavar="BITS",
    type=click.Choice(BITS),
    help=f"Pack the new weights in so many bits: {', '.join(BITS)}; in GGUF 4 or 8.",
)
@options.path("--data", "The file with the run's held-out pairs, if it has moved.")
@click.option(
    "--force",
    is_flag=True,
    help="Write OUT even if too little is kept, or if that is unknown.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if an earlier export made it.")
@options.as_json
@options.keeps_awake
def export(
    model: str,
    out: str,
    to: str | None,
    fuse: bool,
    base: str | None,
    dtype: str | None,
    quantize: str | None,
    data: str | None,
    force: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a trained model for the program that is to run it, and measure what it keeps.

    MODEL is the folder of a fully trained model or of an adapter, which is summed into the model it
    was trained on. OUT is a file with --to gguf, publisher/name or a folder with --to lm-studio,
    otherwise a folder. Rounding may undo what preference tuning did: the margin on the pairs that
    the run held out is measured before and after, of what was written, and where less than 0.9 of
    it is kept nothing is written (exit code 1) unless --force is given. Where nothing is rounded,
    every tensor is compared instead.

    \b
    Examples:
      mlx_dpo export checkpoints/tiny-sft-dpo tiny.gguf --to gguf
      mlx_dpo export checkpoints/tiny-sft-dpo me/tiny --to lm-studio --quantize 8
      mlx_dpo export checkpoints/tiny-sft-dpo for-ollama --to ollama
      mlx_dpo export checkpoints/tiny-sft-dpo for-torch --to torch
    """
    from mlx_dpo.files import check_writable, remove_abandoned, scratch_folder

    source = _located(model, to, fuse=fuse, base=base, packs=quantize is not None)
    to = to or "mlx"
    if imported := is_imported(to, source, quantize):
        to = "torch"
    check_form(to, quantize, out)
    check_packing(model, source, to, quantize)
    place = place_of(out, to)
    check_out(place, source, to, overwrite)
    check_writable(place)
    remove_abandoned(place.parent, place.name)
    dtype = dtype or dtype_for(source, to, quantize)
    order = Order(source, to, dtype, quantize, is_rounded(source, dtype, quantize))
    trial = _trial(order, data, model, force=force) if order.is_rounded else None
    before = _before(trial) if trial else None
    proof = None
    with scratch_folder(place) as scratch:
        if to == "torch" and not order.is_rounded:
            write_torch(order, source.folder, place, overwrite)
        else:
            with new_form(place, scratch, to, overwrite) as new:
                written = _write(new, scratch / "back", order)
                if trial and before:
                    proof = _proven(trial, written, before)
                    _check(proof, place, order, force)
                if new.is_dir():
                    name = new.name if to == "torch" else place.name
                    _record(new, name, model, base, order, written, proof)
            if to == "torch":
                write_torch(order, new, place, overwrite)
    if imported:
        write_modelfile(place, source)
    say(f"wrote   {place}  ({order})")
    form = "ollama" if imported else to
    _say_what_next(place, form, source)
    if as_json:
        how = {"to": form, "dtype": dtype, "quantize": quantize}
        show_json({"out": str(place), **how, "proof": proof.as_record() if proof else None})


def _record(
    folder: Path,
    name: str,
    model: str,
    base: str | None,
    order: Order,
    written: Written,
    proof: "Proof | None",
) -> None:
    """The dpo.json of an exported folder, that of the run with the export, and its model card."""
    from mlx_dpo.convert.sources import read_record
    from mlx_dpo.models.card import carried_card, library_of, model_card, origin_of, published
    from mlx_dpo.models.export import write_card, write_json

    exported = {
        "model": model,
        "base": str(order.source.folder) if order.source.adapter else None,
        "to": order.to,
        "dtype": order.dtype,
        "quantization": written.packing,
        "proof": proof.as_record() if proof else None,
    }
    record = read_record(order.source.origin) | {"export": exported}
    if base is not None:  # where it is now
        record["trained_from"] = record.get("trained_from", {}) | {
            "model": base,
            "name": published(base),
        }
    write_json(folder / "dpo.json", record)
    library = library_of(folder, record)
    if "trained_from" in record:
        write_card(
            folder, model_card(record, name, origin_of(order.source.folder), library=library)
        )
    elif card := carried_card(order.source.folder, {}, name, library=library):
        write_card(folder, card)


def _say_what_next(out: Path, to: str, source: "Source") -> None:
    from mlx_dpo.models.export import left_behind

    if to == "ollama":
        say(f"Next:\n  ollama create {out.name} -f {out / MODELFILE}")
        return
    if to not in IN_GGUF and (names := left_behind(source.folder)):
        say(f"left    {', '.join(names)}, in {source.folder}: not copied")
    if to in ("mlx", "lm-studio"):
        show_next(["generate", "--model", str(out), "--prompt", "Hello"])


def _located(name: str, to: str | None, *, fuse: bool, base: str | None, packs: bool) -> "Source":
    """The model to export.

    Raises:
        UsageError: If it is not there, or the options are not for what it is.
    """
    from mlx_dpo.convert.sources import RECORD, find, is_adapter, locate

    if is_adapter(find(name)):
        if not fuse and to is None:
            raise UsageError(
                f"{name}: is an adapter: --fuse or --to sums it into its model, and mlx_dpo "
                "adapter convert writes it for PEFT or mlx-lm"
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
                f"{name}: is a full model, no adapter: {option} has no effect; leave it out"
            )
    if not packs and to is None:
        raise UsageError(
            f"{name}: is a full model as it stands: --to says what to write it for, and --quantize "
            "BITS packs it"
        )
    return locate(name)


def _trial(order: Order, data: str | None, name: str, *, force: bool) -> "Trial | None":
    """What to measure by; None, after a line that says why, where nothing can be measured.

    Raises:
        UsageError: If nothing can be measured, and the weights are to be packed without --force.
    """
    from mlx_dpo.insight.proof import NotMeasurableError, plan_trial

    packs = order.bits is not None
    try:
        footer.doing("reading the held-out pairs")
        if not packs:
            _check_memory(order.source, order.dtype)
        # What is packed in GGUF is compared with float32, not with what bfloat16 would round it to.
        exported = "float32" if packs and order.to in IN_GGUF else order.dtype
        return plan_trial(order.source, data, exported=exported)
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
    from mlx_dpo.models.config import read_config, stored_shapes
    from mlx_dpo.models.device import recommended_here
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


def _write(place: Path, scratch: Path, order: Order) -> Written:
    """What is asked for, but for its dpo.json; its notes are shown."""
    footer.doing("loading the weights")
    scratch.mkdir()
    with progress() as advance:
        written = write(place, scratch, order, advance)
    for note in written.notes:
        say(note)
    return written


def _proven(trial: "Trial", written: Written, before: "tuple[Any, Any]") -> "Proof":
    """Score what was written, loaded from its files."""
    from mlx_dpo.insight.proof import prove, score

    footer.doing("loading what was written")
    with progress() as advance:
        after = score(trial, written.readable, "exported", advance)
    return prove(after, *before, beta=trial.beta)


def _check(proof: "Proof", out: Path, order: Order, force: bool) -> None:
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
    finer = "leave --quantize out for 16 bits, or give it more bits"
    finer = finer if order.bits else "--dtype float32"
    lost = f"{order} keeps {proof.shown} of the margin on held-out pairs, less than {ENOUGH}"
    if not force:
        raise MlxDpoError(f"{out}: not written: {lost}; {finer}; --force writes it all the same")
    say(f"warning: {lost}; {finer}", err=True)
