"""A model's own description: the header of its GGUF file (and of its further parts) in terms of layers, heads and bytes."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ....bus.errors import DefinitionError
from .ggml import FILE_TYPES, TENSOR_TYPES
from .header import MAX_TENSORS, Header, Kept, Tensor, parse_header

MAX_PARTS: Final = 1000
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """Sizes of the state that a recurrent layer keeps for each sequence, in numbers (float32)."""

    per_layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufInfo:
    """A model as its header describes it. 0 and "" stand for what the header does not say.

    ``size_bytes`` is that of all ``parts`` files, ``tensor_bytes`` that of their tensors. ``heads`` and ``heads_kv`` have an
    entry for each layer; 0 in ``heads_kv`` is a layer without attention (a recurrent one). ``layer_bytes`` is the weights of
    each layer, ``input_bytes`` those of the token embedding, ``output_bytes`` those of all else; where the output has no
    tensor of its own (``tied``) it is the embedding again.
    """

    path: str
    architecture: str
    name: str = ""
    parameters: int = 0
    size_bytes: int = 0
    tensor_bytes: int = 0
    quantization: str = ""
    context_length: int = 0
    block_count: int = 0
    embedding_length: int = 0
    feed_forward_length: int = 0
    heads: tuple[int, ...] = ()
    heads_kv: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0
    vocab_size: int = 0
    sliding_window: int = 0
    chat_template: bool = False
    parts: int = 1
    layer_bytes: tuple[int, ...] = ()
    input_bytes: int = 0
    output_bytes: int = 0
    tied: bool = False
    recurrent: Recurrent | None = None


def read_gguf(path: Path) -> GgufInfo:
    """Read the header of a model, and of its further parts where it is split (``…-00001-of-00003.gguf``).

    A vocabulary of 150,000 takes some 30 ms.

    Raises:
        DefinitionError: a file is missing, no GGUF, cut short, or says what cannot be; with file, byte offset and fix.
    """
    part = _PART.search(path.name)
    if part and int(part[1]) != 1:
        raise DefinitionError(
            f"model {path}: part {int(part[1])} of a split model; name its first, {_part_name(path.name, 1, part[2])}"
        )
    first = _read_file(path)
    claimed = first.values.get("split.count", 1)
    count = claimed if isinstance(claimed, int) else 1
    if count > MAX_PARTS:
        raise DefinitionError(f"model {path}: it says that it has {count} parts; get the file again")
    if count > 1 and not (part and int(part[2]) == count):
        named = f"{path.stem}-00001-of-{count:05d}.gguf"
        raise DefinitionError(
            f"model {path}: the first of {count} parts, but not named so; call it {named}, and the others likewise"
        )
    others = [path.with_name(_part_name(path.name, n, f"{count:05d}")) for n in range(2, count + 1)]
    return _info(path, [first, *map(_read_file, others)])


def _part_name(name: str, number: int, of: str) -> str:
    return _PART.sub(f"-{number:05d}-of-{of}.gguf", name)


def _read_file(path: Path) -> Header:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise DefinitionError(f"model {path}: no regular file; give the path of a .gguf file")
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return parse_header(file, size, str(path))
    except OSError as e:
        raise DefinitionError(
            f"model {path}: {e.strerror or e}; give the path of a readable .gguf file"
        ) from e


# -- what the header means -----------------------------------------------------------------------------------


def _info(path: Path, parts: list[Header]) -> GgufInfo:
    header = parts[0]
    values = header.values
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise DefinitionError(
            f'model {path}: the header names no "general.architecture"; convert the model again'
        )

    def number(key: str) -> int:
        value = values.get(f"{architecture}.{key}", 0)
        return value if isinstance(value, int) and 0 <= value < 1 << 32 else 0

    layers = number("block_count")
    if layers > MAX_TENSORS:
        raise DefinitionError(f"model {path}: {layers} layers; get the file again")
    heads = _by_layer(values.get(f"{architecture}.attention.head_count"), layers, ())
    heads_kv = _by_layer(values.get(f"{architecture}.attention.head_count_kv"), layers, heads)
    feed = _by_layer(values.get(f"{architecture}.feed_forward_length"), layers, ())
    width = number("embedding_length")
    most = max(heads, default=0)
    each = width // most if most else 0
    tensors = [tensor for part in parts for tensor in part.tensors]
    inside = {"input": 0, "output": 0}
    by_layer = [0] * layers
    for tensor in tensors:
        _count_in(tensor, by_layer, inside)
    names = {tensor.name for tensor in tensors}
    name = values.get("general.name", "")
    return GgufInfo(
        path=str(path),
        architecture=architecture,
        name=name if isinstance(name, str) else "",
        parameters=sum(tensor.count for tensor in tensors),
        size_bytes=sum(part.size_bytes for part in parts),
        tensor_bytes=sum(by_layer) + sum(inside.values()),
        quantization=_quantization(values.get("general.file_type"), tensors),
        context_length=number("context_length"),
        block_count=layers,
        embedding_length=width,
        feed_forward_length=max(feed, default=0),
        heads=heads,
        heads_kv=heads_kv,
        key_length=number("attention.key_length") or each,
        value_length=number("attention.value_length") or each,
        vocab_size=header.lengths.get("tokenizer.ggml.tokens", 0) or number("vocab_size"),
        sliding_window=number("attention.sliding_window"),
        chat_template="tokenizer.chat_template" in values,
        parts=len(parts),
        layer_bytes=tuple(by_layer),
        input_bytes=inside["input"],
        output_bytes=inside["output"],
        tied="output.weight" not in names,
        recurrent=_recurrent(number, width),
    )


def _by_layer(value: Kept, layers: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """A number for all layers, or one for each."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 20:
        return (value,) * layers
    if isinstance(value, tuple) and len(value) >= layers and all(0 <= n < 1 << 20 for n in value):
        return value[:layers]
    return default


def _count_in(tensor: Tensor, by_layer: list[int], inside: dict[str, int]) -> None:
    size = tensor.size_bytes or 0
    block = re.match(r"blk\.(\d{1,6})\.", tensor.name)
    if block and int(block[1]) < len(by_layer):
        by_layer[int(block[1])] += size
    else:
        inside["input" if tensor.name.startswith("token_embd") else "output"] += size


def _quantization(file_type: Kept, tensors: list[Tensor]) -> str:
    """The file's own word (``Q4_K_M``), else the type that most of its weights have."""
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    sizes: dict[int, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.count
    if not sizes:
        return ""
    most = max(sizes, key=lambda kind: sizes[kind])
    return TENSOR_TYPES[most].name if most in TENSOR_TYPES else f"type {most}"


def _recurrent(number: Callable[[str], int], width: int) -> Recurrent | None:
    """Mamba: the last inputs of its convolution and its state; RWKV: two shifted tokens and a state per head."""
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    if inner and state:
        shifted = max(0, number("ssm.conv_kernel") - 1) * (inner + 2 * number("ssm.group_count") * state)
        return Recurrent(per_layer=shifted + inner * state)
    if head := number("wkv.head_size"):
        return Recurrent(per_layer=width * (2 + head))
    return None
