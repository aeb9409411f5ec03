"""A placement becomes a model: what is checked before anything is loaded, and what its worker offers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.models.catalogue.entries import Entry
from rigbus.agents.models.catalogue.opening import available_mb, check_memory, offer_of, open_model
from rigbus.agents.models.host import ModelHost
from rigbus.agents.models.remote import RemoteModel
from rigbus.bus.errors import DefinitionError

from .. import gguf_files as g


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """A cache of 4 KB a token beside some 8 MB of weights."""
    path = g.write_llama(tmp_path / "m.gguf", layers=4, width=256, heads=8, heads_kv=2)
    return Entry(name="m", path=str(path), ctx=1 << 20)


def card(index: int, total: int, used: int | None = 0) -> GpuReading:
    return GpuReading(index=index, memory_total_mb=total, memory_used_mb=used)


def test_a_context_that_does_not_fit_the_machine_is_refused_with_the_largest_that_does(entry: Entry) -> None:
    with pytest.raises(
        DefinitionError, match=r"model m: \d+ MB .*this machine has 200 MB free; ctx = \d+ would fit"
    ):
        check_memory(entry, (), free_mb=200)
    check_memory(entry, (), free_mb=8000)


def test_the_weights_of_a_mapped_file_need_no_memory_of_the_machine(tmp_path: Path) -> None:
    path = g.write_llama(tmp_path / "w.gguf", layers=16, width=2048, heads=16, heads_kv=4)
    wide = Entry(name="w", path=str(path), ctx=512)
    check_memory(wide, (), free_mb=300)
    with pytest.raises(DefinitionError, match="card 0 has 300 MB free"):
        check_memory(wide, [card(0, 400, 100)])


def test_cards_count_together_and_silent_ones_are_believed(entry: Entry) -> None:
    check_memory(entry, [card(0, 6000), card(3, 6000)])
    with pytest.raises(DefinitionError, match="card 0, 3"):
        check_memory(entry, [card(0, 1000), card(3, 1000)])
    check_memory(entry, [card(0, 1000), card(3, 1000, None)])


def test_what_it_took_before_is_believed_before_an_estimate(entry: Entry) -> None:
    measured = replace(entry, vram_source="measured", vram_mb=900)
    check_memory(measured, [card(0, 1000)])
    for other in (replace(measured, vram_mb=1100), replace(measured, vram_source="estimate")):
        with pytest.raises(DefinitionError, match="card 0 has 1000 MB free"):
            check_memory(other, [card(0, 1000)])


def test_available_memory_is_that_of_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 8000 kB\nMemAvailable:    2048 kB\n")
    assert available_mb(file) == 2.0
    file.write_text("MemAvailable: much\n")
    assert available_mb(file) is None
    assert available_mb(tmp_path / "none") is None


def test_a_spec_opens_a_file_or_a_server(entry: Entry) -> None:
    small = Entry(name="m", path=entry.path, ctx=512)
    host = open_model(small.to_map(), None, ())
    assert isinstance(host, ModelHost)
    assert host.name == "m"
    remote = open_model(Entry(name="far", url="http://127.0.0.1:9/v1", remote_model="q").to_map(), None, ())
    assert isinstance(remote, RemoteModel)
    assert (remote.name, remote.remote_name) == ("far", "q")
    for model in (host, remote):
        model.close()


@pytest.mark.parametrize(
    "spec", [{}, {"name": "m"}, {"name": "m", "path": 7}, {"name": "m", "path": "/x", "url": "y"}]
)
def test_what_is_no_models_spec_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(DefinitionError, match="placement"):
        open_model(spec, None, ())


def test_what_a_worker_offers_of_its_model() -> None:
    spec = Entry(name="m", path="/m", tier=2).to_map()
    types, needs = offer_of(spec)
    assert types == ("generate", "parse", "decide", "embed")
    assert needs == ("model:m", "tier:1", "tier:2", "placement:single_gpu", "role:worker")
    assert "model:qwen" in offer_of(spec | {"also": ["qwen"]})[1]
    assert "decide" not in offer_of(spec | {"brain_elsewhere": True})[0]
    assert "decide" in offer_of(spec | {"role": "brain", "brain_elsewhere": False})[0]


@pytest.mark.llm
def test_shares_of_cards_are_handed_to_llama(tiny: Path) -> None:
    both = Entry(name="pair", path=str(tiny), ctx=512, split=("0", "3"), tensor_split=(2.0, 1.0))
    model = open_model(both.to_map(), None, ())
    try:
        assert model.load(30).name == "pair"
    finally:
        model.close()
    with pytest.raises(DefinitionError, match="tensor_split"):
        Entry(name="m", path="/m", split=("0", "3"), tensor_split=(-1.0, 1.0)).load_options()
