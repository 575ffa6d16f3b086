"""The forms in which `mlx_dpo export` writes a model."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_dpo.cli.screen import counted, say
from mlx_dpo.errors import MlxDpoError, UsageError

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlx_dpo.convert.sources import Source

FORMS = ("mlx", "torch", "gguf", "lm-studio", "ollama")
BITS = ("2", "3", "4", "6", "8", "mxfp4")
IN_GGUF = ("gguf", "ollama")
MODELFILE, WEIGHTS = "Modelfile", "model.gguf"
_SHOWN = 3  # names in a note

Advance = Callable[[str, int, int], None]


class Order(NamedTuple):
    """What is asked for.

    Attributes:
        source: The model.
        to: One of `FORMS`.
        dtype: Of what is not packed.
        bits: One of `BITS`; None packs nothing.
        is_rounded: Whether a number may not be the model's own.
    """

    source: "Source"
    to: str
    dtype: str
    bits: str | None
    is_rounded: bool

    def __str__(self) -> str:
        if self.bits is None:
            return self.dtype
        return self.bits if self.bits == "mxfp4" else f"{self.bits} bits"


class Written(NamedTuple):
    """What was written.

    Attributes:
        packing: How it is packed, for the record; None where it is not.
        readable: The same for MLX to load.
        notes: Lines for the screen.
    """

    packing: Any
    readable: "Source"
    notes: list[str]


def check_form(to: str, bits: str | None, out: str) -> None:
    """Refuse what a form does not have.

    Raises:
        UsageError: If that is asked for.
    """
    if to == "torch" and bits is not None:
        raise UsageError(
            "--to torch: a PyTorch folder holds whole numbers of 16 or 32 bits; leave --quantize "
            "out"
        )
    if to in IN_GGUF:
        from mlx_dpo.convert.gguf.file import BITS as KINDS
        from mlx_dpo.convert.gguf.package import package

        if bits is not None and bits not in KINDS:
            made = " and ".join(f"{bits} ({kind})" for bits, kind in KINDS.items())
            raise UsageError(
                f"--quantize {bits}: the writer of GGUF makes {made}; llama-quantize of llama.cpp "
                "makes other kinds of a 16-bit file"
            )
        package()
    if to == "gguf" and not out.endswith(".gguf"):
        raise UsageError(f"{out}: --to gguf writes one file: give it a name that ends in .gguf")


def dtype_for(source: "Source", to: str, bits: str | None) -> str:
    """The model's; float32 is kept only by a whole model for MLX or PyTorch."""
    from mlx_dpo.models.config import own_dtype

    own = own_dtype(source.folder)
    is_kept = source.adapter is None and bits is None and to in ("mlx", "torch")
    return "bfloat16" if own == "float32" and not is_kept else own


def is_rounded(source: "Source", dtype: str, bits: str | None) -> bool:
    """Whether a number of what is written may not be one of the model."""
    from mlx_dpo.models.config import is_quantised, read_config
    from mlx_dpo.models.parameters import tensor_shapes

    if source.adapter is not None or bits is not None or is_quantised(read_config(source.folder)):
        return True
    codes = {code for _, code in tensor_shapes(source.folder).values()}
    own = {"bfloat16": "BF16", "float16": "F16"}
    return dtype != "float32" and codes != {own[dtype]}


def is_imported(to: str, source: "Source", bits: str | None) -> bool:
    """Whether Ollama is given a folder of safetensors, for a kind that GGUF is not written of.

    Raises:
        UsageError: If that is to be packed.
    """
    from mlx_dpo.convert.gguf.ollama import IMPORTED
    from mlx_dpo.models.config import read_config

    kind = read_config(source.folder).get("model_type")
    if to != "ollama" or kind not in IMPORTED:
        return False
    if bits is not None:
        raise UsageError(
            f"--quantize: Ollama reads a {kind} from a folder of safetensors, which is written in "
            "16 or 32 bits; leave --quantize out"
        )
    return True


def write_modelfile(folder: Path, source: "Source") -> None:
    """Beside safetensors that Ollama imports."""
    from mlx_dpo.convert.gguf.ollama import modelfile
    from mlx_dpo.convert.sources import date_of
    from mlx_dpo.models.tokenizer import load_tokenizer
    from mlx_dpo.preferences.chat import chat_format

    chat = chat_format(load_tokenizer(source.folder), date_of(source.origin))
    text, _ = modelfile(chat, ".", adds_bos=chat.adds_bos)
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    say("ollama  GGUF is not written of this kind: it imports the safetensors, and runs them on a "
        "Mac")  # fmt: skip


