"""What a GGUF file says of its model, read from the file's header alone: no llama.cpp, no numpy, no tensor data.

The file may be anybody's. Every number of it is held against the bytes that are there and a bound before it is believed;
long arrays (a vocabulary) are stepped over, so memory stays at one window of 256 KiB whatever the file claims. The file is
read, not mapped: one that shrinks meanwhile is an error here, and would be a SIGBUS there.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, NoReturn

from ....bus.errors import DefinitionError
from .ggml import TENSOR_TYPES, TensorType

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
WINDOW_BYTES: Final = 256 << 10
MAX_HEADER_BYTES: Final = 64 << 20  #: a vocabulary of 260,000 with its merges has about 16 MB
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_ITEMS: Final = 4 << 20  #: of one array; the longest known has some 500,000
MAX_KEPT: Final = 4096  #: numbers of an array, and characters of a string, that are kept
MAX_NAME_BYTES: Final = 1024  #: of a key or a tensor
MAX_COUNT_PER_BYTE: Final = (
    16  #: numbers that a tensor may have for each byte of its file; the smallest have 1.5 bits
)
MAX_DIMENSIONS: Final = 4
ALIGNMENT: Final = 32

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    number: struct.Struct("<" + letter)
    for number, letter in {
        **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
        **{10: "Q", 11: "q", 12: "d"},
    }.items()
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
#: Keys that are kept; the others are only stepped over. Those of the architecture without their first word.
_GENERAL: Final = frozenset({"general.architecture", "general.name", "general.file_type"}) | {
    "general.alignment",
    "split.count",
    "tokenizer.chat_template",
    "tokenizer.ggml.tokens",
}
_OF_ARCHITECTURE: Final = frozenset(
    {"context_length", "block_count", "embedding_length", "vocab_size", "feed_forward_length"}
) | {
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.sliding_window", "ssm.conv_kernel", "ssm.state_size", "ssm.inner_size", "ssm.group_count"),
    "wkv.head_size",
}
Kept = int | float | bool | str | tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the header. ``size_bytes`` is None for a type that this reader does not know."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size_bytes: int | None

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Header:
    """What of one file's header is kept."""

    values: dict[str, Kept] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  #: of the arrays that were stepped over
    tensors: list[Tensor] = field(default_factory=list)
    size_bytes: int = 0


class _Window:
    """A file read from front to end through a window; knows where in the file it is."""

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self.size, self._where = file, size, where
        self._data = b""
        self._at = 0  #: in the window
        self._base = 0  #: of the window in the file

    @property
    def offset(self) -> int:
        return self._base + self._at

    def refuse(self, what: str, fix: str = "get the file again", at: int | None = None) -> NoReturn:
        place = self.offset if at is None else at
        raise DefinitionError(f"model {self._where}: at byte {place}: {what}; {fix}")

    def need(self, count: int, what: str) -> None:
        """See to it that ``count`` bytes (at most a window) lie before us."""
        if len(self._data) - self._at >= count:
            return
        self.room(count, what)
        offset = self.offset
        self._data = self._data[self._at :]
        self._at, self._base = 0, offset
        while len(self._data) < count:
            self._file.seek(self._base + len(self._data))
            more = self._file.read(WINDOW_BYTES)
            if not more:
                self.refuse(f"the file ends in {what}")
            self._data += more

    def room(self, count: int, what: str) -> None:
        """Refuse a ``count`` of bytes that the file, or any header, does not have."""
        if count > self.size - self.offset:
            self.refuse(f"{what} of {count} bytes, but only {max(0, self.size - self.offset)} follow")
        if self.offset + count > MAX_HEADER_BYTES:
            self.refuse(f"{what} of {count} bytes makes the header larger than {MAX_HEADER_BYTES}")

    def number(self, form: struct.Struct, what: str) -> Any:
        self.need(form.size, what)
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return value

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        self._at += count
        return self._data[self._at - count : self._at]

    def skip(self, count: int, what: str) -> None:
        self.room(count, what)
        self._at += count
        if self._at > len(self._data):
            self._base, self._at, self._data = self.offset, 0, b""

    def skip_strings(self, count: int, what: str) -> None:
        """Step over ``count`` strings, each its length and its bytes. The hot loop: a vocabulary has 150,000."""
        unpack = _U64.unpack_from
        left = count
        while left:
            self.need(_U64.size, what)
            data, at = self._data, self._at
            n = 0
            try:
                for n in range(left):  # noqa: B007 (used where it breaks off)
                    at += 8 + unpack(data, at)[0]
                left = 0
            except (struct.error, OverflowError):  # the next length is not in this window, or nowhere
                left -= n
            self.skip(at - self._at, f"items of {what}")


