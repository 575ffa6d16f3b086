"""Damage model files in a process of its own: each is used, or refused in one line.

    python -m tests.faults.mutations safetensors 0 500

tries the mutations 0 to 499 of a kind and prints each number before it, so that a crash names it.
Nothing is random but the number. The address space is limited where the system allows it.
"""

import json
import os
import random
import re
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_dpo.errors import MlxDpoError

ORACLE = Path(__file__).parent.parent / "oracle" / "llama" / "model"
MOST_MEMORY = 1_500_000_000  # bytes resident, MLX and transformers among them
LIMIT = 8 * 2**30  # bytes of address space; MLX maps a few by itself
NUMBERS: list[Any] = [-1, 0, 1, 3, 2**31, 2**63, 10**6, 10**18, 1e308, -0.5, True]
NUMBERS += [None, "8", [], {}, [4], "x"]


def flip(data: bytes, rng: random.Random, until: int | None = None) -> bytes:
    """A few bytes changed, cut out, or put in, near the beginning or anywhere."""
    content = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(min(len(content), until or len(content)) or 1)
        fate = rng.randrange(5)
        if fate == 0:
            del content[at:]
        elif fate == 1:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif fate == 2:
            del content[at : at + rng.randrange(1, 9)]
        else:
            content[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(content)


def safetensors(folder: Path, rng: random.Random) -> None:
    """Bytes of the file, or the header as JSON with other numbers in it."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        file.write_bytes(flip(data, rng, 8 + size))
        return
    header = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(header))
    entry = header[name]
    fate = rng.randrange(5)
    if fate == 0:
        header[name] = rng.choice(NUMBERS)
    elif fate == 1:
        header[rng.choice(["x", "../x", "", "a" * 500])] = entry
    elif fate == 2:
        del header[name]
    else:
        key = rng.choice(sorted(entry))
        value = entry[key]
        if isinstance(value, list) and value:
            value[rng.randrange(len(value))] = rng.choice(NUMBERS)
        else:
            entry[key] = rng.choice([*NUMBERS, "F64", "I64", "BF16", "F4"])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def config(folder: Path, rng: random.Random) -> None:
    """Another value, a key less, or other bytes."""
    file = folder / "config.json"
    if rng.random() < 0.2:
        file.write_bytes(flip(file.read_bytes(), rng))
        return
    content = json.loads(file.read_text())
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(
            [*sorted(content), "text_config", "num_experts", "rope_scaling", "model_type"]
        )
        if rng.random() < 0.2:
            content.pop(key, None)
        else:
            content[key] = rng.choice([*NUMBERS, "gpt2", "gemma2", "mixtral", "..", {"a": 10**9}])
    file.write_text(json.dumps(content))


def index(folder: Path, rng: random.Random) -> None:
    """An index in place of the single file, with a name or byte that is wrong."""
    from safetensors import safe_open

    part = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(part)
    with safe_open(part, framework="numpy") as tensors:
        names = list(tensors.keys())
    places: dict[str, Any] = dict.fromkeys(names, part.name)
    wrong = [
        *NUMBERS,
        "../model.safetensors",
        "/etc/hostname",
        "gone.safetensors",
        "config.json",
        "",
    ]
    places[rng.choice([*names, "x"])] = rng.choice([*NUMBERS, *wrong])
    text = json.dumps({"metadata": {}, "weight_map": places}).encode()
    if rng.random() < 0.5:
        text = flip(text, rng)
    (folder / "model.safetensors.index.json").write_bytes(text)


def pickles(folder: Path, rng: random.Random) -> None:
    """The bytes of a zip of torch.save, or of the pickle in it under a right checksum."""
    import zipfile

    import mlx.core as mx

    from mlx_dpo.convert.torch_zip.archive import write_torch_zip
    from mlx_dpo.convert.torch_zip.tensors import from_mlx

    file = folder / "pytorch_model.bin"
    arrays: Any = mx.load(str(folder / "model.safetensors"))
    write_torch_zip(file, {name: from_mlx(value) for name, value in list(arrays.items())[:3]})
    (folder / "model.safetensors").unlink()
    if rng.random() < 0.5:
        data = file.read_bytes()
        begin = len(data) - 400 if rng.random() < 0.5 else 0  # the list of members, or all
        file.write_bytes(data[:begin] + flip(data[begin:], rng))
        return
    with zipfile.ZipFile(file) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = flip(members[name], rng)
    with zipfile.ZipFile(file, "w") as new:
        for member, content in members.items():
            new.writestr(member, content)


def load(folder: Path) -> None:
    """What `train` does with a model's weights; the tokenizer's files are whole here."""
    from mlx_dpo.models.folder import load_model

    load_model(folder)


def weights(folder: Path) -> None:
    """What `convert` does with a folder's weights."""
    import mlx.core as mx

    from mlx_dpo.convert.weights import read_weights

    mx.eval(read_weights(folder).arrays)


KINDS: dict[str, tuple[Callable[[Path, random.Random], None], Callable[[Path], None]]] = {
    "safetensors": (safetensors, load),
    "config": (config, load),
    "index": (index, weights),
    "pickles": (pickles, weights),
}


def attempt(kind: str, number: int) -> str:
    """What becomes of one mutation: `used` or `refused`."""
    damage, use = KINDS[kind]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        shutil.copytree(ORACLE, folder)
        damage(folder, random.Random(number))
        try:
            use(folder)
        except MlxDpoError as error:
            text = str(error)
        else:
            return "used"
    assert "\n" not in text, text
    assert len(text) < 2000, text
    return "refused"


def _peak() -> int:
    """Most bytes that were resident in this process."""
    if sys.platform == "linux":  # whose ru_maxrss begins with what the parent had
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(kind: str, first: int, end: int) -> None:
    """Try some mutations of a kind, and print what became of them and the peak memory."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    ends = {"used": 0, "refused": 0}
    for number in range(first, end):
        print(f"{kind} {number}", flush=True)
        ends[attempt(kind, number)] += 1
    print(json.dumps({**ends, "peak_bytes": _peak()}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
