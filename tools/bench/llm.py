"""Tokens a second of a model: alone and eight at once, beside llama.cpp without rigbus, and through the whole bus."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...agents.models.files import check_llama, check_model_file
from ...agents.models.host import ModelHost
from ...agents.models.protocol import Chunk, GenerateRequest, GenerateResult, Usage, collect
from ...bus.client.work import Result
from ...bus.errors import RigbusError
from . import limits
from .figures import Figure, Outcome, Spread
from .llm_bare import MANY, PROMPT
from .machine import machine
from .rig import BenchRig, Setup

LOAD_S: Final = 300.0
CHILD_S: Final = 1200.0
CALL_S: Final = 600.0
STEP_MS: Final = 10.0  #: from so long a step on our targets count; a shorter one measures Python
FIRST_MS: Final = 10.0
MESSAGE_MS: Final = 5.0  #: what the way of a cancel to the model's process and back may take beside the step


#: Number of the request, and who hears its text -> the answer.
Ask = Callable[[int, Callable[[str], None]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Options:
    """``tokens`` of each answer; ``ctx`` of the model, for all its requests."""

    model: Path
    tokens: int = 128
    repeats: int = 5
    ctx: int = 4096


@dataclass(slots=True)
class Rounds:
    """What the rounds of one way brought: tokens a second of one request's steps, and of eight requests as a whole."""

    one: list[float]
    many: list[float]
    spread: list[float]  #: slowest by fastest of eight equal requests
    first_ms: list[float]  #: until the first token, of one request alone


def measure(options: Options, say: Callable[[str], None]) -> Outcome:
    """Bare loops, the engine in its child, the same through the bus; one after the other.

    Raises:
        DefinitionError: the model is no GGUF, or there is no llama.cpp.
        RigbusError: a process ended or was too slow.
    """
    check_model_file(options.model)
    check_llama()
    say("llama.cpp alone: one sequence, eight, and eight threads behind a lock")
    bare = {kind: _bare(kind, options) for kind in ("one", "many", "locked")}
    say("the engine")
    engine, cancel_ms = _engine(options)
    say("through the bus")
    bus, fsync_us = _bus(options)
    step_ms = 1000 / _median(bare["one"])
    slow = step_ms >= STEP_MS
    fast = f": under {STEP_MS:g} ms it is Python that is measured, and no target is set."
    return Outcome(
        "llm",
        _figures(bare, engine, bus, cancel_ms),
        {
            "model": options.model.name,
            "model_mib": options.model.stat().st_size >> 20,
            "tokens": options.tokens,
            "repeats": options.repeats,
            "ctx": options.ctx,
            **machine(),
        },
        fsync_us,
        limits={
            "llama_decode, one sequence, tokens/s": _median(bare["one"]),
            "llama_decode, eight sequences, tokens/s": _median(bare["many"]),
            "eight behind a lock, tokens/s": _median(bare["locked"]),
        },
        notes=[f"A step of one sequence takes {step_ms:.1f} ms here{'.' if slow else fast}", _EIGHT],
    )


def _figures(
    bare: Mapping[str, list[float]], engine: Rounds, bus: Rounds, cancel_ms: Sequence[float]
) -> list[Figure]:
    """Each beside its limit; targets only for a model whose steps are long enough."""
    step_ms = 1000 / _median(bare["one"])
    slow = step_ms >= STEP_MS

    def figure(name: str, values: Sequence[float], part: float, limit: str) -> Figure:
        base, spread = _median(bare[limit]), Spread.of(values)
        target, ratio = part * base if slow else None, spread.median / base
        return Figure(
            name, "tokens/s", spread, target=target, at_least=True, ratio=ratio, limit=_LIMITS[limit]
        )

    first_ms = _median(bus.first_ms) - _median(engine.first_ms)
    cancel = Spread.of(cancel_ms)
    return [
        figure("one request, engine", engine.one, 0.95, "one"),
        figure("one request, through the bus", bus.one, 0.90, "one"),
        figure("eight requests, engine", engine.many, 4.0, "locked"),
        figure("eight requests, through the bus", bus.many, 4.0, "locked"),
        Figure("slowest of eight by fastest", "×", Spread.of(engine.spread), target=2.0 if slow else None),
        Figure(
            "cancel to free",
            "ms",
            cancel,
            target=step_ms + MESSAGE_MS if slow else None,
            ratio=cancel.median / step_ms,
            limit="step",
        ),
        Figure("first token, bus over engine", "ms", Spread.of([first_ms]), target=FIRST_MS),
    ]