def parse_header(file: BinaryIO, size: int, where: str) -> Header:
    """The header of an open file of ``size`` bytes; ``where`` names it in messages.

    Raises:
        DefinitionError: it is no GGUF, or says what cannot be; with byte offset and fix.
    """
    w = _Window(file, size, where)
    magic = w.take(4, "the magic number") if size >= 4 else b""
    if magic != MAGIC:
        w.refuse(f"no GGUF file (it begins with {magic!r})", "give a .gguf file", at=0)
    version = w.number(_U32, "the version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0 and version:
            w.refuse("a big-endian GGUF", "get the little-endian one", at=4)
        w.refuse(f"GGUF version {version}; 2 and 3 are known", "convert the model again", at=4)
    tensors = w.number(_U64, "the number of tensors")
    keys = w.number(_U64, "the number of keys")
    for count, most, what in ((tensors, MAX_TENSORS, "tensors"), (keys, MAX_KEYS, "keys")):
        if count > most:
            w.refuse(f"{count} {what}; at most {most}", at=8)
    header = Header(size_bytes=size)
    for _ in range(keys):
        _read_pair(w, header)
    for _ in range(tensors):
        header.tensors.append(_read_tensor(w))
    _check_ends(w, header)
    return header


def _text(w: _Window, what: str, most: int) -> str:
    length = w.number(_U64, what)
    if length > most:
        w.refuse(f"{what} of {length} bytes; at most {most}", at=w.offset - _U64.size)
    return w.take(length, what).decode("utf-8", "replace")


def _read_pair(w: _Window, header: Header) -> None:
    at = w.offset
    key = _text(w, "a key", MAX_NAME_BYTES)
    kind = w.number(_U32, f"the type of {key!r}")
    wanted = key in _GENERAL or key.partition(".")[2] in _OF_ARCHITECTURE
    value: Kept = None
    if kind in _SCALARS:
        value = w.number(_SCALARS[kind], f"{key!r}")
    elif kind == _STRING:
        value = _read_string(w, key, keep=wanted)
    elif kind == _ARRAY:
        value = _read_array(w, key, header, keep=wanted)
    else:
        w.refuse(f"{key!r} has the type {kind}, which GGUF does not know", at=at)
    if wanted and value is not None:
        header.values[key] = value


def _read_string(w: _Window, key: str, *, keep: bool) -> str | None:
    length = w.number(_U64, f"{key!r}")
    kept = min(length, MAX_KEPT) if keep else 0
    w.room(length, f"{key!r}")
    text = w.take(kept, f"{key!r}").decode("utf-8", "replace")
    w.skip(length - kept, f"{key!r}")
    return text if keep else None


def _read_array(w: _Window, key: str, header: Header, *, keep: bool) -> tuple[int, ...] | None:
    at = w.offset
    kind = w.number(_U32, f"{key!r}")
    count = w.number(_U64, f"{key!r}")
    if count > MAX_ITEMS:
        w.refuse(f"{key!r} has {count} items; at most {MAX_ITEMS}", at=at)
    if keep:
        header.lengths[key] = count
    if kind == _STRING:
        w.room(count * _U64.size, f"{key!r}")
        w.skip_strings(count, f"{key!r}")
        return None
    if kind not in _SCALARS:
        what = "arrays in an array" if kind == _ARRAY else f"items of type {kind}"
        w.refuse(f"{key!r} has {what}, which llama.cpp does not know", at=at)
    form = _SCALARS[kind]
    if not keep or count > MAX_KEPT or kind in {6, 12}:
        w.skip(count * form.size, f"{key!r}")
        return None
    data = w.take(count * form.size, f"{key!r}")
    return tuple(int(value) for (value,) in form.iter_unpack(data))


def _read_tensor(w: _Window) -> Tensor:
    at = w.offset
    name = _text(w, "a tensor's name", MAX_NAME_BYTES)
    dimensions = w.number(_U32, f"tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        w.refuse(f"tensor {name!r} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS}", at=at)
    shape = tuple(w.number(_U64, f"tensor {name!r}") for _ in range(dimensions))
    kind = w.number(_U32, f"tensor {name!r}")
    offset = w.number(_U64, f"tensor {name!r}")
    known: TensorType | None = TENSOR_TYPES.get(kind)
    count = math.prod(shape)
    if count > w.size * MAX_COUNT_PER_BYTE:
        w.refuse(f"tensor {name!r} of {count} numbers, in a file of {w.size} bytes", at=at)
    size = None if known is None else count // known.block * known.block_bytes
    return Tensor(name, shape, kind, offset, size)


def _check_ends(w: _Window, header: Header) -> None:
    """A download that broke off has a whole header: what is missing is the end of the last tensor."""
    alignment = header.values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        w.refuse(f"an alignment of {alignment!r}")
    start = -(-w.offset // alignment) * alignment
    needed = max((start + t.offset + (t.size_bytes or 0) for t in header.tensors), default=0)
    if needed > w.size:
        w.refuse(
            f"the file ends in the middle of its tensors: it has {w.size} bytes, {needed} are needed",
            at=w.size,
        )
