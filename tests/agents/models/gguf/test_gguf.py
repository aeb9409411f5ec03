"""Reading a GGUF header: what a whole one says, and that no file, however broken, does more than be refused."""

from __future__ import annotations

import os
import runpy
import struct
import tracemalloc
from pathlib import Path
from time import process_time

import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.agents.models.gguf.ggml import FILE_TYPES, TENSOR_TYPES
from rigbus.agents.models.gguf.header import MAX_HEADER_BYTES, MAX_ITEMS, MAX_KEYS, MAX_TENSORS, WINDOW_BYTES
from rigbus.agents.models.gguf.model import read_gguf
from rigbus.bus.errors import DefinitionError

from .. import gguf_files as g

write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
ARCH = g.pair("general.architecture", g.STRING, "llama")


def written(folder: Path, data: bytes, name: str = "m.gguf") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# -- whole files ---------------------------------------------------------------------------------------------


def test_a_whole_model_is_described(tmp_path):
    path = g.write_llama(tmp_path / "m.gguf", layers=3, width=256, heads=8, heads_kv=2, feed=512, vocab=1000)
    info = read_gguf(path)
    assert (info.architecture, info.name, info.quantization) == ("llama", "zeros", "F16")
    assert (info.block_count, info.context_length, info.embedding_length) == (3, 8192, 256)
    assert (info.heads, info.heads_kv, info.key_length, info.value_length) == ((8,) * 3, (2,) * 3, 32, 32)
    assert (info.vocab_size, info.feed_forward_length, info.parts) == (1000, 512, 1)
    layer = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512 + 2 * 256
    assert info.parameters == 3 * layer + 2 * 256 * 1000 + 256
    norms = 2 * 256 * 2  # of a layer's numbers those are of four bytes, not two
    assert info.layer_bytes == (2 * layer + norms,) * 3
    assert (info.input_bytes, info.output_bytes) == (2 * 256_000, 2 * 256_000 + 4 * 256)
    assert info.tensor_bytes == sum(info.layer_bytes) + info.input_bytes + info.output_bytes
    assert info.size_bytes == path.stat().st_size
    assert not info.chat_template
    assert not info.tied
    assert info.recurrent is None


def test_no_output_tensor_means_that_the_embedding_is_the_output(tmp_path):
    assert read_gguf(g.write_llama(tmp_path / "m.gguf", tied=True)).tied


