"""Vectors of a real llama.cpp: the same that llama.cpp's own pooling gives, in pieces, beside texts that are generated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from modelparts import Make, first_text, usage_of, write_tiny_gguf

from rigbus.agents.models.protocol import EmbedRequest, GenerateRequest, Queued, Usage, Vector
from rigbus.bus.errors import DefinitionError

pytestmark = pytest.mark.llm
TEXTS = ["a fox", "<|im_end|> is text, too", "a longer text about a dog and an owl " * 6]
#: llama.cpp's own pooling through llama-cpp-python's class, in a process of its own. It reads control tokens as such,
#: so that the one text that looks like one is left out.
REFERENCE = """
import json, sys, llama_cpp
llama = llama_cpp.Llama(sys.argv[1], embedding=True, n_ctx=512, verbose=False, pooling_type=int(sys.argv[2]))
print(json.dumps([llama.embed(text, normalize=True) for text in json.loads(sys.argv[3])]))
"""


@pytest.mark.parametrize("pooling", [None, 1, 2, 3], ids=["none named", "mean", "cls", "last"])
def test_vectors_are_pooled_as_the_file_says_else_their_mean(
    make: Make, tmp_path: Path, pooling: int | None
) -> None:
    path = write_tiny_gguf(tmp_path / "pool.gguf", pooling=pooling)
    vectors = make(path).embed(TEXTS).vectors
    plain = [vectors[0], vectors[2]]
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(path), str(pooling or 1), json.dumps([TEXTS[0], TEXTS[2]])],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for vector, expected in zip(plain, json.loads(done.stdout), strict=True):
        assert vector == pytest.approx(expected, abs=2e-3)


def test_a_model_whose_file_makes_no_vectors_says_so(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "rank.gguf", pooling=4))
    with pytest.raises(DefinitionError, match=r"embed: model rank .* makes no vectors"):
        host.embed(["x"])
    assert host.ready


def test_a_model_that_only_reads_is_refused_when_it_loads(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "encoder.gguf", causal=False))
    with pytest.raises(DefinitionError, match=r"encoder\.gguf only reads .*; give one of these"):
        host.load(30)


def test_a_text_longer_than_the_context_is_named_by_its_index(make: Make) -> None:
    host = make(ctx=256)
    with pytest.raises(
        DefinitionError, match=r"embed: texts\[1\] has 600 tokens; 1 to 255 go into one vector"
    ):
        host.embed(["short", "x" * 600])
    assert len(host.embed(["x" * 255]).vectors) == 1


def test_a_text_is_the_same_vector_alone_and_in_company_and_in_pieces(make: Make) -> None:
    host = make(ctx=2048, parallel=4)
    texts = [f"{n} " * 40 * (n + 1) for n in range(9)]
    together = host.embed(texts).vectors
    for text, vector in zip(texts, together, strict=True):
        assert host.embed([text]).vectors[0] == pytest.approx(vector, abs=2e-3)


def test_texts_are_generated_while_others_are_embedded(make: Make) -> None:
    host = make(ctx=8192)
    running = host.generate(GenerateRequest(prompt="go on", max_tokens=7000))
    first_text(running)
    embedding = host.embedding(EmbedRequest(texts=["some words " * 20] * 20))
    # Each is given a step in turn: neither waits for the other's end.
    assert isinstance(next(embedding), Vector)
    first_text(running)
    assert len([item for item in embedding if isinstance(item, Vector)]) == 19
    first_text(running)
    running.cancel()
    assert usage_of(running).finish == "cancelled"


def test_who_waits_to_be_embedded_hears_its_place(make: Make) -> None:
    host = make(parallel=1)
    host.load(30)
    first = host.embedding(EmbedRequest(texts=["some words " * 20] * 300))
    assert isinstance(next(first), Vector)
    second = host.embedding(EmbedRequest(texts=["x"]))
    assert second.poll(10) == Queued(0)
    first.cancel()
    items = list(second)
    assert [type(item) for item in items] == [Vector, Usage]
