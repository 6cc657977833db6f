"""Reads the pickle of a PyTorch checkpoint with a machine that can build tensors and nothing else; it opens no file.

Python's own unpickler calls whatever a pickle names. This one knows the few instructions that `torch.save` uses and the
names in `pickle_values`; any other is refused, with its name, and nothing is ever imported or called. Every value that
it builds is one of its own or a plain number, text, list, tuple or dictionary: a hostile pickle can only be refused.
"""

import reprlib
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flexref.errors import CheckpointError
from flexref.storage.checkpoint.pickle_values import NAMES, STORAGE_TYPES, Named, PickledTensor, Storage, view

LARGEST_PICKLE_BYTES = 1 << 21
"""Bounds what is read; OPT-175B in one file needs 0.3 MB."""

MOST_INSTRUCTIONS = 1 << 19
"""Bounds the values that a pickle can build, most by an instruction each; OPT-175B in one file needs some 50,000."""


def tensors_of(pickle: bytes, source: str) -> dict[str, PickledTensor]:
    """The tensors by name of the dictionary that `pickle` builds; other values in it are left out.

    `CheckpointError` begins with `source` and names whatever is refused.
    """
    if len(pickle) > LARGEST_PICKLE_BYTES:
        raise CheckpointError(f"{source}: its pickle has {len(pickle)} bytes, at most {LARGEST_PICKLE_BYTES} are read")
    machine = _Machine(pickle)
    try:
        found = machine.run()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{source}: its pickle is damaged at byte {machine.position}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{source}: holds a {type(found).__name__}, needed a dictionary of tensors")
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, PickledTensor)}


