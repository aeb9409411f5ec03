"""The estimate of a model's memory: by hand, and against what llama.cpp itself allocates."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rigbus.agents.models.engine.llama import BATCH_TOKENS, DEFAULT_CTX
from rigbus.agents.models.gguf.model import Recurrent, read_gguf
from rigbus.agents.models.gguf.vram import (
    CELL_STEP,
    MIB,
    STEP_TOKENS,
    check_fits,
    estimate_vram_mb,
)
from rigbus.agents.models.gguf.vram import DEFAULT_CTX as ASSUMED_CTX
from rigbus.agents.models.host import ModelHost
from rigbus.bus.errors import DefinitionError

from .. import gguf_files as g


@pytest.fixture
def info(tmp_path):
    """Layers of about 1.8 MB, heads of 32 numbers, a quarter of them for keys and values."""
    return read_gguf(g.write_llama(tmp_path / "m.gguf", layers=4, width=256, heads=8, heads_kv=2))


def test_the_engine_is_assumed_as_it_is():
    assert (STEP_TOKENS, ASSUMED_CTX) == (BATCH_TOKENS, DEFAULT_CTX)


def test_the_cache_is_that_of_the_heads_for_keys_and_values(info):
    found = estimate_vram_mb(info, ctx=4096)
    assert found.kv_mb == 2 * 4 * 2 * 32 * 4096 * 2 / MIB
    assert estimate_vram_mb(info, ctx=4096, kv_bytes=1).kv_mb == found.kv_mb / 2
    assert estimate_vram_mb(info, ctx=4096, parallel=64) == found, "requests share the cache"
    assert estimate_vram_mb(info, ctx=4000).kv_mb == found.kv_mb, "llama.cpp rounds it up"
    assert estimate_vram_mb(replace(info, heads_kv=(0, 2, 0, 2)), ctx=4096).kv_mb == found.kv_mb / 2


def test_without_a_context_it_is_that_of_the_engine(info):
    assert estimate_vram_mb(info).ctx == 4096
    assert estimate_vram_mb(replace(info, context_length=2048)).ctx == 2048


def test_the_embedding_is_on_the_card_only_where_it_is_the_output(info):
    whole = info.tensor_bytes / MIB
    embedding = info.input_bytes / MIB
    assert estimate_vram_mb(info).weights_mb == pytest.approx(whole - embedding)
    assert estimate_vram_mb(info, gpu=False).weights_mb == pytest.approx(whole)
    assert estimate_vram_mb(replace(info, tied=True)).weights_mb == pytest.approx(whole)


@pytest.mark.parametrize(
    ("gpu_layers", "layers", "output"), [(0, 0, 0), (1, 0, 1), (3, 2, 1), (5, 4, 1), (-1, 4, 1), (99, 4, 1)]
)
def test_layers_that_stay_away_from_the_card_cost_it_nothing(info, gpu_layers, layers, output):
    found = estimate_vram_mb(info, ctx=4096, gpu_layers=gpu_layers)
    assert found.weights_mb * MIB == layers * info.layer_bytes[0] + output * info.output_bytes
    assert found.kv_mb == layers * 2 * 2 * 32 * 4096 * 2 / MIB
    assert (found.total_mb == 0) == (gpu_layers == 0)


def test_recurrent_layers_keep_a_state_for_each_request_and_no_cache(info):
    mixed = replace(info, heads_kv=(0, 0, 2, 0), recurrent=Recurrent(per_layer=1 << 20))
    one, eight = (estimate_vram_mb(mixed, ctx=4096, parallel=n) for n in (1, 8))
    cache = 2 * 2 * 32 * 4096 * 2 / MIB
    assert (one.kv_mb - cache, eight.kv_mb - cache) == (3 * 4, 8 * 3 * 4)
    pure = estimate_vram_mb(replace(mixed, heads_kv=()), ctx=4096)
    assert pure.token_kb == 0
    assert pure.largest_ctx(10_000) == 4096


def test_a_context_that_is_too_large_is_refused_with_one_that_fits(info):
    found = estimate_vram_mb(info, ctx=131_072)
    with pytest.raises(DefinitionError, match=r"model m: \d+ MB are needed .* 131072 tokens") as caught:
        check_fits(found, 100, model="m", place="card 3")
    said = str(caught.value)
    assert "card 3 has 100 MB free" in said
    for part in (found.weights_mb, found.kv_mb, found.compute_mb):
        assert f" {part:.0f}" in said
    match = re.search(r"ctx = (\d+) would fit", said)
    assert match is not None
    largest = int(match[1])
    assert largest % CELL_STEP == 0
    check_fits(estimate_vram_mb(info, ctx=largest), 100, model="m")
    with pytest.raises(DefinitionError):
        check_fits(estimate_vram_mb(info, ctx=largest + 2 * CELL_STEP), 100, model="m")


def test_where_no_context_would_help_that_is_said(info):
    with pytest.raises(DefinitionError, match="smaller model or quantization"):
        check_fits(estimate_vram_mb(info), 3, model="m")


def test_each_card_of_a_pair_computes_for_itself(info):
    found = estimate_vram_mb(info)
    pair = [found.on_card_mb(0.5), found.on_card_mb(0.5)]
    assert sum(pair) >= found.total_mb + found.compute_mb - 2


# -- against llama.cpp ---------------------------------------------------------------------------------------

SHAPES = [
    {"layers": 4, "width": 256, "heads": 8, "heads_kv": 2, "vocab": 1000, "ctx": 4096},
    {"layers": 6, "width": 768, "heads": 12, "heads_kv": 4, "vocab": 32_000, "ctx": 8192},
    {"layers": 2, "width": 512, "heads": 8, "heads_kv": 8, "vocab": 50_000, "ctx": 16_384, "tied": True},
]


@pytest.mark.llm
@pytest.mark.parametrize("shape", SHAPES, ids=["small", "grouped", "tied"])
def test_the_estimate_is_what_llama_cpp_allocates(tmp_path: Path, shape: dict[str, int]) -> None:
    path = g.write_llama(tmp_path / "m.gguf", **shape)
    ctx = shape["ctx"]
    found = estimate_vram_mb(read_gguf(path), ctx=ctx, gpu=False)
    log = tmp_path / "model.log"
    host = ModelHost(path, ctx=ctx, log_path=log)
    try:
        host.load(60)
        resident_mb = rss_mb(host.pid or 0)
    finally:
        host.close()
    said = {
        what: float(size)
        for what, size in re.findall(r"(model|KV|compute) buffer size =\s*([\d.]+) MiB", log.read_text())
    }
    assert found.weights_mb == pytest.approx(said["model"], abs=0.1)
    assert found.kv_mb == pytest.approx(said["KV"], abs=0.1)
    # llama.cpp finds room for the mask in what other moments of a step have used, or does not.
    assert said["compute"] - 0.1 <= found.compute_mb <= said["compute"] + 2 * STEP_TOKENS * ctx / MIB + 0.1
    # Python, llama.cpp's code and its vocabulary are beside it; a page that was never written is not resident.
    assert said["model"] + said["KV"] < resident_mb < found.total_mb + 120


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024