def test_version_2_is_read_too(tmp_path):
    path = g.write_llama(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    assert read_gguf(written(tmp_path, bytes(data), "two.gguf")).architecture == "llama"


def test_heads_may_differ_by_layer_and_keys_stand_in_any_order(tmp_path):
    """A hybrid: layers without attention have 0 heads; the architecture is named last."""
    pairs = [
        g.pair("granitehybrid.attention.head_count_kv", g.ARRAY, (g.U32, [0, 4, 0])),
        g.pair("granitehybrid.attention.head_count", g.U32, 8),
        g.pair("granitehybrid.attention.key_length", g.U32, 96),
        g.pair("granitehybrid.attention.value_length", g.U32, 64),
        g.pair("granitehybrid.embedding_length", g.U64, 512),
        g.pair("granitehybrid.block_count", g.U16, 3),
        g.pair("granitehybrid.ssm.conv_kernel", g.U32, 4),
        g.pair("granitehybrid.ssm.inner_size", g.U32, 1024),
        g.pair("granitehybrid.ssm.state_size", g.U32, 128),
        g.pair("granitehybrid.ssm.group_count", g.U32, 1),
        g.pair("tokenizer.chat_template", g.STRING, "{{ messages }}" * 1000),
        g.pair("general.architecture", g.STRING, "granitehybrid"),
    ]
    info = read_gguf(written(tmp_path, g.header(pairs)))
    assert (info.heads, info.heads_kv) == ((8, 8, 8), (0, 4, 0))
    assert (info.key_length, info.value_length, info.chat_template) == (96, 64, True)
    assert info.recurrent is not None
    assert info.recurrent.per_layer == 3 * (1024 + 2 * 128) + 1024 * 128


def test_the_state_of_an_rwkv_is_known(tmp_path):
    pairs = [g.pair("general.architecture", g.STRING, "rwkv7"), g.pair("rwkv7.block_count", g.U32, 2)]
    pairs += [g.pair("rwkv7.embedding_length", g.U32, 768), g.pair("rwkv7.wkv.head_size", g.U32, 64)]
    info = read_gguf(written(tmp_path, g.header(pairs)))
    assert info.heads_kv == ()
    assert info.recurrent is not None
    assert info.recurrent.per_layer == 768 * 66


def test_without_a_word_of_its_own_the_quantization_is_that_of_most_weights(tmp_path):
    shapes = {"token_embd.weight": ((64, 100), g.TYPE_F16), "blk.0.attn_q.weight": ((64, 640), g.TYPE_Q8_0)}
    path = g.write(tmp_path / "m.gguf", [ARCH, g.pair("llama.block_count", g.U32, 1)], shapes)
    info = read_gguf(path)
    assert info.quantization == "Q8_0"
    assert info.layer_bytes == (64 * 640 // 32 * 34,)


def test_a_type_of_tomorrow_is_no_reason_to_refuse(tmp_path):
    tensor = g.tensor("blk.0.ffn_up.weight", (64, 64), 99, 0)
    info = read_gguf(written(tmp_path, g.header([ARCH], [tensor]) + bytes(4096)))
    assert (info.quantization, info.parameters, info.tensor_bytes) == ("type 99", 4096, 0)


@pytest.mark.llm
def test_what_the_gguf_package_writes_is_read_and_its_numbers_are_ours(tmp_path):
    import gguf

    info = read_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert (info.name, info.vocab_size, info.quantization) == ("tiny", 260, "F32")
    assert (info.chat_template, info.parameters) == (True, 115_520)
    assert info.tensor_bytes == 4 * 115_520
    theirs = {int(t): (t.name, *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    assert {n: tuple(TENSOR_TYPES[n]) for n in TENSOR_TYPES.keys() & theirs} == {
        n: theirs[n] for n in TENSOR_TYPES.keys() & theirs
    }
    assert len(TENSOR_TYPES.keys() & theirs) > 25
    names = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in gguf.LlamaFileType}
    assert all(FILE_TYPES[n] == names[n] for n in FILE_TYPES.keys() & names)


def test_a_vocabulary_of_150000_is_stepped_over_quickly_and_without_memory(tmp_path):
    tokens = [f"token{n}" for n in range(150_000)]
    pairs = [
        ARCH,
        g.pair("tokenizer.ggml.tokens", g.ARRAY, (g.STRING, tokens)),
        g.pair("tokenizer.ggml.token_type", g.ARRAY, (g.I32, [1] * 150_000)),
        g.pair("tokenizer.ggml.merges", g.ARRAY, (g.STRING, tokens)),
        g.pair("llama.block_count", g.U32, 7),
    ]
    path = written(tmp_path, g.header(pairs))
    took = []
    for _ in range(5):
        began = process_time()
        info = read_gguf(path)
        took.append(process_time() - began)
    assert (info.vocab_size, info.block_count) == (150_000, 7)
    assert min(took) < 0.2, "50 ms are asked for; a busy machine may be slower"
    tracemalloc.start()
    read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * WINDOW_BYTES


def test_strings_may_end_anywhere_in_the_window(tmp_path):
    """Around the window's end: within a length, at the end of a string, and a string longer than the window."""
    for extra in range(-9, 10):
        first = "x" * (WINDOW_BYTES - 150 + extra)
        words = [first, "a", "", "b" * 300, "c" * (2 * WINDOW_BYTES), "d"]
        pairs = [ARCH, g.pair("tokenizer.ggml.tokens", g.ARRAY, (g.STRING, words))]
        pairs += [g.pair("llama.block_count", g.U32, 9)]
        info = read_gguf(written(tmp_path, g.header(pairs)))
        assert (info.vocab_size, info.block_count) == (6, 9), extra


# -- split models --------------------------------------------------------------------------------------------


def split(folder: Path, count: int = 3) -> list[Path]:
    paths = []
    for n in range(1, count + 1):
        pairs = [ARCH, g.pair("llama.block_count", g.U32, 3), g.pair("split.count", g.U16, count)]
        shapes = {f"blk.{n - 1}.attn_q.weight": ((64, 64), g.TYPE_F32)}
        name = f"m-{n:05d}-of-{count:05d}.gguf"
        paths.append(g.write(folder / name, pairs if n == 1 else pairs[2:], shapes))
    return paths


def test_the_parts_of_a_split_model_are_counted_together(tmp_path):
    paths = split(tmp_path)
    info = read_gguf(paths[0])
    assert (info.parts, info.parameters, info.layer_bytes) == (3, 3 * 4096, (16384,) * 3)
    assert info.size_bytes == sum(path.stat().st_size for path in paths)


def test_a_part_that_is_missing_or_not_the_first_is_named(tmp_path):
    paths = split(tmp_path)
    with pytest.raises(
        DefinitionError, match=r"part 2 of a split model; name its first, m-00001-of-00003\.gguf"
    ):
        read_gguf(paths[1])
    paths[2].unlink()
    with pytest.raises(DefinitionError, match=r"m-00003-of-00003\.gguf: No such file"):
        read_gguf(paths[0])
    paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(DefinitionError, match=r"call it renamed-00001-of-00003\.gguf"):
        read_gguf(tmp_path / "renamed.gguf")


# -- broken files --------------------------------------------------------------------------------------------

Q = struct.Struct("<Q").pack
HUGE = 1 << 60


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "at byte 0: no GGUF file"),
        (b"GG", "at byte 0: no GGUF file"),
        (b"PK\x03\x04" + bytes(100), r"begins with b'PK.*give a \.gguf file"),
        (b"GGUF", "at byte 4: the version"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1; 2 and 3 are known; convert the model again"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "at byte 4: a big-endian GGUF; get the little-endian one"),
        (counts(0, 10**9), rf"1000000000 keys; at most {MAX_KEYS}"),
        (counts(10**9, 0), rf"1000000000 tensors; at most {MAX_TENSORS}"),
        (counts(0, 1), "at byte 24: a key of 8 bytes, but only 0 follow"),
        (counts(0, 1) + Q(HUGE), rf"at byte 24: a key of {HUGE} bytes; at most"),
        (counts(0, 1) + Q(900) + b"short", "a key of 900 bytes, but only 5 follow"),
        (g.header([ARCH + b""])[:-1], "at byte"),
        (counts(0, 1) + g.text("a.b") + struct.pack("<I", 77), "'a.b' has the type 77"),
        (counts(0, 1) + g.text("a.b") + struct.pack("<IQ", g.STRING, HUGE), f"'a.b' of {HUGE} bytes"),
        (
            counts(0, 1) + g.text("general.name") + struct.pack("<IQ", g.STRING, 2**64 - 1),
            "'general.name' of 18446744073709551615 bytes",
        ),
        (
            counts(0, 1) + g.text("a.b") + struct.pack("<IIQ", g.ARRAY, g.STRING, HUGE),
            rf"'a.b' has {HUGE} items; at most {MAX_ITEMS}",
        ),
        (
            counts(0, 1) + g.text("a.b") + struct.pack("<IIQ", g.ARRAY, g.STRING, 1 << 20),
            r"'a.b' of 8388608 bytes, but only 0 follow",
        ),
        (
            counts(0, 1) + g.text("a.b") + struct.pack("<IIQ", g.ARRAY, g.STRING, 3) + Q(HUGE) + bytes(64),
            "items of 'a.b'",
        ),
        (
            counts(0, 1)
            + g.text("a.b")
            + struct.pack("<IIQ", g.ARRAY, g.STRING, 3)
            + Q(2**64 - 1)
            + bytes(64),
            "items of 'a.b'",
        ),
        (
            counts(0, 1) + g.text("a.b") + struct.pack("<IIQ", g.ARRAY, g.ARRAY, 2) + bytes(64),
            "arrays in an array",
        ),
        (counts(0, 1) + g.text("a.b") + struct.pack("<IIQ", g.ARRAY, 13, 2) + bytes(64), "items of type 13"),
        (
            g.header([ARCH], [g.text("t") + struct.pack("<I", 5) + bytes(100)]),
            "tensor 't' has 5 dimensions",
        ),
        (
            g.header([ARCH], [g.tensor("t", (2**40, 2**40, 2**40, 2**40), g.TYPE_F32, 0)]),
            "tensor 't' of 1461501637330902918203684832716283019655932542976 numbers",
        ),
        (
            g.header([ARCH], [g.tensor("t", (4,), g.TYPE_F32, HUGE)]),
            f"in the middle of its tensors: it has 102 bytes, {HUGE + 144} are needed",
        ),
        (
            g.header([ARCH, g.pair("general.alignment", g.U32, 0)]),
            "an alignment of 0",
        ),
        (g.header([]), 'names no "general.architecture"'),
        (g.header([ARCH, g.pair("llama.block_count", g.U32, 4_000_000_000)]), "4000000000 layers"),
        (g.header([ARCH, g.pair("split.count", g.U32, 4_000_000_000)]), "4000000000 parts"),
    ],
)
def test_a_broken_header_is_refused_with_place_and_fix(tmp_path, data, said):
    path = written(tmp_path, data)
    with pytest.raises(DefinitionError, match=said) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert "; " in str(caught.value)


def test_a_download_that_broke_off_is_known_by_its_tensors(tmp_path):
    path = g.write_llama(tmp_path / "m.gguf")
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    with pytest.raises(
        DefinitionError, match=rf"it has {whole // 2} bytes, \d+ are needed; get the file again"
    ):
        read_gguf(path)


def test_what_is_no_file_is_refused_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, said in (
        ("none.gguf", "No such file"),
        (".", "no regular file"),
        ("pipe.gguf", "no regular file"),
    ):
        with pytest.raises(DefinitionError, match=said):
            read_gguf(tmp_path / path)


def test_a_file_of_holes_ends_soon(tmp_path):
    """Zeros are strings of no bytes: 65,536 arrays of them would take hours, in a file of few blocks."""
    array = g.text("a.b") + struct.pack("<IIQ", g.ARRAY, g.STRING, MAX_ITEMS)
    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        out.write(counts(0, MAX_KEYS))
        for _ in range(8):
            out.write(array)
            out.seek(MAX_ITEMS * 8, os.SEEK_CUR)
        out.truncate(1 << 40)
    began = process_time()
    with pytest.raises(DefinitionError, match=f"makes the header larger than {MAX_HEADER_BYTES}"):
        read_gguf(path)
    assert process_time() - began < 20


GOOD = g.header(
    [
        ARCH,
        g.pair("llama.block_count", g.U32, 2),
        g.pair("llama.attention.head_count_kv", g.ARRAY, (g.U32, [1, 2])),
        g.pair("tokenizer.ggml.tokens", g.ARRAY, (g.STRING, ["a", "bc", ""])),
        g.pair("general.name", g.STRING, "fuzz"),
    ],
    [g.tensor("blk.0.attn_q.weight", (4, 4), g.TYPE_F32, 0)],
)


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(GOOD) - 1),
            st.one_of(
                st.binary(min_size=1, max_size=9), st.integers(0, 2**64 - 1).map(Q), st.just(b"\xff" * 8)
            ),
        ),
        max_size=4,
    ),
    st.integers(0, len(GOOD) + 64),
)
def test_a_mutated_header_is_read_or_refused_and_nothing_else(tmp_path, changes, length):
    data = bytearray(GOOD + bytes(64))
    for at, new in changes:
        data[at : at + len(new)] = new
    path = written(tmp_path, bytes(data[:length]))
    tracemalloc.start()
    try:
        said = str(read_gguf(path))
    except DefinitionError as e:
        said = str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in said
    assert peak < 8 << 20
