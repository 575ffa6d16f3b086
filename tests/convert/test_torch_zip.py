"""PyTorch's files without PyTorch: what is whole is read bit for bit, all else is refused."""

import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_dpo.cli import main
from mlx_dpo.convert.torch_zip import archive
from mlx_dpo.convert.torch_zip.archive import read_state_dict, read_torch_zip, write_torch_zip
from mlx_dpo.convert.torch_zip.tensors import BFloat16, as_mlx, from_mlx, view
from mlx_dpo.errors import UsageError
from tests import g2c
from tests.runs.conftest import ORACLE

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"
# However little memory a file deserves, Python and the reader need some.
ENOUGH_MEMORY = 4 * 2**20


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(
    count: int = 4, *, kind: str = "Float", key: str = "0", location: bytes = b"X\3\0\0\0cpu"
) -> bytes:
    name = f"ctorch\n{kind}Storage\n".encode()
    return b"(" + text("storage") + name + text(key) + location + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,), *, offset: int = 0,
    of: bytes | None = None,
) -> bytes:  # fmt: skip
    sizes = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    arguments = (of or storage()) + number(offset) + b"".join(sizes) + b"\x89" + HOOKS
    return TENSOR + b"(" + arguments + b"tR"


def state_dict(value: bytes) -> bytes:
    return b"\x80\x02}" + text("w") + value + b"s."


VALUES = np.array([1.5, -2.0, 0.0, 3e-41], np.float32)


def make_zip(
    path: Path,
    pickled: bytes = state_dict(tensor()),
    *,
    data: bytes = VALUES.tobytes(),
    top: str = "archive",
    extra: list[tuple[str, bytes]] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    members = [(f"{top}/data.pkl", pickled), (f"{top}/data/0", data), *(extra or [])]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.NameToInfo.clear()  # else zipfile warns of equal names, an error in tests
            archive.writestr(name, content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        read_torch_zip(path)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message.removeprefix(str(path))


def read_or_refuse(path: Path) -> None:
    """Any other error than a refusal in one line passes through."""
    with suppress(UsageError):
        read_torch_zip(path)
        return
    refusal(path)


# --- What is read --------------------------------------------------------------------------------


def test_the_course_s_file_is_read_as_it_is() -> None:
    content = read_torch_zip(g2c.ARTIFACT / "model.pt")
    assert list(content) == ["vocab_size", "model_config", "params"]
    assert content["vocab_size"] == 599
    assert content["model_config"] == g2c.read(g2c.ARTIFACT / "config.json")["model_config"]
    assert len(content["params"]) == 16 * 3 + 5
    assert {value.dtype for value in content["params"]} == {np.dtype("<f4")}
    assert content["params"][0].shape == (599, 64)


@pytest.mark.parametrize("top", ["archive", "model", ".model.pt.4711.0a1b2c3d", "model (1)"])
def test_any_top_folder_will_do(tmp_path: Path, top: str) -> None:
    content = read_torch_zip(make_zip(tmp_path / "x.pt", top=top))
    np.testing.assert_array_equal(content["w"].view(np.uint32), VALUES.view(np.uint32))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 2), (2, 1), 0, [[0, 1], [2, 3]]),
        ((2, 2), (1, 2), 0, [[0, 2], [1, 3]]),
        ((2,), (2,), 1, [1, 3]),
        ((), (), 3, 3),
        ((0, 5), (5, 1), 4, np.zeros((0, 5))),
    ],
    ids=["contiguous", "transposed", "every other", "one number", "empty"],
)
def test_views_of_a_storage_are_read(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, expected: Any
) -> None:
    pickled = state_dict(tensor(shape, strides, offset=offset))
    path = make_zip(tmp_path / "x.pt", pickled, data=np.arange(4, dtype="<f4").tobytes())
    np.testing.assert_array_equal(read_torch_zip(path)["w"], np.array(expected, np.float32))


def test_tensors_of_one_storage_share_its_memory(tmp_path: Path) -> None:
    pickled = b"\x80\x02](" + tensor() + tensor((2,), offset=2) + b"e."
    whole, part = read_torch_zip(make_zip(tmp_path / "x.pt", pickled))
    assert np.shares_memory(whole, part)


