"""What goes wrong inside a model's child ends one request, and the others go on: real children, real llama.cpp."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for
from modelparts import Make, alive, ask, first_text, usage_of, write_tiny_gguf

from rigbus.agents.attempts.pipe import PIPE_VARIABLE, Pipe
from rigbus.agents.models.engine.batching import Row
from rigbus.agents.models.engine.context import Context, EngineBroken, Errors
from rigbus.agents.models.host import Patience
from rigbus.agents.models.protocol import (
    GenerateRequest,
    ModelBusy,
    ModelClosed,
    ModelCrashed,
    Queued,
)
from rigbus.bus.errors import DefinitionError

llm = pytest.mark.llm
#: Faults by the title of a request's schema, where a grammar is made of it and where a token is chosen by it.
HAUNTED = """
    import ctypes, os, time
    from rigbus.agents.models.engine import engine
    from rigbus.agents.models.engine.sampling import Sampler
    begin, choose = Sampler.__init__, Sampler.next

    def haunted_begin(self, llama, request):
        self.title = (request.json_schema or {}).get("title")
        if self.title == "dies":
            os.kill(os.getpid(), 11)
        if self.title == "odd":
            raise ctypes.ArgumentError("argument 1: wrong type")
        if self.title == "slow to take":
            time.sleep(1.0)  # it stands for work: a large grammar being compiled
        begin(self, llama, request)

    def haunted_choose(self, row):
        busy_s = {"slow": 1.2, "rather slow": 0.1}.get(self.title, 0.0)
        until = time.thread_time() + busy_s
        while time.thread_time() < until:
            pass
        return choose(self, row)

    Sampler.__init__, Sampler.next = haunted_begin, haunted_choose
    engine.GRAMMAR_FREE_S, engine.GRAMMAR_SHARE = 0.3, 0.0