class _Machine:
    """One run of the pickle instructions; the stack and the memo hold the values named above and nothing else."""

    def __init__(self, pickle: bytes) -> None:
        self._pickle = pickle
        self.position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle builds."""
        for _ in range(MOST_INSTRUCTIONS):
            code = self._take(1)
            if code == b".":
                return self._stack.pop()
            step = _INSTRUCTIONS.get(code)
            if step is None:
                raise CheckpointError(f"its pickle has the instruction {code!r}, which building tensors does not need")
            step(self)
        raise CheckpointError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")

    def _take(self, count: int) -> bytes:
        taken = self._pickle[self.position : self.position + count]
        if len(taken) != count:
            raise IndexError("the pickle ends here")
        self.position += count
        return taken

    def _unpack(self, form: str) -> int:
        (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(number)

    def _line(self) -> str:
        end = self._pickle.find(b"\n", self.position)
        if end < 0:
            raise IndexError("a line without end")
        line = self._pickle[self.position : end]
        self.position = end + 1
        return line.decode("utf-8")

    def _above_mark(self) -> list[Any]:
        first = self._marks.pop()
        values = self._stack[first:]
        del self._stack[first:]
        return values

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def text(self, form: str) -> None:
        """A text that follows its length, which has the given form."""
        self.push(self._take(self._unpack(form)).decode("utf-8"))

    def number(self, form: str) -> None:
        """An integer of the given form."""
        self.push(self._unpack(form))

    def long(self) -> None:
        """An integer that follows its length of one byte."""
        self.push(int.from_bytes(self._take(self._unpack("<B")), "little", signed=True))

    def real(self) -> None:
        """A number of 8 bytes."""
        self.push(struct.unpack(">d", self._take(8))[0])

    def skip(self, count: int) -> None:
        """Bytes that say nothing to this machine: a protocol's number, a frame's length."""
        self._take(count)

    def mark(self) -> None:
        """Remember the height of the stack."""
        self._marks.append(len(self._stack))

    def put(self, form: str) -> None:
        """Remember the top of the stack under a number."""
        self._memo[self._unpack(form)] = self._stack[-1]

    def memoize(self) -> None:
        """Remember the top of the stack under the next number."""
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, form: str) -> None:
        """Push what was remembered under a number."""
        self.push(self._memo[self._unpack(form)])

    def tuple_of(self, count: int) -> None:
        """A tuple of the upper `count` values."""
        if count > len(self._stack):
            raise IndexError("the stack is too short")
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self.push(values)

    def tuple_above_mark(self) -> None:
        """A tuple of the values above the mark."""
        self.push(tuple(self._above_mark()))

    def append(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        target = self._stack[-1]
        if not isinstance(target, list):
            raise CheckpointError(f"its pickle appends to a {type(target).__name__}")
        target.extend(values)

    def append_one(self) -> None:
        """Append the top of the stack to the list below it."""
        self.append([self._stack.pop()])

    def append_above_mark(self) -> None:
        """Append the values above the mark to the list below it."""
        self.append(self._above_mark())

    def assign(self, pairs: list[Any]) -> None:
        """Set keys and values in the dictionary on top of the stack."""
        target = self._stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise CheckpointError(f"its pickle sets items of a {type(target).__name__}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # a deep tuple as a key would exhaust the stack of Python itself
                raise CheckpointError(f"its pickle has a {type(key).__name__} as a key")
            target[key] = value

    def assign_one(self) -> None:
        """Set one key and value."""
        value, key = self._stack.pop(), self._stack.pop()
        self.assign([key, value])

    def assign_above_mark(self) -> None:
        """Set the keys and values above the mark."""
        self.assign(self._above_mark())

    def name(self, module: str, name: str) -> None:
        """A name: one of the few, or refused."""
        found = NAMES.get((module, name))
        if found is None:
            raise CheckpointError(
                f"refused: its pickle asks for {reprlib.repr(f'{module}.{name}')}; "
                "a checkpoint of tensors needs no such thing, and nothing of it was run"
            )
        self.push(found)

    def name_in_lines(self) -> None:
        """A name as two lines of text."""
        self.name(self._line(), self._line())

    def name_on_stack(self) -> None:
        """A name as two values of the stack."""
        name, module = self._stack.pop(), self._stack.pop()
        self.name(str(module) if isinstance(module, str) else "", str(name) if isinstance(name, str) else "")

    def storage(self) -> None:
        """The storage that a persistent id describes: ("storage", its type, its key, its device, its elements)."""
        described = self._stack.pop()
        match described:
            case ("storage", Named("storage", kind), str(key), str(), int(elements)) if elements >= 0:
                dtype, itemsize = STORAGE_TYPES[kind]
                self.push(Storage(dtype, itemsize, key, elements))
            case _:
                raise CheckpointError(f"its pickle describes no storage: {reprlib.repr(described)}")

    def call(self) -> None:
        """What a name makes of its arguments."""
        arguments, callee = self._stack.pop(), self._stack.pop()
        match callee, arguments:
            case Named("dictionary"), ():
                self.push({})
            case Named("tensor"), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
                self.push(view(storage, offset, shape, strides))
            case Named("parameter"), (PickledTensor() as tensor, *_):
                self.push(tensor)
            case _:
                raise CheckpointError(f"its pickle calls {reprlib.repr(callee)} with {reprlib.repr(arguments)}")

    def set_state(self) -> None:
        """Attributes of a dictionary (`torch` keeps its modules' versions there), which say nothing to this machine."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise CheckpointError(f"its pickle sets the state of a {type(self._stack[-1]).__name__}")


_INSTRUCTIONS: Mapping[bytes, Callable[[_Machine], None]] = MappingProxyType(
    {
        b"\x80": lambda machine: machine.skip(1),
        b"\x95": lambda machine: machine.skip(8),
        b"(": _Machine.mark,
        b"N": lambda machine: machine.push(None),
        b"\x88": lambda machine: machine.push(True),
        b"\x89": lambda machine: machine.push(False),
        b"K": lambda machine: machine.number("<B"),
        b"M": lambda machine: machine.number("<H"),
        b"J": lambda machine: machine.number("<i"),
        b"\x8a": _Machine.long,
        b"G": _Machine.real,
        b"X": lambda machine: machine.text("<I"),
        b"\x8c": lambda machine: machine.text("<B"),
        b")": lambda machine: machine.push(()),
        b"\x85": lambda machine: machine.tuple_of(1),
        b"\x86": lambda machine: machine.tuple_of(2),
        b"\x87": lambda machine: machine.tuple_of(3),
        b"t": _Machine.tuple_above_mark,
        b"]": lambda machine: machine.push([]),
        b"a": _Machine.append_one,
        b"e": _Machine.append_above_mark,
        b"}": lambda machine: machine.push({}),
        b"s": _Machine.assign_one,
        b"u": _Machine.assign_above_mark,
        b"q": lambda machine: machine.put("<B"),
        b"r": lambda machine: machine.put("<I"),
        b"\x94": _Machine.memoize,
        b"h": lambda machine: machine.get("<B"),
        b"j": lambda machine: machine.get("<I"),
        b"c": _Machine.name_in_lines,
        b"\x93": _Machine.name_on_stack,
        b"Q": _Machine.storage,
        b"R": _Machine.call,
        b"b": _Machine.set_state,
    }
)