def test_a_module_s_state_dict_brings_version_notes_that_are_left_out(tmp_path: Path) -> None:
    notes = b"}" + text("_metadata") + HOOKS + b"s"
    pickled = b"\x80\x02" + HOOKS + text("w") + tensor() + b"s" + notes + b"b."
    assert [*read_state_dict(make_zip(tmp_path / "x.pt", pickled))] == ["w"]


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1.5, np.nan], [-0.0, np.inf]], np.float32),
        np.array([1.5, 6e-8], np.float16),
        np.array([1e-300], np.float64),
        np.array([2**62, -1]),
        np.array([-(2**31)], np.int32),
        np.array([-7], np.int16),
        np.array([-7], np.int8),
        np.array([200], np.uint8),
        np.array([True, False]),
        np.full((), 3, np.float32),
        np.zeros((0, 3), np.float32),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_tensors_survive_writing_and_reading(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.pt"
    write_torch_zip(path, {"w": value})
    found = read_torch_zip(path)["w"]
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert found.tobytes() == value.tobytes()


def test_no_bit_of_bfloat16_is_lost_on_the_way_to_mlx_and_back(tmp_path: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    write_torch_zip(tmp_path / "x.pt", [BFloat16(every)])
    (found,) = read_torch_zip(tmp_path / "x.pt")
    array = as_mlx(found)
    assert array.dtype == mx.bfloat16
    assert array.shape == (256, 256)
    back = from_mlx(array)
    assert isinstance(back, BFloat16)
    np.testing.assert_array_equal(back.bits, every)
    assert float(as_mlx(BFloat16(np.array([0x3FC0], np.uint16)))[0]) == 1.5


def test_plain_data_survives_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "numbers": [0, -1, 2**31, -(2**62), 0.1, True, False, None],
        "é": {"": "日本"},
        "empty": [{}, []],
        "w": VALUES,
    }
    for name in ("a.pt", "b.pt"):
        write_torch_zip(tmp_path / name, content)
    found = read_torch_zip(tmp_path / "a.pt")
    assert found.pop("w").tobytes() == VALUES.tobytes()
    assert found == {key: value for key, value in content.items() if key != "w"}
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_tensor_s_bytes_are_aligned_for_mapping(tmp_path: Path) -> None:
    write_torch_zip(tmp_path / "x.pt", [np.full(3, 7, np.uint8), np.full(100, 9, np.uint8)])
    data = (tmp_path / "x.pt").read_bytes()
    assert data.index(b"\7\7\7") % 64 == data.index(b"\t" * 100) % 64 == 0


@pytest.mark.parametrize("value", [object(), {1: 2}, (1,), np.zeros(1, np.complex64)])
def test_what_the_format_has_no_place_for_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError):
        write_torch_zip(tmp_path / "x.pt", value)


@pytest.mark.parametrize("content", [[VALUES], {"w": VALUES, "step": 3}])
def test_a_state_dict_holds_named_tensors_only(tmp_path: Path, content: Any) -> None:
    write_torch_zip(tmp_path / "x.pt", content)
    with pytest.raises(UsageError, match="expected a"):
        read_state_dict(tmp_path / "x.pt")


# --- Pickles that want to do something -----------------------------------------------------------


