"""Writes GGUF files byte by byte, without the `gguf` package: whole ones with weights of zeros, and broken ones.

The weights are a hole in the file, so a model of a gigabyte is there at once and takes no disk; llama.cpp loads it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = {
    **{U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"},
    **{U64: "Q", I64: "q", F64: "d"},
}
TYPE_F32, TYPE_F16, TYPE_Q8_0 = 0, 1, 8
_BYTES = {TYPE_F32: (1, 4), TYPE_F16: (1, 2), TYPE_Q8_0: (32, 34)}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: Any) -> bytes:
    """One key with its value; ``value`` of ARRAY is (type of the items, items)."""
    head = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        of, items = value
        body = (
            b"".join(map(text, items)) if of == STRING else struct.pack(f"<{len(items)}{_FORMS[of]}", *items)
        )
        return head + struct.pack("<IQ", of, len(items)) + body
    return head + struct.pack("<" + _FORMS[kind], value)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(pairs: Sequence[bytes], tensors: Sequence[bytes] = (), *, version: int = 3) -> bytes:
    """The bytes before the tensors' data, not yet padded to the alignment."""
    return (
        b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    )


def write(path: Path, pairs: Sequence[bytes], shapes: Mapping[str, tuple[Sequence[int], int]]) -> Path:
    """A whole file: ``shapes`` are name -> (shape, type); the data is zeros."""
    offset, tensors = 0, []
    for name, (shape, kind) in shapes.items():
        tensors.append(tensor(name, shape, kind, offset))
        block, size = _BYTES[kind]
        count = 1
        for n in shape:
            count *= n
        offset += -(-count // block * size // 32) * 32
    data = header(pairs, tensors)
    with path.open("wb") as out:
        out.write(data)
        out.truncate(-(-len(data) // 32) * 32 + offset)
    return path


def llama_pairs(
    *, layers: int, width: int, heads: int, heads_kv: int, feed: int, ctx: int, vocab: Sequence[str]
) -> list[bytes]:
    """The keys of a llama with byte-level BPE."""
    return [
        pair("general.architecture", STRING, "llama"),
        pair("general.name", STRING, "zeros"),
        pair("general.file_type", U32, 1),
        pair("llama.context_length", U32, ctx),
        pair("llama.embedding_length", U32, width),
        pair("llama.block_count", U32, layers),
        pair("llama.feed_forward_length", U32, feed),
        pair("llama.attention.head_count", U32, heads),
        pair("llama.attention.head_count_kv", U32, heads_kv),
        pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        pair("llama.rope.dimension_count", U32, width // heads),
        pair("llama.vocab_size", U32, len(vocab)),
        pair("tokenizer.ggml.model", STRING, "gpt2"),
        pair("tokenizer.ggml.pre", STRING, "default"),
        pair("tokenizer.ggml.tokens", ARRAY, (STRING, vocab)),
        pair("tokenizer.ggml.token_type", ARRAY, (I32, [1] * len(vocab))),
        pair("tokenizer.ggml.merges", ARRAY, (STRING, ["t h"])),
        pair("tokenizer.ggml.bos_token_id", U32, len(vocab) - 1),
        pair("tokenizer.ggml.eos_token_id", U32, len(vocab) - 1),
    ]


def vocabulary(size: int) -> list[str]:
    """The 256 byte tokens of byte-level BPE, then words."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    tokens = [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]
    return tokens + ["th"] + [f"w{n}" for n in range(size - 257)]


def write_llama(
    path: Path,
    *,
    layers: int = 4,
    width: int = 256,
    heads: int = 8,
    heads_kv: int = 2,
    feed: int = 1024,
    ctx: int = 8192,
    vocab: int = 1000,
    kind: int = TYPE_F16,
    tied: bool = False,
) -> Path:
    """A llama of zeros that llama.cpp loads; grouped-query attention by default."""
    kv = width // heads * heads_kv
    shapes: dict[str, tuple[Sequence[int], int]] = {"token_embd.weight": ((width, vocab), kind)}
    shapes["output_norm.weight"] = ((width,), TYPE_F32)
    if not tied:
        shapes["output.weight"] = ((width, vocab), kind)
    for n in range(layers):
        for name, shape in {
            **{"attn_q": (width, width), "attn_k": (width, kv), "attn_v": (width, kv)},
            **{"attn_output": (width, width), "ffn_gate": (width, feed), "ffn_up": (width, feed)},
            **{"ffn_down": (feed, width), "attn_norm": (width,), "ffn_norm": (width,)},
        }.items():
            shapes[f"blk.{n}.{name}.weight"] = (shape, kind if len(shape) == 2 else TYPE_F32)
    pairs = llama_pairs(
        layers=layers,
        width=width,
        heads=heads,
        heads_kv=heads_kv,
        feed=feed,
        ctx=ctx,
        vocab=vocabulary(vocab),
    )
    return write(path, pairs, shapes)
