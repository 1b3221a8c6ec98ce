"""Locates arrays in pickles without running the pickle.

A pickle is a program for a stack machine. The machine here supports only the instructions that build numpy arrays. It
imports nothing and calls nothing: a global is only a name, which is refused unless it is in `NAMES`. Values stay in the
file: the result records where they lie, so that a slice of them can be mapped.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moe_probe.checkpoint.lazy import itemsize_of
from moe_probe.errors import DamagedFile, UnsafeFile, reason

# every global that pickles of numpy arrays, ml_dtypes' bfloat16 and Grok-1's weights name (numpy 1 and 2, protocols
# 0 to 5), and the word that represents it below
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "array of buffer",
    "numpy._core.numeric _frombuffer": "array of buffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "ml_dtypes bfloat16": "bfloat16",
    "_codecs encode": "encode",
    "copy_reg _reconstructor": "new object",
    "__builtin__ object": "object",
    "__main__ QuantizedWeight8bit": "quantized",
}
KINDS = {"f4": "float32", "i1": "int8", "bfloat16": "bfloat16"}
DAMAGE = (ValueError, TypeError, LookupError, OSError, OverflowError, struct.error)


class Payload(NamedTuple):
    """The range of bytes of the file that holds the values of an array."""

    start: int
    length: int


class Name(str):
    """A global of the pickle, represented by its word in `NAMES`."""


@dataclass
class DType:
    """A `numpy.dtype`; `code` is its first argument."""

    code: str


@dataclass
class Array:
    """A `numpy.ndarray`, as its pickle describes it.

    Attributes:
        data: where the values lie in the file; the bytes themselves in protocols 0 to 2, which escape them.
        fortran: whether the first index varies fastest.
    """

    shape: tuple[int, ...] = ()
    kind: str | None = None
    fortran: bool = False
    data: Payload | bytes = b""

    def check(self) -> None:
        """Raises ValueError unless the number of values matches the shape."""
        length = self.data.length if isinstance(self.data, Payload) else len(self.data)
        if not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise ValueError(f"an array of shape {self.shape}")
        if self.kind is None or math.prod(self.shape) * itemsize_of(self.kind) != length:
            raise ValueError(f"{length} bytes for an array of shape {self.shape}, {self.kind}")


class Quantized(dict):
    """Grok-1's `QuantizedWeight8bit`: a dict of `weight` and `scales`."""


def read_pickle(path: Path) -> Array | Quantized:
    """Returns the array, or the quantized weight, in a file; its values stay in the file (see `Array.data`).

    Raises:
        DamagedFile: the pickle is truncated, or holds something else.
        UnsafeFile: the pickle names a global that is not in `NAMES`.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = Machine(path, mapped).run()
        if not isinstance(content, Array | Quantized):
            raise ValueError(f"it holds a {type(content).__name__}, not an array")
        for array in content.values() if isinstance(content, Quantized) else [content]:
            array.check()
    except (*DAMAGE, AttributeError) as error:
        raise DamagedFile(f"{path} is truncated or damaged ({reason(error)}); download it again.") from error
    return content


class Machine:
    """Pickle's stack machine, without the instructions that run code."""

    def __init__(self, path: Path, file: mmap.mmap):
        self.path, self.file = path, file
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Executes the pickle up to STOP; returns the object on top of the stack."""
        while True:
            opcode = pickletools.code2op.get(self.file.read(1).decode("latin1"))  # pyright: ignore[reportAttributeAccessIssue]
            if opcode is None:
                raise ValueError("an unknown instruction, or no end")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"):
                self.stack.append(self.skip({"SHORT_BINBYTES": 1, "BINBYTES": 4}.get(opcode.name, 8)))
            else:
                self.step(opcode.name, None if opcode.arg is None else opcode.arg.reader(self.file))

    def skip(self, width: int) -> Payload:
        """Steps over bytes whose length is stored in `width` bytes; returns where they lie."""
        length = int.from_bytes(self.file.read(width), "little")
        payload = Payload(self.file.tell(), length)
        self.file.seek(length, 1)  # ValueError past the end
        return payload

    def step(self, opcode: str, argument: Any) -> None:  # noqa: C901 - a case for each instruction
        """Executes one instruction that is neither STOP nor a payload."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1":
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(opcode[-1]) if opcode[-1].isdigit() else 0)))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_pairs(self.pop_to_mark()))
            case "SETITEM":
                items = _pairs(self.pop(2))
                stack[-1].update(items)
            case "SETITEMS":
                items = _pairs(self.pop_to_mark())
                stack[-1].update(items)
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.name(argument))
            case "STACK_GLOBAL":
                stack.append(self.name(" ".join(self.pop(2))))
            case "NEWOBJ" | "REDUCE":
                stack.append(_call(*self.pop(2)))
            case "BUILD":
                _build(*self.pop(2, keep=1))
            case _:
                raise ValueError(f"the instruction {opcode}, which no pickle of an array has")

    def pop(self, count: int, keep: int = 0) -> list[Any]:
        """Pops and returns the last `count` objects; the first `keep` of them stay on the stack."""
        start = len(self.stack) - count
        if start < 0:
            raise ValueError("an instruction without its operands")
        popped = self.stack[start:]
        del self.stack[start + keep :]
        return popped

    def pop_to_mark(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def name(self, name: str) -> Name:
        if name not in NAMES:
            raise UnsafeFile(
                f"{self.path} is not a plain pickle of arrays: it names {name.replace(' ', '.')}, code that it wants "
                "to run, which is refused; use the published file."
            )
        return Name(NAMES[name])


def _pairs(items: list[Any]) -> dict[str, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    """Returns what a call of a global creates, including `copyreg`'s `cls.__new__(cls)`."""
    match function, arguments:
        case Name("array"), (Name("ndarray"), _, _):
            return Array()
        case Name("array of buffer"), (data, DType(code), tuple(shape), order):
            return Array(shape, KINDS[code], order == "F", data)
        case Name("dtype"), (str(code), *_):
            return DType(code)
        case Name("encode"), (str(text), "latin1"):
            return text.encode("latin1")
        case Name("quantized"), ():
            return Quantized()
        case Name("new object"), (Name("quantized"), Name("object"), None):
            return Quantized()
    raise ValueError("a call that builds no array")


def _build(target: Any, state: Any) -> None:
    """Sets the state of an object, as `target.__setstate__(state)` would."""
    match target, state:
        case Array(), (_, tuple(shape), DType(code), fortran, data):
            target.shape, target.kind, target.fortran, target.data = shape, KINDS[code], bool(fortran), data
        case DType(), (_, str(byteorder), *_) if byteorder != ">":
            pass
        case Quantized(), {"weight": Array(), "scales": Array()} if len(state) == 2:
            target.update(state)
        case _:
            raise ValueError("a state that fits no array")