def check_packing(name: str, source: "Source", to: str, bits: str | None) -> None:
    """Refuse what a form is not written of, and to pack what is packed already.

    Raises:
        UsageError: If that is asked for.
    """
    from mlx_dpo.convert.course.checkpoint import is_course_folder
    from mlx_dpo.models.config import is_quantised, read_config

    is_course = is_course_folder(source.folder)
    if is_course and to in ("lm-studio", *IN_GGUF):
        raise UsageError(f"{name}: is a model of the course, which only --to mlx and torch write")
    if to in IN_GGUF:
        from mlx_dpo.convert.gguf.families import family_of

        family_of(read_config(source.folder))
    if bits is None:
        return
    if is_course:
        raise UsageError(f"{name}: is a model of the course, which nothing loads packed; leave "
                         "--quantize out")  # fmt: skip
    if source.adapter is None and is_quantised(read_config(source.folder)):
        raise UsageError(f"{name}: is quantised already; --quantize takes the model before that")


def check_out(out: Path, source: "Source", to: str, overwrite: bool) -> None:
    """Refuse a folder or file that is in use, or that no export made.

    Raises:
        UsageError: If it is one.
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
    if to == "torch":
        return  # a conversion knows its own
    if to == "gguf":
        from mlx_dpo.convert.gguf.file import is_ours

        is_own = is_ours(out)
    else:
        is_own = "export" in read_record(out)
    if out.is_symlink() or not is_own:
        raise UsageError(f"{out}: exists and no export made it; choose another name")


def place_of(out: str, to: str) -> Path:
    """Where to write: LM Studio looks at ``~/.lmstudio/models/publisher/name``.

    A name of two parts, the first of which is no folder here, is taken for the last two of that;
    one that begins with a dot, a slash or a tilde is a path.
    """
    path = Path(out).expanduser()
    is_name = out[:1] not in ("", ".", "/", "~") and len(path.parts) == 2
    if to == "lm-studio" and is_name and ".." not in path.parts and not path.parent.exists():
        return Path.home() / ".lmstudio" / "models" / path
    return path


@contextmanager
def new_form(out: Path, scratch: Path, to: str, overwrite: bool) -> Iterator[Path]:
    """What is filled, a folder or a file; it appears as OUT when the block ends well."""
    from mlx_dpo.files import new_file, new_folder
    from mlx_dpo.models.export import new_model_folder

    if to == "torch":  # which is made of it
        (scratch / "fused").mkdir()
        yield scratch / "fused"
    elif to == "gguf":
        with new_file(out, replace=overwrite) as file:
            yield Path(file.name)
    else:
        fill = new_folder if to == "ollama" else new_model_folder
        with fill(out, replace=overwrite) as folder:
            yield folder


def write(place: Path, scratch: Path, order: Order, advance: Advance) -> Written:
    """Write the weights, tokenizer and config of a model, and read back what was rounded to.

    Args:
        place: An empty folder, or the file of `--to gguf`.
        scratch: An empty folder for what is read back.
        order: What is asked for.
        advance: Called as tensors are done.

    Raises:
        UsageError: If the form does not have this model.
        MlxDpoError: If what is read back is not what was written.
        DiskError: If a file can't be written.
    """
    from mlx_dpo.convert.sources import load_stored

    model = load_stored(order.source)
    if order.to not in IN_GGUF:
        return _write_mlx(place, model, order, advance)
    if order.to == "gguf":
        return _write_gguf(place, scratch, model, order, advance)[0]
    written, chat, adds_bos = _write_gguf(place / WEIGHTS, scratch, model, order, advance)
    from mlx_dpo.convert.gguf.ollama import modelfile
    from mlx_dpo.models.rotary import longest_short_text

    longest = longest_short_text(model)
    text, has_template = modelfile(chat, f"./{WEIGHTS}", adds_bos=adds_bos, longest=longest)
    (place / MODELFILE).write_text(text, encoding="utf-8")
    if not has_template:
        note = "chat    Ollama can't write turns as this model's template does: it guesses"
        written.notes.append(note)
    return written


def _write_mlx(place: Path, model: "nn.Module", order: Order, advance: Advance) -> Written:
    import mlx.core as mx

    from mlx_dpo.convert.sources import Source
    from mlx_dpo.models.export import write_fused

    mode = "mxfp4" if order.bits == "mxfp4" else "affine"
    bits = 4 if order.bits == "mxfp4" else order.bits and int(order.bits)
    packing, left = write_fused(
        place,
        model,
        order.source.folder,
        getattr(mx, order.dtype),
        bits=bits or None,
        mode=mode,
        progress=advance,
    )
    notes = _left(left, order.dtype)
    if not order.is_rounded:
        notes.append(_unchanged(_compared(place, model)))
    return Written(packing, Source(place, None, place), notes)


def _write_gguf(
    file: Path, scratch: Path, model: "nn.Module", order: Order, advance: Advance
) -> tuple[Written, Any, bool]:
    """With the model's conversation format, and whether llama.cpp puts a BOS before a text."""
    from mlx_dpo.convert.gguf import file as gguf
    from mlx_dpo.convert.sources import Source, date_of
    from mlx_dpo.models.rotary import longest_short_text
    from mlx_dpo.models.tokenizer import load_tokenizer
    from mlx_dpo.preferences.chat import chat_format

    folder = order.source.folder
    chat = chat_format(load_tokenizer(folder), date_of(order.source.origin))
    plan = gguf.plan(model, folder, order.dtype, order.bits)
    vocabulary = gguf.write(file, model, folder, chat, plan, advance)
    check = gguf.read_back(file, model, folder, plan, scratch if order.is_rounded else None)
    notes = _left(plan.left_out, order.dtype)
    if not (check.rounded or check.packed):
        notes.append(_unchanged(check.same))
    elif not order.is_rounded:
        raise MlxDpoError(f"{file}: not written: {check.rounded} tensors were rounded; report this")
    if vocabulary.chat_template is None:
        notes.append("chat    the model has no chat template: readers of the file will guess one")
    if not vocabulary.is_alike:
        notes.append(
            "tokens  the model's own in conversations; in other texts llama.cpp may have a space "
            "more or less"
        )
    if (short := longest_short_text(model)) is not None:
        notes.append(
            f"context {short} tokens at most; given more, llama.cpp computes other positions (-c)"
        )
    packing = None if order.bits is None else {"gguf": plan.kind}
    return Written(packing, Source(scratch, None, scratch), notes), chat, vocabulary.adds_bos