class Evil:
    """Calls something when Python unpickles it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["alone", "in a dict", "as an argument"])
@pytest.mark.parametrize("what", ["os.system", "builtins.eval", "builtins.exec", "Path.touch"])
def test_nothing_a_pickle_calls_is_executed(
    tmp_path: Path, protocol: int, where: str, what: str
) -> None:
    sentinel = tmp_path / "executed"
    code = f"open({str(sentinel)!r}, 'w').close()"
    calls: dict[str, tuple[Any, ...]] = {
        "os.system": (os.system, f"touch '{sentinel}'"),
        "builtins.eval": (eval, code),
        "builtins.exec": (exec, code),
        "Path.touch": (Path.touch, sentinel),
    }
    evil = Evil(*calls[what])
    content = {"alone": evil, "in a dict": {"w": evil}, "as an argument": Evil(dict, evil)}[where]
    pickled = pickle.dumps(content, protocol)
    path = make_zip(tmp_path / "x.pt", pickled)
    refusal(path)
    assert not sentinel.exists()


def test_the_calls_above_are_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(Path.touch, tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


FORBIDDEN = {
    "a name like an allowed one": b"\x80\x02ctorch\nFloatStorage.x\n.",
    "an allowed name not called": b"\x80\x02ctorch\nFloatStorage\n.",
    "an allowed name in a list": b"\x80\x02]ctorch\nFloatStorage\na.",
    "an allowed name in a tuple in a list": b"\x80\x02]ctorch\nFloatStorage\n\x85a.",
    "a name by protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a storage alone": b"\x80\x02" + storage() + b".",
    "a storage called": b"\x80\x02ctorch\nFloatStorage\nK\x04\x85R.",
    "a text called": b"\x80\x02X\x01\0\0\0a)R.",
    "nested calls": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\1\0\0\0atRX\2\0\0\0ls\x85R.",
    "an OrderedDict of pairs": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
    "a tensor with hooks": state_dict(tensor()[:-2] + b"X\1\0\0\0hK\1stR"),
    "a tensor of a text": state_dict(tensor(of=b"X\1\0\0\0a")),
    "BUILD on a dict": b"\x80\x02}}X\1\0\0\0aK\1sb.",
    "BUILD on a tensor": b"\x80\x02" + tensor() + b"}X\x09\0\0\0_metadata}sb.",
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(ccollections\nOrderedDict\no.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\0.",
    "EXT4": b"\x80\x02\x84\x01\0\0\0.",
    "PERSID": b"Pstorage\n.",
    "BINPERSID of a text": b"\x80\x02X\1\0\0\0aQ.",
    "BINPERSID of another kind": b"\x80\x02X\1\0\0\0aK\1\x86Q.",
    "bytes": b"\x80\x03C\x01a.",
    "a set": b"\x80\x04\x8f.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "DUP": b"\x80\x02]2.",
    "POP": b"\x80\x02]0.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "a dict in itself": b"\x80\x02}q\0K\1h\0s.",
    "a key twice": b"\x80\x02}K\1K\2sK\1K\3s.",
    "a key that is a tensor": b"\x80\x02}" + tensor() + b"K\1s.",
    "an item for a text": b"\x80\x02X\1\0\0\0aK\1a.",
    "an odd number of items": b"\x80\x02}(K\1u.",
    "an integer of 100 bytes": b"\x80\x02\x8a\x64" + b"\x7f" * 100 + b".",
    "two values": b"\x80\x02K\1K\2.",
    "no value": b"\x80\x02.",
    "a mark": b"\x80\x02(.",
    "a memo of a mark": b"\x80\x02(q\0.",
    "a tuple of a mark": b"\x80\x02(\x85.",
    "a memo entry that is none": b"\x80\x02h\x07.",
    "items of nothing": b"\x80\x02a.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "no opcode": b"\x80\x02\xff.",
    "a text that is none": b"\x80\x02X\1\0\0\0\xff.",
    "a text cut off": b"\x80\x02X\xff\0\0\0a",
    "a huge memo index": b"\x80\x02K\1r\xff\xff\xff\x7f.",
    "a text of 2^40 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "bytes of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "bytes of 2^63": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"a.",
    "a bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "an integer of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "an integer of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "lists 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "dicts 100,000 deep": b"\x80\x02" + b"}K\1" * 100_000 + b"K\1" + b"s" * 100_000 + b".",
    "tuples 100,000 deep": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "marks 100,000 deep": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "tuples that double": b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 60 + b".",
    "lists that double": b"\x80\x02]q\0" + b"](h\0h\0eq\0" * 60 + b".",
    "endless opcodes": b"\x80\x02" + b"N" * 500_000 + b".",
    "endless lists": b"\x80\x02](" + b"]" * 500_000 + b"e.",
}


@pytest.mark.parametrize("pickled", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_pickle_of_anything_else_is_refused_in_bounded_memory(
    tmp_path: Path, pickled: bytes
) -> None:
    path = make_zip(tmp_path / "x.pt", pickled)
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Opcodes are one byte each, and an empty list takes two hundred: the limit is their number.
    assert peak < (120 * 2**20 if len(pickled) > 450_000 else 40 * 2**20)


def test_a_pickle_larger_than_any_checkpoint_s_is_refused_unread(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.pt", b"\x80\x02" + b"N" * (17 * 2**20))
    tracemalloc.start()
    try:
        assert "more than" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < ENOUGH_MEMORY
    finally:
        tracemalloc.stop()


# --- Tensors that are not in the file ------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        tensor((5,)),
        tensor((2, 2), (4, 1)),
        tensor((4,), offset=1),
        tensor((0,), offset=5),
        tensor((2**40,), (0,)),
        tensor((2,) * 40, (0,) * 40),
        tensor((0, 2**47, 2**47), (0, 0, 0)),
        tensor((1,) * 17, (1,) * 17),
        tensor((-1,)),
        tensor((2, 2), (1,)),
        tensor((2,), (-1,), offset=1),
        tensor(offset=-1),
        tensor((2**62,), (2**62,)),
    ],
    ids=[
        *("too long", "too far", "too late", "empty and too late", "repeated 2^40 times"),
        *("2^40 elements", "empty and huge", "17 dimensions", "negative", "strides missing"),
        *("backwards", "before the storage", "overflow"),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path, value: bytes) -> None:
    refusal(make_zip(tmp_path / "x.pt", state_dict(value)))


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"count": 5}, 16, "expected 20 bytes for 5 x Float, found 16"),
        ({}, 12, "expected 16 bytes for 4 x Float, found 12"),
        ({}, 17, "found 17"),
        ({"kind": "Double"}, 16, "expected 32 bytes"),
        ({"count": -1}, 16, "no storage"),
        ({"count": 2**62}, 16, "found 16"),
        ({"key": "1"}, 16, "is missing"),
        ({"key": "../data/0"}, 16, "is missing"),
        ({"key": "/etc/passwd"}, 16, "is missing"),
        ({"kind": "Untyped"}, 16, "UntypedStorage"),
        ({"location": b"K\1"}, 16, "no storage"),
        ({"kind": "Bool", "count": 16}, 16, "neither 0 nor 1"),
    ],
)
def test_a_storage_of_another_size_or_place_is_refused(
    tmp_path: Path, changes: dict[str, Any], size: int, message: str
) -> None:
    pickled = state_dict(tensor(of=storage(**changes)))
    assert message in refusal(make_zip(tmp_path / "x.pt", pickled, data=b"\x07" * size))


def test_a_storage_has_one_dtype(tmp_path: Path) -> None:
    both = tensor() + tensor(of=storage(kind="Int"))
    path = make_zip(tmp_path / "x.pt", b"\x80\x02](" + both + b"e.")
    assert "two dtypes" in refusal(path)


# --- Zip files that torch.save does not write ----------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "archive/../evil", "/etc/evil", "archive//evil", "archive/./evil", "evil"),
        *(
            "archive/a\\b",
            "C:/evil",
            "archive/\0evil",
            "other/evil",
            "archive/data/",
            "",
            "a" * 400,
        ),
    ],
)
def test_a_member_with_a_strange_name_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "x.pt", extra=[("archive/QQ", b"x")])
    # Written as bytes, since zipfile itself mends some of the names.
    data = path.read_bytes().replace(b"archive/QQ", name.encode() or b"")
    path.write_bytes(_with_name_length(data, len("archive/QQ"), len(name.encode())))
    refusal(path)
    assert sorted(tmp_path.iterdir()) == [path]


def _with_name_length(data: bytes, old: int, new: int) -> bytes:
    """Mend the last member's headers and the end record after its name changed length."""
    grown = new - old
    central = data.rindex(b"PK\x01\x02")
    local = data.rindex(b"PK\x03\x04")
    end = data.rindex(b"PK\x05\x06")
    parts = bytearray(data)
    struct.pack_into("<H", parts, local + 26, new)
    struct.pack_into("<H", parts, central + 28, new)
    size, start = struct.unpack_from("<II", data, end + 12)
    struct.pack_into("<II", parts, end + 12, size + grown, start + grown)
    return bytes(parts)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.pt", extra=[("archive/data/0", VALUES.tobytes())])
    assert "same name" in refusal(path)


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    bomb = b"\0" * (64 * 2**20)
    pickled = state_dict(tensor(of=storage(len(bomb) // 4)))
    path = make_zip(tmp_path / "x.pt", pickled, data=bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        assert "compressed" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < ENOUGH_MEMORY
    finally:
        tracemalloc.stop()


def test_members_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """A hundred members of one kilobyte each, all of them the same kilobyte."""
    path = make_zip(tmp_path / "x.pt", extra=[("archive/data/1", b"\0" * 100_000)])
    data = path.read_bytes()
    central, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    last = data[data.rindex(b"PK\x01\x02") : end]
    copies = b"".join(last.replace(b"data/1", f"data/{n}".encode()) for n in range(2, 10))
    record = bytearray(data[end:])
    count = 3 + 8
    struct.pack_into("<HHI", record, 8, count, count, end - central + len(copies))
    path.write_bytes(data[:end] + copies + record)
    assert "larger than the file" in refusal(path)


@pytest.mark.parametrize("large", [False, True])
def test_a_long_list_of_members_is_refused_before_it_is_read(tmp_path: Path, large: bool) -> None:
    path = make_zip(tmp_path / "x.pt")
    data = path.read_bytes()
    entry = data[data.rindex(b"PK\x01\x02") : data.rindex(b"PK\x05\x06")]
    entries = entry * (17 * 2**20 // len(entry))
    start, end = data.index(b"PK\x01\x02"), bytearray(data[-22:])
    record = b""
    if large:
        numbers = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 3, 3, len(entries), start)
        place = struct.pack("<IQI", 0, start + len(entries), 1)
        record = b"PK\x06\x06" + numbers + b"PK\x06\x07" + place
        struct.pack_into("<I", end, 12, 0)
    else:
        struct.pack_into("<I", end, 12, len(entries))
    path.write_bytes(data[:start] + entries + record + end)
    tracemalloc.start()
    try:
        assert "list of members" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < ENOUGH_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("other/data.pkl", b"")], "found 2"),
        ([("archive/byteorder", b"big")], "little-endian"),
    ],
)
def test_a_zip_of_another_make_is_refused(
    tmp_path: Path, extra: list[tuple[str, bytes]], message: str
) -> None:
    assert message in refusal(make_zip(tmp_path / "x.pt", extra=extra))


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.pt")
    data = bytearray(path.read_bytes())
    data[data.index(VALUES.tobytes())] ^= 1
    path.write_bytes(data)
    assert "CRC" in refusal(path)


