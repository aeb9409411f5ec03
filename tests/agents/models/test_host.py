"""One suite over every ``Model``; then what only a real llama.cpp in a real child can get wrong."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest
from helpers import Processes, wait_for
from modelparts import Make, alive, ask, first_text, write_tiny_gguf
from served import remote_of

from rigbus.agents.models.card_meter import Resident
from rigbus.agents.models.host import ModelHost, Patience
from rigbus.agents.models.protocol import (
    Chunk,
    EmbedRequest,
    GenerateRequest,
    GenerateResult,
    LoadOptions,
    Model,
    ModelClosed,
    ModelCrashed,
    Usage,
    Vector,
    collect,
)
from rigbus.agents.models.remote import RemoteModel
from rigbus.agents.models.scripted import ScriptedModel
from rigbus.bus.errors import DefinitionError, RigbusError, WaitTimeout

llm = pytest.mark.llm
LONG = " ".join(f"word{n}" for n in range(6000))


@pytest.fixture(scope="session")
def shared(tiny: Path) -> Iterator[ModelHost]:
    """One child for the tests that leave it as it was."""
    host = ModelHost(tiny, ctx=8192)
    yield host
    host.close()


@pytest.fixture(scope="session")
def shared_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelHost]:
    """One without a chat template."""
    host = ModelHost(write_plain(tmp_path_factory.mktemp("plain")), ctx=8192)
    yield host
    host.close()


def write_plain(folder: Path) -> Path:
    return write_tiny_gguf(folder / "plain.gguf", template=None)


KINDS = [
    "scripted",
    "remote-scripted",
    pytest.param("llama", marks=llm),
    pytest.param("llama-plain", marks=llm),
    pytest.param("remote-llama", marks=llm),
]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """Each implementation of the protocol; every request to it may become long."""
    shared = {"llama-plain": "shared_plain"}.get(request.param, "shared")
    yield from kind_of_model(request.param, lambda: request.getfixturevalue(shared))


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest) -> Iterator[Model]:
    """As ``model``, not loaded yet, for this test alone."""

    def llama() -> Model:
        make: Make = request.getfixturevalue("make")
        plain = request.param == "llama-plain"
        return make(write_plain(request.getfixturevalue("tmp_path")), ctx=8192) if plain else make(ctx=8192)

    yield from kind_of_model(request.param, llama)


def kind_of_model(kind: str, llama: Callable[[], Model]) -> Iterator[Model]:
    """A remote one is the other, behind our own endpoint: so each side of it meets the other."""
    model: Model = ScriptedModel([LONG] * 20) if kind.endswith("scripted") else llama()
    if kind.startswith("remote"):
        with remote_of(model) as remote:
            yield remote
    else:
        yield model


# ------------------------------------------------------------ every model


def test_a_loaded_model_is_ready_and_says_what_it_is(fresh: Model) -> None:
    assert not fresh.ready
    info = fresh.load(timeout_s=30)
    assert fresh.ready
    assert fresh.state.phase == "ready"
    assert info.name == fresh.name
    assert info.ctx >= 4096


@llm
def test_a_loaded_model_says_whose_process_holds_it_and_whether_that_may_use_a_card(make: Make) -> None:
    import llama_cpp

    built_for_cards = llama_cpp.llama_supports_gpu_offload()
    for layers, on_card in ((-1, built_for_cards), (0, False)):
        host = make(gpu_layers=layers)
        assert isinstance(host, Resident)
        assert (host.pid, host.on_card) == (None, False)
        host.load(timeout_s=30)
        assert host.pid is not None and alive(host.pid)
        assert host.on_card is on_card


def test_a_text_comes_in_chunks_and_ends_with_its_usage(model: Model) -> None:
    items = list(model.generate(GenerateRequest(prompt="hello", max_tokens=30, seed=1)))
    *chunks, usage = items
    assert isinstance(usage, Usage)
    assert len(chunks) > 3
    assert all(isinstance(c, Chunk) and c.text for c in chunks)
    assert usage.completion_tokens == 30
    assert usage.prompt_tokens >= 1
    assert usage.finish == "length"


def test_a_result_has_the_shape_of_a_generate_task(model: Model) -> None:
    value = ask(model, max_tokens=5, seed=1).to_map()
    assert sorted(value) == ["finish", "json", "model", "text", "timings", "usage"]
    assert sorted(value["usage"]) == ["cached_tokens", "completion_tokens", "prompt_tokens"]
    assert sorted(value["timings"]) == ["decode_s", "load_s", "prefill_s", "queued_s"]
    assert value["model"] == model.name
    assert value["json"] is None


def test_an_ended_generation_stays_ended(model: Model) -> None:
    generation = model.generate(GenerateRequest(prompt="hello", max_tokens=2))
    assert len(list(generation)) >= 1
    assert list(generation) == []
    generation.cancel()
    with pytest.raises(StopIteration):
        generation.poll(0.1)


def test_the_text_ends_before_a_stop_string(model: Model) -> None:
    whole = ask(model, max_tokens=200, seed=3).text
    stop = whole[40:44]
    stopped = ask(model, max_tokens=200, seed=3, stop=["never there", stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.usage.finish == "stop"


def test_messages_are_answered_like_a_prompt(model: Model) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    result = collect(model.generate(GenerateRequest(messages=messages, max_tokens=5)), model.name)
    assert result.usage.completion_tokens == 5


def test_a_cancel_ends_the_text_within_a_few_tokens(model: Model) -> None:
    generation = model.generate(GenerateRequest(prompt="hello", max_tokens=6000))
    first_text(generation)
    generation.cancel()
    *_, usage = generation
    assert isinstance(usage, Usage)
    assert usage.finish == "cancelled"
    assert usage.completion_tokens < 6000
    assert ask(model, max_tokens=3).usage.finish == "length", "the next request is served as ever"


def test_requests_from_several_threads_are_all_answered(model: Model) -> None:
    results: list[GenerateResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(ask(model, max_tokens=20, seed=5))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [r.usage.completion_tokens for r in results] == [20] * 5


def test_a_callback_that_fails_cancels_the_generation(model: Model) -> None:
    def fail(text: str) -> None:
        raise KeyError(text)

    with pytest.raises(KeyError):
        collect(model.generate(GenerateRequest(prompt="hello", max_tokens=6000)), model.name, on_text=fail)
    assert ask(model, max_tokens=3).usage.completion_tokens == 3


def test_a_closed_model_refuses_and_ends_what_runs(fresh: Model) -> None:
    running = fresh.generate(GenerateRequest(prompt="hello", max_tokens=6000))
    first_text(running)
    fresh.close()
    fresh.close()
    assert not fresh.ready
    assert fresh.state.phase == "closed"
    with pytest.raises(ModelClosed, match=fresh.name):
        list(running)
    with pytest.raises(ModelClosed):
        ask(fresh)
    with pytest.raises(ModelClosed):
        fresh.load(1)


def test_each_text_becomes_a_vector_of_length_one(model: Model) -> None:
    width = model.load(30).dimensions  # 0: a server does not say
    texts = ["a fox", "a dog and an owl", "a fox"]
    result = model.embed(texts)
    width = width or len(result.vectors[1])
    assert [len(vector) for vector in result.vectors] == [width] * 3
    assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-5) for vector in result.vectors)
    assert result.vectors[0] == pytest.approx(result.vectors[2], abs=1e-4)
    assert result.vectors[0] != pytest.approx(result.vectors[1], abs=1e-2)
    assert result.model == model.name
    assert result.usage.prompt_tokens >= 3
    value = result.to_map()
    assert sorted(value) == ["model", "timings", "usage", "vectors"]
    assert value["usage"] == {"prompt_tokens": result.usage.prompt_tokens}


def test_an_embedding_says_each_vector_and_ends_with_its_usage(model: Model) -> None:
    *vectors, usage = model.embedding(EmbedRequest(texts=[f"text {n}" for n in range(20)]))
    assert sorted(v.index for v in vectors if isinstance(v, Vector)) == list(range(20))
    assert isinstance(usage, Usage)
    assert (usage.finish, usage.completion_tokens) == ("stop", 0)


def test_a_cancelled_embedding_ends_early(model: Model) -> None:
    model.load(30)
    embedding = model.embedding(EmbedRequest(texts=["some words " * 20] * 60))
    assert isinstance(next(embedding), Vector)
    embedding.cancel()
    *vectors, usage = embedding
    assert isinstance(usage, Usage)
    at_once = isinstance(
        model, RemoteModel
    )  # a server's vectors are one answer: the cancel may come too late
    assert usage.finish == "cancelled" or at_once
    assert len(vectors) < 59 or at_once
    assert len(model.embed(["next"]).vectors) == 1


def test_a_closed_model_embeds_nothing(fresh: Model) -> None:
    assert len(fresh.embed(["x"]).vectors) == 1
    fresh.close()
    with pytest.raises(ModelClosed):
        fresh.embed(["x"])


# ------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "neither"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "both"),
        ({"messages": []}, "empty"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "temperature": -1.0}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**32}, "seed"),
        ({"prompt": "a", "stop": "abc"}, "stop"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "json_schema": ["object"]}, "json_schema"),
        ({"prompt": "a", "json_schema": {"enum": [b"x"]}}, "json_schema"),
        ({"prompt": "a", "json_schema": {"enum": ["x" * 70_000]}}, "json_schema"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(fields: dict[str, object], word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        GenerateRequest(**fields)  # type: ignore[arg-type]


def test_a_request_survives_the_pipe() -> None:
    request = GenerateRequest(prompt="a", max_tokens=3, temperature=0.0, seed=9, stop=["x", "y"])
    assert GenerateRequest(**request.to_map()).to_map() == request.to_map()


@pytest.mark.parametrize("field", ["ctx", "gpu_layers", "threads", "parallel"])
def test_a_load_option_out_of_range_is_named(field: str) -> None:
    with pytest.raises(DefinitionError, match=field):
        LoadOptions(path="x", name="x", **{field: -2})  # type: ignore[arg-type]


def test_a_scripted_model_remembers_what_it_was_asked() -> None:
    model = ScriptedModel(["yes", ModelCrashed("gone")])
    assert ask(model, "first").text == "yes"
    with pytest.raises(ModelCrashed, match="gone"):
        ask(model, "second")
    with pytest.raises(DefinitionError, match="request 3 has no answer"):
        ask(model, "third")
    model.add("at last")
    assert ask(model, "fourth").text == "at last"
    assert [r.prompt for r in model.asked] == ["first", "second", "third", "fourth"]


# ------------------------------------------------------------ files that are no model


def test_a_missing_file_is_a_definition_error_with_its_path(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"nowhere\.gguf: No such file .*; give the path"):
        make(tmp_path / "nowhere.gguf").load(10)


def test_a_file_that_is_no_gguf_is_a_definition_error(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("hello")
    host = make(path)
    with pytest.raises(DefinitionError, match="no GGUF"):
        host.load(10)
    with pytest.raises(DefinitionError, match="no GGUF"):
        ask(host)
    assert host.state.phase == "failed"


def test_without_llama_cpp_the_error_says_what_to_install(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr("rigbus.agents.models.files.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match=r"pip install 'rigbus\[llm\]'"):
        make(path).load(10)


@llm
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[:200_000], "not within the file bounds"),
        (lambda data: data[:3000], "cannot be loaded"),
        (lambda data: data[:20], "cannot be loaded"),
        (lambda data: data[:60] + b"\xff" * 2000 + data[2060:], "cannot be loaded"),
        (lambda data: data.replace(b"llama", b"ogre!"), "unknown model architecture: 'ogre!'"),
    ],
    ids=["truncated", "half a header", "tiny", "corrupt", "architecture"],
)
def test_a_damaged_model_is_a_definition_error_with_the_words_of_llama_cpp(
    make: Make, tiny: Path, tmp_path: Path, damage: Callable[[bytes], bytes], word: str
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(tiny.read_bytes()))
    host = make(path)
    with pytest.raises(DefinitionError, match=word):
        host.load(30)
    wait_for(lambda: host.pid is None, what="the end of the child")


@llm
def test_a_repaired_file_is_loaded_at_the_next_request(make: Make, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "repaired.gguf"
    path.write_bytes(tiny.read_bytes()[:5000])
    host = make(path)
    with pytest.raises(DefinitionError):
        ask(host)
    path.write_bytes(tiny.read_bytes())
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


@llm
def test_a_context_far_beyond_the_trained_one_is_a_definition_error(make: Make, tiny: Path) -> None:
    with pytest.raises(
        DefinitionError, match=r"trained with 8192; give at most 65536 as ctx \(\[models\.tiny\]"
    ):
        make(tiny, ctx=1_000_000).load(30)


# ------------------------------------------------------------ llama.cpp


@llm
def test_the_same_seed_gives_the_same_text_whatever_came_before(shared: ModelHost) -> None:
    first = ask(shared, "a prompt", max_tokens=80, seed=11).text
    other = ask(shared, "a prompt and more", max_tokens=80, seed=12).text
    assert ask(shared, "a prompt", max_tokens=80, seed=11).text == first != other
    greedy = [ask(shared, "a prompt", max_tokens=40, temperature=0.0).text for _ in range(2)]
    assert greedy[0] == greedy[1]
    unseeded = {ask(shared, "a prompt", max_tokens=40).text for _ in range(3)}
    assert len(unseeded) == 3


@llm
def test_every_chunk_is_whole_characters(shared: ModelHost) -> None:
    generation = shared.generate(GenerateRequest(prompt="hello", max_tokens=2000, seed=2))
    text = "".join(item.text.encode().decode() for item in generation if isinstance(item, Chunk))
    assert "\N{REPLACEMENT CHARACTER}" in text, "the tiny model writes bytes that are no text"
    assert any(ord(c) > 0x7F and c != "\N{REPLACEMENT CHARACTER}" for c in text), (
        "and characters of several bytes"
    )


@llm
def test_a_model_that_says_its_end_token_stops(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "ends.gguf", ends=True))
    result = ask(host, max_tokens=4000, seed=1)
    assert result.usage.finish == "stop"
    assert "<|im_end|>" not in result.text


@llm
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(make: Make) -> None:
    host = make(ctx=256)
    with pytest.raises(
        DefinitionError,
        match=r"the prompt has 1019 tokens, the context of model tiny holds 256 .*ctx \(\[models\.tiny\]",
    ):
        ask(host, "x" * 1000)
    with pytest.raises(DefinitionError, match="characters"):
        ask(host, "x" * (1 << 21))
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


@llm
def test_a_full_context_ends_the_text(make: Make) -> None:
    usage = ask(make(ctx=256), max_tokens=5000).usage
    assert usage.finish == "length"
    assert usage.prompt_tokens + usage.completion_tokens == 256


@llm
def test_a_model_without_a_chat_template_continues_the_prompt(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "plain.gguf", template=None))
    assert ask(host, "hello", max_tokens=2).usage.prompt_tokens == 5
    for messages, tokens in (
        ([("user", "hello")], 5),  # as the prompt
        (
            [("system", "be brief"), ("user", "hello")],
            len("System:\nbe brief\n\nUser:\nhello\n\nAssistant:\n"),
        ),
    ):
        given = [{"role": role, "content": content} for role, content in messages]
        result = collect(host.generate(GenerateRequest(messages=given, max_tokens=2)), host.name)
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (tokens, 2)
    with pytest.raises(DefinitionError, match="prompt is empty"):
        ask(host, "")


@llm
def test_a_chat_template_that_refuses_is_a_definition_error(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "strict.gguf", template="{{ raise_exception('no system here') }}"))
    with pytest.raises(DefinitionError, match="no system here"):
        ask(host)


@llm
def test_llama_cpp_speaks_to_its_log_only(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(log_path=tmp_path / "own.log").load(30)
    assert "llama" in (tmp_path / "own.log").read_text()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@llm
def test_a_prompt_is_cancelled_while_it_is_read(make: Make) -> None:
    host = make(ctx=8192)
    host.load(30)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)  # so that the request and its cancel arrive together
    generation = host.generate(GenerateRequest(prompt="x" * 8000, max_tokens=100))
    wait_for(lambda: generation.sent, what="the request to be sent")
    generation.cancel()
    wait_for(lambda: generation.cancel_by is not None, what="the cancel to be sent")
    os.kill(host.pid, signal.SIGCONT)
    [usage] = generation
    assert isinstance(usage, Usage)
    assert usage.finish == "cancelled"
    assert usage.completion_tokens == 0


# ------------------------------------------------------------ the child


@llm
def test_a_killed_child_fails_its_request_as_a_crash_and_is_started_again(make: Make) -> None:
    host = make()
    generation = host.generate(GenerateRequest(prompt="hello", max_tokens=4000))
    first_text(generation)
    former = host.pid
    assert former is not None
    os.kill(former, signal.SIGKILL)
    with pytest.raises(ModelCrashed, match=r"ended by signal 9.*started again in 0\.05 s") as caught:
        list(generation)
    assert caught.value.error_class == "crash"
    assert ask(host, max_tokens=3).usage.completion_tokens == 3
    assert host.pid != former


@llm
def test_a_request_behind_the_one_that_crashed_is_answered_by_the_next_child(make: Make) -> None:
    host = make()
    first = host.generate(GenerateRequest(prompt="hello", max_tokens=4000))
    first_text(first)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    second = host.generate(GenerateRequest(prompt="hello", max_tokens=3))
    os.kill(host.pid, signal.SIGKILL)
    with pytest.raises(ModelCrashed):
        list(first)
    assert collect(second, host.name).usage.completion_tokens == 3


@llm
def test_a_child_that_hangs_is_ended_and_named(make: Make) -> None:
    host = make(patience=Patience(silent_s=4.0, backoff_s=0.05))
    generation = host.generate(GenerateRequest(prompt="hello", max_tokens=4000))
    first_text(generation)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    with pytest.raises(ModelCrashed, match="no sign of life"):
        list(generation)
    assert ask(host, max_tokens=3).usage.completion_tokens == 3


@llm
def test_a_child_that_ignores_a_cancel_is_ended(make: Make) -> None:
    host = make(patience=Patience(cancel_s=0.2, backoff_s=0.05))
    generation = host.generate(GenerateRequest(prompt="hello", max_tokens=4000))
    first_text(generation)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    generation.cancel()
    *_, usage = generation
    assert isinstance(usage, Usage)
    assert usage.finish == "cancelled"


@llm
def test_an_idle_child_may_be_silent(make: Make) -> None:
    host = make(patience=Patience(silent_s=3.0, backoff_s=0.05))
    host.load(30)
    former = host.pid
    since = monotonic()
    wait_for(lambda: monotonic() - since > 3.3, what="longer than a working child may be silent")
    assert ask(host, max_tokens=3).usage.completion_tokens == 3
    assert host.pid == former


@llm
@pytest.mark.parametrize("when", ["loading", "idle", "generating", "stopped", "restarting"])
def test_close_leaves_no_child_whatever_it_does(make: Make, when: str) -> None:
    host = make(patience=Patience(backoff_s=20))
    host.start()
    pid = wait_for(lambda: host.pid, what="the child")
    if when != "loading":
        host.load(30)
    if when == "generating":
        first_text(host.generate(GenerateRequest(prompt="hello", max_tokens=4000)))
    elif when == "stopped":
        os.kill(pid, signal.SIGSTOP)
    elif when == "restarting":
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: host.state.phase == "restarting", what="the crash to be seen")
    host.close()
    assert not alive(pid)
    assert host.pid is None


@llm
def test_a_request_that_is_cancelled_while_the_model_loads_ends_at_once(make: Make) -> None:
    host = make()
    host.start()
    pid = wait_for(lambda: host.pid, what="the child")
    os.kill(pid, signal.SIGSTOP)
    generation = host.generate(GenerateRequest(prompt="hello"))
    assert generation.poll(0.05) is None
    generation.cancel()
    item = generation.poll(5)
    assert isinstance(item, Usage)
    assert item.finish == "cancelled"
    with pytest.raises(WaitTimeout, match=r"not loaded after 0\.05 s"):
        host.load(0.05)


@llm
def test_a_crash_while_loading_fails_who_waits_for_it(make: Make) -> None:
    host = make(patience=Patience(backoff_s=5))
    host.start()
    pid = wait_for(lambda: host.pid, what="the child")
    os.kill(pid, signal.SIGSTOP)
    failures: list[RigbusError] = []

    def load() -> None:
        try:
            host.load(30)
        except RigbusError as e:
            failures.append(e)

    waiting = threading.Thread(target=load)
    waiting.start()
    generation = host.generate(GenerateRequest(prompt="hello"))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ModelCrashed):
        list(generation)
    waiting.join(10)
    assert isinstance(failures[0], ModelCrashed)


@llm
def test_a_child_dies_with_the_process_that_started_it(tiny: Path, processes: Processes) -> None:
    code = (
        "import sys; from pathlib import Path; from rigbus.agents.models.host import ModelHost\n"
        "host = ModelHost(Path(sys.argv[1])); host.load(30); print('pid', host.pid, flush=True)\n"
        "import threading; threading.Event().wait()"
    )
    parent = processes.python("-c", code, tiny)
    wait_for(lambda: "\n" in processes.output(parent), timeout_s=60, what="the child's pid")
    child = int(processes.output(parent).partition("pid ")[2])
    processes.kill(parent)
    wait_for(lambda: not alive(child), timeout_s=15, what="the child to die with its parent")