def write_torch(order: Order, folder: Path, out: Path, overwrite: bool) -> None:
    """Convert a folder for MLX, whose numbers are final, for PyTorch.

    Raises:
        UsageError: If it can't be converted.
        MlxDpoError: If it is not the same there and back.
        DiskError: If a file can't be written.
    """
    from mlx_dpo.convert.conversion import Options, convert

    dtype = None if order.is_rounded else order.dtype
    lines: list[str] = []
    convert(folder, out, Options("torch", dtype, overwrite=overwrite), lines.append)
    for line in lines[1:-1]:  # the first names the folder, and the last what was written
        say(line)


def _compared(folder: Path, model: "nn.Module") -> int:
    """How many tensors a folder holds, all of which are a model's.

    Raises:
        MlxDpoError: If one is not, in any bit.
    """
    import mlx.core as mx

    from mlx_dpo.models.fuse import fused
    from mlx_dpo.models.parameters import load_arrays, same_bits

    arrays: dict[str, Any] = {}
    for file in folder.glob("model*.safetensors"):
        arrays |= load_arrays(file)
    expected = fused(model, mx.float32)
    number = len(expected)
    for name in list(expected):  # each is computed here, and freed
        found, array = arrays.pop(name), expected.pop(name)
        if not same_bits(found.astype(mx.float32), array.astype(mx.float32)):
            raise MlxDpoError(f"not written: {name} is read back as other numbers; report this")
    return number


def _unchanged(number: int) -> str:
    return f"tensors {number} of {number} are the model's, bit by bit"


def _left(names: list[str], dtype: str) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"dense   {counted(len(names), 'layer')} can't be packed, in {dtype}: {shown}"]