@pytest.mark.parametrize("kept", [0, 1, 30, 100, 0.5, 0.9, -1, -22])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "x.pt"
    data = (g2c.ARTIFACT / "model.pt").read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refusal(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "x.pt")
    refusal(tmp_path)


# --- Anything at all -----------------------------------------------------------------------------


def _small_file(folder: Path) -> bytes:
    pickled = b"\x80\x02}(" + text("a") + tensor() + text("b") + b"](K\1N\x88eu."
    return make_zip(folder / "small.pt", pickled).read_bytes()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path: Path, changes: list[tuple[float, bytes, int]]
) -> None:
    data = _small_file(tmp_path)
    for place, inserted, removed in changes:
        start = int(place * len(data))
        data = data[:start] + inserted + data[start + removed :]
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    read_or_refuse(path)


OPCODES = [
    bytes([code]) for code in b"(]})abceghjlopqrstuxNJKMXQR0.\x80\x85\x86\x87\x88\x8a\x93\x94"
]
PIECES = [
    *OPCODES,
    tensor(),
    storage(),
    HOOKS,
    TENSOR,
    text("a"),
    b"K\1",
    b"q\0",
    b"h\0",
    b"j\0\0\0\0",
]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_a_pickle_of_random_pieces_is_read_or_refused_and_nothing_else(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    path = make_zip(tmp_path / "x.pt", b"\x80\x02" + b"".join(pieces) + b".")
    read_or_refuse(path)


def test_many_tensors_over_one_memory_are_refused_before_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied tensors lie in a file once and become two; thousands of them would fill the memory."""
    file = tmp_path / "pytorch_model.bin"
    shared = np.zeros(1000, np.float32)
    write_torch_zip(file, {"w": shared})
    for count, fits in ((2, True), (3, False)):
        content = {f"w{n}": shared for n in range(count)}
        monkeypatch.setattr(archive, "read_torch_zip", lambda path, found=content: found)
        if fits:
            assert len(archive.read_state_dict(file)) == count
        else:
            with pytest.raises(UsageError, match="its tensors overlap: 12000 bytes"):
                archive.read_state_dict(file)


def test_a_tensor_without_numbers_has_no_side_beyond_an_array_s() -> None:
    with pytest.raises(ValueError, match="does not fit its storage of 0 elements"):
        view("Float", np.zeros(0, "<f4"), 0, (2**47, 0), (0, 1))


@pytest.mark.parametrize("command", ["convert", "train", "generate"])
@pytest.mark.parametrize(
    ("value", "data"),
    [
        (tensor(of=storage(count=2**47)), VALUES.tobytes()),
        (tensor((0, 2**47), (1, 1)), VALUES.tobytes()),
        (tensor((2**47, 0), (1, 1), of=storage(count=0)), b""),
    ],
    ids=["a storage", "an empty tensor", "an empty storage"],
)
def test_sides_beyond_any_memory_end_a_command_in_one_line(
    tmp_path: Path, value: bytes, data: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(ORACLE, model, ignore=shutil.ignore_patterns("*.safetensors"))
    make_zip(model / "pytorch_model.bin", state_dict(value), data=data)
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[{"prompt": "p", "chosen": "a", "rejected": "b"}]')
    more = {
        "convert": [str(model), str(tmp_path / "out")],
        "train": ["--model", str(model), "--data", str(pairs), "--out", str(tmp_path / "out")],
        "generate": ["--model", str(model), "--prompt", "Who?"],
    }
    with pytest.raises(SystemExit) as ended:
        main([command, *more[command]])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pytorch_model.bin: refused: " in error
    assert not (tmp_path / "out").exists()