"""


def titled(title: str, **options: Any) -> GenerateRequest:
    options.setdefault("max_tokens", 60)
    return GenerateRequest(
        prompt="x", json_schema={"title": title, "type": "string", "minLength": 50}, **options
    )


# ------------------------------------------------------------ requests


@llm
def test_a_request_that_kills_the_child_before_it_begins_is_to_blame_alone(
    make: Make, haunt: Callable[[str], None]
) -> None:
    haunt(HAUNTED)
    host = make(ctx=8192)
    running = host.generate(GenerateRequest(prompt="x", max_tokens=7000))
    first_text(running)
    poison = host.generate(titled("dies"))
    with pytest.raises(ModelCrashed, match=r"signal 11.*was taking this request in hand") as caught:
        usage_of(poison)
    assert caught.value.error_class == "crash"
    with pytest.raises(ModelCrashed) as caught:
        usage_of(running)
    assert caught.value.error_class == "infra"
    assert ask(host, max_tokens=3).usage.completion_tokens == 3


@llm
def test_an_odd_error_about_a_request_is_its_own(make: Make, haunt: Callable[[str], None]) -> None:
    haunt(HAUNTED)
    host = make(ctx=8192)
    running = host.generate(GenerateRequest(prompt="x", max_tokens=300))
    first_text(running)
    with pytest.raises(DefinitionError, match="cannot take this request: ArgumentError"):
        usage_of(host.generate(titled("odd")))
    assert usage_of(running).completion_tokens == 300


@llm
def test_a_cancel_passes_requests_that_are_slow_to_take(make: Make, haunt: Callable[[str], None]) -> None:
    haunt(HAUNTED)
    host = make(ctx=8192, patience=Patience(cancel_s=6.0, backoff_s=0.05))
    running = host.generate(GenerateRequest(prompt="x", max_tokens=7000))
    first_text(running)
    pid = host.pid
    slow = [host.generate(titled("slow to take", max_tokens=3)) for _ in range(10)]
    wait_for(lambda: all(g.sent for g in slow), what="the slow ones to be sent")
    running.cancel()
    slow[-1].cancel()
    assert usage_of(running).finish == "cancelled"
    assert usage_of(slow[-1]).finish == "cancelled"
    for generation in slow[:-1]:
        generation.cancel()
    for generation in slow[:-1]:
        usage_of(generation)
    assert host.pid == pid, "one child has done all this"


@llm
@pytest.mark.parametrize(("title", "words"), [("slow", "for one token"), ("rather slow", "in all")])
def test_a_slow_grammar_ends_by_itself_and_the_others_go_on(
    make: Make, haunt: Callable[[str], None], title: str, words: str
) -> None:
    haunt(HAUNTED)
    host = make(ctx=8192)
    running = host.generate(GenerateRequest(prompt="x", max_tokens=1000))
    first_text(running)
    with pytest.raises(DefinitionError, match=rf"json_schema: its grammar took .* s {words}"):
        usage_of(host.generate(titled(title)))
    assert usage_of(running).completion_tokens == 1000


@llm
def test_a_grammar_that_allows_nothing_ends_its_request_alone(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "mute.gguf", mute="7"), ctx=8192)
    running = host.generate(GenerateRequest(prompt="x", max_tokens=300))
    first_text(running)
    with pytest.raises(DefinitionError, match="its grammar allows no token"):
        ask(host, json_schema={"enum": [7]})
    assert usage_of(running).completion_tokens == 300
    assert ask(host, json_schema={"enum": [8]}).text.strip() == "8"


@llm
@pytest.mark.parametrize("field", ["prompt", "json_schema"])
def test_a_request_that_the_pipe_cannot_carry_ends_alone(make: Make, field: str) -> None:
    """Checked requests can be sent; this is what happens to one that was not."""
    host = make()
    host.load(30)
    request = GenerateRequest(prompt="x")
    deep: Any = {}
    for _ in range(2000):
        deep = {"items": deep}
    object.__setattr__(request, field, {"prompt": "\ud800", "json_schema": deep}[field])
    with pytest.raises(DefinitionError, match="cannot be sent to the model"):
        usage_of(host.generate(request))
    waiting = make()  # the same for those that wait while the model loads
    before = waiting.generate(request)
    after = waiting.generate(GenerateRequest(prompt="x", max_tokens=2))
    with pytest.raises(DefinitionError, match="cannot be sent to the model"):
        usage_of(before)
    assert usage_of(after).completion_tokens == 2
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


@llm
def test_a_broken_pipe_ends_the_child_with_a_word(tiny: Path) -> None:
    pipe = Pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "rigbus.agents.models.engine.child"],
        env={**os.environ, PIPE_VARIABLE: str(pipe.theirs.fileno())},
        pass_fds=[pipe.theirs.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )
    pipe.theirs.close()
    pipe.send({"load": {"path": str(tiny), "name": "tiny"}})
    wait_for(lambda: any("ready" in m for m in pipe.receive()), timeout_s=30, what="the model")
    raw = socket.socket(fileno=os.dup(pipe.fileno()))
    raw.sendall(b"\0\0\0\1\xc1")
    raw.close()
    try:
        _, said = child.communicate(timeout=10)
    finally:
        child.kill()
        pipe.close()
    assert child.returncode == 1
    assert "the pipe from the worker is broken: BrokenPipeFrame" in said


@llm
@pytest.mark.parametrize("ctx", [1, 100, 255, 300])
def test_a_context_of_an_odd_size_takes_prompts_longer_than_a_step(make: Make, ctx: int) -> None:
    """llama.cpp rounds contexts up to a multiple of 256, and ends the process where a step is larger than it was told."""
    host = make(ctx=ctx)
    assert host.load(30).ctx >= ctx
    usage = ask(host, "x" * 200, max_tokens=5).usage
    assert (usage.completion_tokens, usage.prompt_tokens > 200) == (5, True)


class FailingApi:
    """A llama.cpp whose steps fail without a word."""

    def llama_n_ctx(self, pointer: object) -> int:
        return 300

    def llama_n_batch(self, pointer: object) -> int:
        return 512

    def llama_get_memory(self, pointer: object) -> None: ...

    def llama_batch_init(self, *sizes: int) -> Any:
        class Rows:
            token, pos, n_seq_id, seq_id, logits, n_tokens = [0], [0], [0], [[0]], [0], 0

        return Rows()

    def llama_decode(self, pointer: object, rows: object) -> int:
        return 1


def test_a_step_that_fails_is_not_explained_by_an_error_of_long_ago() -> None:
    errors = Errors()
    context = Context(FailingApi(), None, errors)
    assert context.batch == 300
    errors.append("failed to parse grammar")
    with pytest.raises(EngineBroken, match=r"gave 1 for 1 tokens: llama\.cpp gave no reason"):
        context.decode([Row(1, 5, 0, 0, True)])


# ------------------------------------------------------------ the queue


@llm
def test_who_waits_hears_its_place_and_one_too_many_is_busy(make: Make) -> None:
    host = make(ctx=8192, parallel=1, queue=2)
    running = host.generate(GenerateRequest(prompt="x", max_tokens=7000))
    first_text(running)
    next_one, last = (host.generate(GenerateRequest(prompt="x", max_tokens=2)) for _ in range(2))
    assert next_one.poll(10) == Queued(0)
    assert last.poll(10) == Queued(1)
    with pytest.raises(ModelBusy, match="1 requests may run and 2 wait"):
        ask(host)
    next_one.cancel()
    assert last.poll(10) == Queued(0)
    running.cancel()
    assert usage_of(last).completion_tokens == 2


# ------------------------------------------------------------ crashes


@llm
@pytest.mark.parametrize(
    ("place", "patience", "words"),
    [
        ("_probe", Patience(silent_s=4.0, backoff_s=1.0), "at its first token"),
        ("_load_model", Patience(load_silent_s=8.0, backoff_s=1.0), "while it loaded"),
    ],
)
def test_a_child_that_hangs_before_it_is_ready_is_ended_and_another_one_loads(
    make: Make, tmp_path: Path, haunt: Callable[[str], None], place: str, patience: Patience, words: str
) -> None:
    curse = tmp_path / "curse"
    haunt(f"""
        import os, signal
        from rigbus.agents.models.engine import engine, llama
        for owner in (engine.Engine, llama.Llama):
            def haunted(*given, former=getattr(owner, {place!r}, None)):
                if os.path.exists({str(curse)!r}):
                    os.unlink({str(curse)!r})
                    signal.pause()
                return former(*given)
            if hasattr(owner, {place!r}):
                setattr(owner, {place!r}, haunted)
    """)
    host = make(patience=patience)
    host.load(30)
    curse.touch()
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    said: list[str] = []

    def hung() -> bool:
        said.append(host.state.message)
        return host.state.phase == "restarting" and "no sign of life" in host.state.message

    wait_for(hung, timeout_s=60, what="the hung one to be ended")
    assert words in said[-1]
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


@llm
def test_a_model_that_was_closed_after_a_crash_was_closed(make: Make) -> None:
    host = make(ctx=8192, patience=Patience(backoff_s=1.0))
    host.load(30)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    wait_for(lambda: host.state.phase == "restarting", what="the crash to be seen")
    running = host.generate(GenerateRequest(prompt="x", max_tokens=7000))
    first_text(running)
    host.close()
    with pytest.raises(ModelClosed):
        usage_of(running)


@llm
def test_a_model_that_only_crashes_is_given_up_until_somebody_asks(
    make: Make, tmp_path: Path, haunt: Callable[[str], None]
) -> None:
    curse = tmp_path / "curse"
    curse.touch()
    haunt(f"import os\nif os.path.exists({str(curse)!r}): os._exit(3)")
    host = make(patience=Patience(backoff_s=0.01))
    host.start()
    wait_for(lambda: host.state.phase == "failed", what="the model to be given up")
    assert "exit code 3" in host.state.message
    assert "5 times within 10 minutes" in host.state.message
    curse.unlink()
    with pytest.raises(ModelCrashed, match="given up") as caught:
        ask(host)  # a request does not start it: others would come, and crash it for ever
    assert caught.value.error_class == "infra"
    assert host.pid is None
    host.load(30)
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


@llm
def test_an_unloaded_model_gives_its_memory_back_and_says_how_much_it_was(make: Make) -> None:
    host = make()
    assert host.state.peak_rss_bytes == 0
    host.load(30)
    ask(host, max_tokens=2)
    pid = host.pid
    assert pid is not None
    host.close()
    assert not alive(pid)
    assert 10_000_000 < host.state.peak_rss_bytes < 2_000_000_000


@llm
def test_weights_that_are_no_numbers_are_named_when_the_model_loads(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "nan.gguf", nan=""), patience=Patience(backoff_s=0.01))
    with pytest.raises(
        ModelCrashed, match=r"it loads, but cannot generate: its logits are no numbers \(NaN\)"
    ):
        host.load(30)
    wait_for(lambda: host.state.phase == "failed", timeout_s=30, what="the model to be given up")
    assert "NaN" in host.state.message


@llm
def test_a_prompt_that_leads_to_no_numbers_is_found_beside_a_healthy_one(make: Make, tmp_path: Path) -> None:
    host = make(write_tiny_gguf(tmp_path / "nan.gguf", nan="@"), ctx=8192)
    well = host.generate(GenerateRequest(prompt="hello", max_tokens=7000))
    first_text(well)
    with pytest.raises(ModelCrashed, match="its logits are no numbers") as caught:
        usage_of(host.generate(GenerateRequest(prompt="h@i", max_tokens=600)))
    assert caught.value.error_class == "crash", "the child knows whose logits they were"
    with pytest.raises(ModelCrashed) as caught:
        usage_of(well)
    assert caught.value.error_class == "infra"
    again = [host.generate(GenerateRequest(prompt=p, max_tokens=600)) for p in ("h@i", "hello")]
    with pytest.raises(ModelCrashed) as caught:
        usage_of(again[0])
    assert caught.value.error_class == "crash"
    assert usage_of(again[1]).completion_tokens == 600, "it was not there this time"


@llm
def test_of_prompts_of_which_one_spoils_the_memory_of_all_it_is_found_by_trying_each_alone(
    make: Make, tmp_path: Path
) -> None:
    host = make(write_tiny_gguf(tmp_path / "nan.gguf", nan="@"), ctx=8192)
    long = "h@i" + "x" * 1500  # longer than the kernels' blocks: its cells spoil the other's, too
    prompts = ["hello", long]
    fates: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    while prompts:  # as the broker does with infra, and with crash twice
        asked = [(p, host.generate(GenerateRequest(prompt=p, max_tokens=100))) for p in prompts]
        for prompt, generation in asked:
            try:
                fates[prompt].append(usage_of(generation).finish)
            except ModelCrashed as e:
                fates[prompt].append(str(e.error_class))
        prompts = [p for p, said in fates.items() if said[-1] == "infra" or said.count("crash") == 1]
    assert fates["hello"][-1] == "length"
    assert set(fates["hello"][:-1]) <= {"infra"}
    assert fates[long].count("crash") == 2
    assert host.ready or host.load(30).ctx == 8192


@llm
def test_a_prompt_that_leads_to_no_numbers_is_a_crash_and_the_next_child_is_well(
    make: Make, tmp_path: Path
) -> None:
    host = make(write_tiny_gguf(tmp_path / "nan.gguf", nan="%"), ctx=8192)
    with pytest.raises(ModelCrashed, match="its logits are no numbers") as caught:
        ask(host, "5 %")
    assert caught.value.error_class == "crash"
    with pytest.raises(ModelCrashed, match="its vectors are no numbers"):
        host.embed(["5 %"])
    assert ask(host, "5", max_tokens=1).usage.completion_tokens == 1
