"""Reading InsightFace's pickled pair files without unpickling them.

A benchmark `.bin` is a pickle of (list of encoded images, list of flags). Unpickling runs whatever
a file asks for, so this module interprets the opcodes itself: it can build lists, tuples, byte
strings, text, integers and booleans, and knows a few constructors by name, each with its arguments
checked. No object is imported, called or patched on a file's behalf; everything else is refused.

The constructors are those that files in circulation contain: byte strings as Python 3 writes them
in protocol 2 (`_codecs.encode`), and NumPy's uint8 arrays, booleans and integers (from
`cv2.imencode`, or flags kept in an array).
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field

MAX_OPCODES = 2_000_000  # 20 000 pairs of NumPy arrays take about 1.2 million
MAX_DIMENSIONS = 3
MAX_MEMO_INDEX = MAX_OPCODES

_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_PYTHON_2_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}

_ENCODE = "_codecs encode"
_BYTES_TYPE = {"builtins bytes", "__builtin__ bytes", "builtins bytearray", "__builtin__ bytearray"}
_NDARRAY = "numpy ndarray"
_DTYPE = "numpy dtype"
_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_SCALAR = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar"}
_FROM_BUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}
KNOWN_NAMES = {_ENCODE, _NDARRAY, _DTYPE} | _BYTES_TYPE | _RECONSTRUCT | _SCALAR | _FROM_BUFFER

# NumPy's type codes of plain booleans and integers, and their sizes in bytes.
_ITEM_SIZES = {"b1": 1, "u1": 1, "i1": 1, "u2": 2, "i2": 2, "u4": 4, "i4": 4, "u8": 8, "i8": 8}


class RefusedFile(ValueError):
    """The file is broken, or holds something other than images and flags."""


class _Mark:
    """Where a list or tuple begins on the stack."""


@dataclass(frozen=True)
class _Name:
    """A constructor that the file refers to: only its name, never the thing itself."""

    name: str


@dataclass
class _Dtype:
    """A NumPy dtype: its type code."""

    code: str


@dataclass
class Array:
    """A NumPy array as written: its raw little-endian content."""

    shape: tuple[int, ...] = ()
    code: str = "u1"
    content: bytes = b""

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.content) // _ITEM_SIZES[self.code]

    def values(self) -> list[bool] | list[int]:
        """Elements in order, as Python booleans or integers."""
        size = _ITEM_SIZES[self.code]
        if self.code == "b1":
            return [byte != 0 for byte in self.content]
        return [
            int.from_bytes(self.content[i : i + size], "little", signed=self.code[0] == "i")
            for i in range(0, len(self.content), size)
        ]


def read_plain_pickle(content: bytes) -> object:
    """Interpret a pickle that consists of plain values.

    Args:
        content: the pickle, protocol 1 to 5 (protocol 0 has no binary strings).

    Returns:
        Nested lists and tuples of bytes, str, bool, int, None and Array.

    Raises:
        RefusedFile: anything else inside, or a broken or truncated file. Nothing has been executed.
    """
    machine = _Machine(budget=len(content))
    try:
        for count, (opcode, argument, _position) in enumerate(pickletools.genops(content)):
            if count >= MAX_OPCODES:
                raise RefusedFile(f"it has more than {MAX_OPCODES} pickle opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except RefusedFile:
        raise
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeError) as error:
        raise RefusedFile(f"it is broken or truncated ({error})") from error
    raise RefusedFile("it is truncated (no end of the pickle)")


@dataclass
class _Machine:
    """The pickle stack machine, restricted to plain values.

    Attributes:
        budget: characters of text that may still be encoded. Honest files encode no more than they
            hold; a small one that encodes one remembered text many times would.
    """

    budget: int
    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def pop(self) -> object:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise RefusedFile("it is broken (a value is missing)")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        items: list[object] = []
        while self.stack:
            item = self.stack.pop()
            if isinstance(item, _Mark):
                return items[::-1]
            items.append(item)
        raise RefusedFile("it is broken (a list has no beginning)")

    def remember(self, index: int) -> None:
        if not 0 <= index <= MAX_MEMO_INDEX or not self.stack:
            raise RefusedFile("it is broken (impossible memo entry)")
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[object]) -> None:
        if not self.stack or not isinstance(self.stack[-1], list):
            raise RefusedFile("it is broken (elements without a list)")
        self.stack[-1].extend(items)

    def step(self, name: str, argument: object) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _INTEGERS or name in _TEXT:
            self.stack.append(argument)
        elif name in _BYTES and isinstance(argument, (bytes, bytearray)):
            self.stack.append(bytes(argument))
        elif name in _PYTHON_2_BYTES:
            self.stack.append(str(argument).encode("latin-1"))
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name == "MARK":
            self.stack.append(_Mark())
        elif name == "LIST":
            self.stack.append(self.pop_to_mark())
        elif name == "TUPLE":
            self.stack.append(tuple(self.pop_to_mark()))
        elif name in _SHORT_TUPLES:
            items = [self.pop() for _ in range(_SHORT_TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        elif name == "APPEND":
            item = self.pop()
            self.extend([item])
        elif name == "APPENDS":
            self.extend(self.pop_to_mark())
        elif name in _PUT:
            self.remember(int(str(argument)))
        elif name == "MEMOIZE":
            self.remember(len(self.memo))
        elif name in _GET:
            self.stack.append(self.memo[int(str(argument))])
        elif name == "GLOBAL":
            self.stack.append(_known(str(argument)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.stack.append(_known(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, constructor = self.pop(), self.pop()
            self.stack.append(_construct(constructor, arguments))
            if isinstance(arguments, tuple) and arguments and isinstance(arguments[0], str):
                self.budget -= len(arguments[0])
            if self.budget < 0:
                raise RefusedFile("it would grow beyond its own size")
        elif name == "BUILD":
            state = self.pop()
            if not self.stack:
                raise RefusedFile("it is broken (a value is missing)")
            _set_state(self.stack[-1], state)
        else:
            raise RefusedFile(f"it uses the opcode {name}, which images and flags never need")


def _known(name: str) -> _Name:
    if name not in KNOWN_NAMES:
        raise RefusedFile(f"it asks for {name.replace(' ', '.')!r}, which is no image and no flag")
    return _Name(name)


def _construct(constructor: object, arguments: object) -> object:
    """The plain value that a known constructor stands for."""
    name = constructor.name if isinstance(constructor, _Name) else ""
    match arguments:
        case (str() as text, "latin1" | b"latin1" | "latin-1") if (
            name == _ENCODE or name in _BYTES_TYPE
        ):
            return text.encode("latin-1")
        case () if name in _BYTES_TYPE:
            return b""
        case (bytes() as content,) if name in _BYTES_TYPE:
            return content
        case (str() | bytes() as code, *_) if name == _DTYPE:
            return _Dtype(_type_code(code))
        case (_Name(name=class_name), tuple(), bytes() | str()) if (
            name in _RECONSTRUCT and class_name == _NDARRAY
        ):
            return Array()
        case (_Dtype(code=code), bytes() as content) if name in _SCALAR:
            return _array((1,), code, content).values()[0]
        case (bytes() as content, _Dtype(code=code), tuple() as shape, "C" | b"C") if (
            name in _FROM_BUFFER
        ):
            return _array(shape, code, content)
    described = repr(name.replace(" ", ".")) if name else "something that is no constructor"
    raise RefusedFile(f"it calls {described} with arguments that images and flags never have")


def _type_code(code: str | bytes) -> str:
    start = code[:8]  # the whole of it may be huge
    text = start.decode("latin-1") if isinstance(start, bytes) else start
    if text.lstrip("<|") not in _ITEM_SIZES:
        raise RefusedFile(f"it holds a NumPy array of type {text!r}, not of plain integers")
    return text.lstrip("<|")


def _set_state(target: object, state: object) -> None:
    """Fill an array from the state tuple that NumPy writes; a dtype's state adds nothing here."""
    match target, state:
        case _Dtype(), (int(), "<" | "|" | b"<" | b"|", None, None, None, *_):
            return
        case Array(), (int(), tuple() as shape, _Dtype(code=code), False | 0, bytes() as content):
            filled = _array(shape, code, content)
            target.shape, target.code, target.content = filled.shape, filled.code, filled.content
            return
    raise RefusedFile("it sets the state of something that is no plain NumPy array")


def _array(shape: tuple[object, ...], code: str, content: bytes) -> Array:
    n = 1
    sizes: list[int] = []
    if len(shape) > MAX_DIMENSIONS:
        raise RefusedFile(f"it holds a NumPy array of {len(shape)} dimensions")
    for size in shape:
        if not isinstance(size, int) or not 0 <= size <= len(content):
            raise RefusedFile("it holds a NumPy array of an impossible shape")
        sizes.append(size)
        n *= size
    if n * _ITEM_SIZES[code] != len(content):
        raise RefusedFile("it holds a NumPy array whose content does not fill its shape")
    return Array(tuple(sizes), code, content)