_EIGHT: Final = (
    "Eight requests: each with its prompt read (by the model's chat template), as in eight threads that share one "
    "llama_cpp.Llama behind a lock; the bare loop of eight has its prompts read before the clock starts. The shorter the "
    "answers, the more the reading of the prompts weighs: it gains little from company."
)
_LIMITS: Final = {"one": "llama_decode", "locked": "× behind a lock"}


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median


def _bare(kind: str, options: Options) -> list[float]:
    words = [kind, str(options.model), *map(str, (options.ctx, options.tokens, options.repeats))]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "rigbus.tools.bench.llm_bare", *words],
            capture_output=True,
            text=True,
            timeout=CHILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RigbusError(
            f"llama.cpp alone ({kind}) took longer than {CHILD_S:g} s; take fewer --tokens"
        ) from None
    if done.returncode != 0:
        raise RigbusError(
            f"llama.cpp alone ({kind}) ended with {done.returncode}: {done.stderr[-500:].strip()}"
        )
    rates: list[float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def _request(options: Options, number: int) -> dict[str, Any]:
    return {"prompt": PROMPT.format(n=number), "max_tokens": options.tokens, "temperature": 0.0}


def _engine(options: Options) -> tuple[Rounds, list[float]]:
    host = ModelHost(options.model, ctx=options.ctx, parallel=MANY)
    try:
        host.load(LOAD_S)

        def ask(number: int, on_text: Callable[[str], None]) -> GenerateResult:
            request = GenerateRequest(**_request(options, number))
            return collect(host.generate(request), host.name, on_text=on_text)

        rounds = _rounds(options, lambda n, on_text: ask(n, on_text).to_map())
        return rounds, [_cancel_ms(host) for _ in range(options.repeats)]
    finally:
        host.close()


def _cancel_ms(host: ModelHost) -> float:
    generation = host.generate(GenerateRequest(prompt=PROMPT, max_tokens=1000))
    while not isinstance(next(generation), (Chunk, Usage)):
        pass
    begun = time.perf_counter()
    generation.cancel()
    for _ in generation:
        pass
    return 1000 * (time.perf_counter() - begun)


def _bus(options: Options) -> tuple[Rounds, float]:
    with BenchRig(Setup(model=options.model, ctx=options.ctx, slots=MANY)) as rig:
        fsync_us = limits.fsync_p50_us(rig.state)

        def ask(number: int, on_text: Callable[[str], None]) -> dict[str, Any]:
            with rig.open() as client:
                for news in client.stream("generate", _request(options, number), timeout_s=CALL_S):
                    if isinstance(news, Result):
                        if not news.ok:
                            raise RigbusError(f"a generate task ended {news.state}: {news.error}")
                        value: dict[str, Any] = news.value
                        return value
                    on_text("")
            raise RigbusError("the stream ended without its result")

        rig.client().close()
        return _rounds(options, ask), fsync_us


def _rounds(options: Options, ask: Ask) -> Rounds:
    found = Rounds([], [], [], [])
    for number in range(options.repeats + 1):
        begun = time.perf_counter()
        answer, first_at = _watched(number, ask)
        ended, made = time.perf_counter(), answer["usage"]["completion_tokens"]
        if made < 2:
            raise RigbusError("the model ends its answer at once; give another one")
        many, took = _eight(number, ask)
        if number:  # the first is the warm-up
            found.one.append((made - 1) / (ended - first_at))
            found.first_ms.append(1000 * (first_at - begun))
            found.many.append(many)
            found.spread.append(max(took) / min(took))
    return found


def _watched(number: int, ask: Ask) -> tuple[dict[str, Any], float]:
    """An answer, and when its first text came."""
    seen: list[float] = []
    answer = ask(number, lambda text: seen.append(time.perf_counter()))
    return answer, seen[0] if seen else time.perf_counter()


def _eight(number: int, ask: Ask) -> tuple[float, list[float]]:
    """Tokens a second of eight requests at once, and the seconds that each took."""
    took: list[float] = []
    made: list[int] = []
    begun = time.perf_counter()

    def one(n: int) -> None:
        answer = ask(100 * number + n, lambda text: None)
        took.append(time.perf_counter() - begun)
        made.append(answer["usage"]["completion_tokens"])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(1, MANY + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(made) < MANY:
        raise RigbusError(f"only {len(made)} of {MANY} requests were answered; see the lines above")
    if 2 * min(made) < max(made):
        raise RigbusError(
            f"the model ends its answers by itself, after {min(made)} to {max(made)} tokens: their times do not compare; "
            "give fewer --tokens, or another model"
        )
    return sum(made) / (time.perf_counter() - begun), took
