"""A reader of the pickles inside PyTorch files that executes nothing.

Python's own unpickler imports what a pickle names and calls it. This one is a small stack machine
over the opcodes PyTorch writes for plain data and tensors: names are looked up in a table of three
kinds of strings, nothing is imported, and every quantity a file could inflate has a limit. What is
not known is refused.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

from mlx_dpo.convert.torch_zip.tensors import DTYPES

MAX_BYTES = 16 * 2**20
MAX_OPCODES = 400_000
MAX_DEPTH = 32
_MAX_INT = 2**63

# What a pickle may name. None of it is ever imported.
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_STORAGES = {f"torch {kind}Storage": kind for kind in DTYPES}
ALLOWED_NAMES = frozenset({_DICT, _TENSOR, _PARAMETER, *_STORAGES})

# Given the name of a storage's type, its key and its number of elements.
OpenStorage = Callable[[str, str, int], Any]
# Given an opened storage, the offset, shape and strides, in elements.
MakeTensor = Callable[[Any, int, tuple[int, ...], tuple[int, ...]], Any]


class RefusedPickleError(ValueError):
    """A pickle holds what no checkpoint needs; nothing of it was executed."""


class _Name(str):
    """A name from the table, on the stack in place of the function or class."""


class _Storage:
    """An opened storage, on the stack until a tensor is made of it."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Mark:
    """Marks on the stack where a group of items begins."""


_MARK = _Mark()


def read_pickle(data: bytes, open_storage: OpenStorage, make_tensor: MakeTensor) -> Any:
    """Read plain data and tensors.

    Args:
        data: A pickle as `torch.save` writes it.
        open_storage: Finds the bytes of a storage.
        make_tensor: Makes a tensor of an opened storage.

    Returns:
        Dicts, lists, tuples, numbers, texts, booleans, None and what `make_tensor` returned.

    Raises:
        RefusedPickleError: For any other opcode, name or call, and beyond the limits. The message
            is one line.
    """
    if len(data) > MAX_BYTES:
        raise RefusedPickleError(f"its pickle has {len(data)} bytes, more than {MAX_BYTES}")
    machine = _Machine(open_storage, make_tensor)
    opcodes = pickletools.genops(io.BytesIO(data))
    for _ in range(MAX_OPCODES):
        try:
            opcode, argument, position = next(opcodes)
        except (ValueError, IndexError, OverflowError, StopIteration) as error:
            reason = (str(error) or "no end").splitlines()[0][:120]
            raise RefusedPickleError(f"its pickle is damaged: {reason}") from None
        if opcode.name == "STOP":
            return machine.result()
        machine.run(opcode.name, argument, position or 0)
    raise RefusedPickleError(f"its pickle has more than {MAX_OPCODES} opcodes")


class _Machine:
    """A stack, a memo, and a method for each opcode that is allowed."""

    def __init__(self, open_storage: OpenStorage, make_tensor: MakeTensor) -> None:
        self.open_storage = open_storage
        self.make_tensor = make_tensor
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # Depth of each dict, list and tuple by identity. Keeping the objects keeps those unique.
        self.depths: dict[int, tuple[int, Any]] = {}
        # Tuples with a name or storage somewhere inside, which only a call may take.
        self.internal: set[int] = set()

    def run(self, name: str, argument: Any, position: int) -> None:
        step = _STEPS.get(name)
        if step is None:
            raise RefusedPickleError(f"opcode {name} at byte {position} is not allowed")
        try:
            step(self, argument)
        except RefusedPickleError as error:
            raise RefusedPickleError(f"{error} (byte {position} of its pickle)") from None
        except (IndexError, TypeError, KeyError):
            raise RefusedPickleError(f"opcode {name} at byte {position} lacks its items") from None

    def result(self) -> Any:
        if len(self.stack) != 1 or self.is_internal(self.stack[0]):
            raise RefusedPickleError("its pickle does not end with one value")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_number(self, value: Any) -> None:
        if isinstance(value, int) and not -_MAX_INT <= value < _MAX_INT:
            raise RefusedPickleError("an integer of more than 64 bits")
        self.stack.append(value)

    def push_new(self, value: Any) -> None:
        self.depths[id(value)] = (1, value)
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedPickleError("a mark where an item belongs")
        return value

    def pop_group(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def is_internal(self, item: Any) -> bool:
        """Whether an item is machinery of the pickle and no value."""
        return isinstance(item, (_Name, _Storage, _Mark)) or id(item) in self.internal

    def refuse_internal(self, item: Any) -> None:
        if self.is_internal(item):
            raise RefusedPickleError("a function or storage where a value belongs")

    def hold(self, container: Any, item: Any) -> None:
        """Note that `item` lies inside `container`, which itself lies in nothing yet."""
        inner = self.depths.get(id(item), (0, None))[0]
        depth = max(self.depths[id(container)][0], inner + 1)
        if depth > MAX_DEPTH:
            raise RefusedPickleError(f"nested deeper than {MAX_DEPTH}")
        self.depths[id(container)] = (depth, container)

    def put(self, index: Any) -> None:
        index = len(self.memo) if index is None else index
        if index >= MAX_OPCODES:
            raise RefusedPickleError(f"memo index {index} is beyond {MAX_OPCODES}")
        value = self.stack[-1]
        if value is _MARK:
            raise RefusedPickleError("a mark where an item belongs")
        self.memo[index] = value

    def get(self, index: int) -> None:
        value = self.memo[index]
        # A dict inside itself, or a list that doubles forty times, starts with such a reference.
        if self.depths.get(id(value), (0,))[0] > isinstance(value, tuple):
            raise RefusedPickleError("a dict or list used in two places")
        self.stack.append(value)

    def make_tuple(self, items: list[Any]) -> None:
        group = tuple(items)
        self.depths.setdefault(id(group), (1, group))
        for item in group:
            self.hold(group, item)
            if self.is_internal(item):
                self.internal.add(id(group))
        self.stack.append(group)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedPickleError("an item appended to what is no list")
        for item in items:
            self.refuse_internal(item)
            self.hold(target, item)
            target.append(item)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedPickleError("an item set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise RefusedPickleError("a dict key that is neither text nor integer")
            if key in target:
                raise RefusedPickleError(f"the key {key!r:.100} twice in a dict")
            self.refuse_internal(value)
            self.hold(target, value)
            target[key] = value

    def name(self, text: str) -> None:
        if text not in ALLOWED_NAMES:
            raise RefusedPickleError(f"it names {text!r:.120}, which no checkpoint needs")
        self.stack.append(_Name(text))

    def stack_name(self) -> None:
        attribute, module = self.pop(), self.pop()
        self.name(f"{module!s:.200} {attribute!s:.200}")

    def storage(self) -> None:
        match self.pop():
            case ("storage", _Name() as kind, str() as key, str(), int() as count) if (
                kind in _STORAGES and type(count) is int and count >= 0
            ):
                self.stack.append(_Storage(self.open_storage(_STORAGES[kind], key, count)))
            case _:
                raise RefusedPickleError("a persistent id that is no storage")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case _Name(), () if function == _DICT:
                self.push_new({})
            case _Name(), (_Storage() as storage, int() as offset, shape, strides, bool(), {}) if (
                function == _TENSOR and _are_sizes((offset,)) and not arguments[5]
            ):
                if not (_are_sizes(shape) and _are_sizes(strides) and len(shape) == len(strides)):
                    raise RefusedPickleError("a tensor whose shape or strides are no sizes")
                self.stack.append(self.make_tensor(storage.content, offset, shape, strides))
            case _Name(), (data, bool(), {}) if function == _PARAMETER and not arguments[2]:
                self.refuse_internal(data)
                self.stack.append(data)
            case _:
                shown = function if isinstance(function, _Name) else type(function).__name__
                raise RefusedPickleError(f"a call of {shown} with arguments it does not take")

    def build(self) -> None:
        """Accept one state only: the version notes that a module's state dict carries."""
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, dict) or not isinstance(state, dict) or [*state] != ["_metadata"]:
            raise RefusedPickleError("a state set on an object")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _nothing(machine: _Machine, argument: Any) -> None:
    """Protocol numbers and frames say nothing about the value."""


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push_number),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.push(_MARK),
    "EMPTY_DICT": lambda m, _: m.push_new({}),
    "EMPTY_LIST": lambda m, _: m.push_new([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.make_tuple(m.pop_group()),
    "TUPLE1": lambda m, _: m.make_tuple([m.pop()]),
    "TUPLE2": lambda m, _: m.make_tuple([m.pop(), m.pop()][::-1]),
    "TUPLE3": lambda m, _: m.make_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_group()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_group()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda m, _: m.stack_name(),
    "BINPERSID": lambda m, _: m.storage(),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
}
