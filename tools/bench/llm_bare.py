"""llama.cpp without rigbus, in a process of its own: ``python -m rigbus.tools.bench.llm_bare KIND MODEL CTX TOKENS ROUNDS``.

KIND: ``one``, a low-level loop of llama_decode with one sequence; ``many``, with eight; ``locked``, eight threads that share one
``llama_cpp.Llama`` behind a lock, as its server does. Prints the tokens a second of each round as a JSON list.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

MANY: Final = 8
PROMPT: Final = "{n}: tell me a story"
_BATCH: Final = 512


def main() -> None:
    """The entry of the child process; the rates are its last line."""
    kind, model, ctx, tokens, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    llama: Any = importlib.import_module("llama_cpp")
    if kind == "locked":
        rates = _locked(llama, model, ctx, tokens, rounds)
    else:
        rates = _loop(llama, model, ctx, tokens, rounds, 1 if kind == "one" else MANY)
    print(json.dumps(rates), flush=True)
    os._exit(0)


def _loop(api: Any, file: str, ctx: int, tokens: int, rounds: int, sequences: int) -> list[float]:
    """Of the steps alone, without their prompts."""
    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    model = api.llama_model_load_from_file(os.fsencode(file), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = ctx, min(_BATCH, ctx), min(_BATCH, ctx)
    params.n_seq_max, params.kv_unified, params.no_perf = sequences, True, True
    cores = len(os.sched_getaffinity(0))
    params.n_threads, params.n_threads_batch = max(1, cores // 2), cores
    context = api.llama_init_from_model(model, params)
    batch, sampler = api.llama_batch_init(_BATCH, 0, 1), api.llama_sampler_init_greedy()
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    prompt = [(7 * n + 11) % vocabulary for n in range(40)]

    def put(row: int, token: int, position: int, seq: int, logits: bool) -> None:
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
        batch.seq_id[row][0], batch.logits[row] = seq, logits

    rates = []
    for _ in range(rounds + 1):
        api.llama_memory_clear(api.llama_get_memory(context), True)
        for seq in range(sequences):
            for at, token in enumerate(prompt):
                put(at, token, at, seq, at == len(prompt) - 1)
            batch.n_tokens = len(prompt)
            _decode(api, context, batch)
        following = [prompt[0]] * sequences
        begun = time.perf_counter()
        for step in range(tokens):
            for seq, token in enumerate(following):
                put(seq, token, len(prompt) + step, seq, True)
            batch.n_tokens = sequences
            _decode(api, context, batch)
            following = [api.llama_sampler_sample(sampler, context, seq) for seq in range(sequences)]
        rates.append(sequences * tokens / (time.perf_counter() - begun))
    return rates[1:]


def _written_by(model: Any) -> Callable[[str], str]:
    """A user's message as the model's chat template writes it; as it is where the model has none."""
    template = model.metadata.get("tokenizer.chat_template")
    if template is None:
        return lambda text: text
    formats: Any = importlib.import_module("llama_cpp.llama_chat_format")
    write = formats.Jinja2ChatFormatter(template=template, eos_token="", bos_token="")
    return lambda text: str(write(messages=[{"role": "user", "content": text}]).prompt)


def _decode(api: Any, context: Any, batch: Any) -> None:
    code = api.llama_decode(context, batch)
    if code != 0:
        raise RuntimeError(f"llama_decode gave {code}")


def _locked(api: Any, file: str, ctx: int, tokens: int, rounds: int) -> list[float]:
    """With prompts by the model's chat template, as the server has them; its detokenizing is left out, which favours it."""
    model, lock = api.Llama(file, n_ctx=ctx, n_gpu_layers=-1, verbose=False), threading.Lock()
    written = _written_by(model)

    def ask(n: int) -> None:
        with lock:
            prompt = model.tokenize(written(PROMPT.format(n=n)).encode(), special=True)
            made.append(len(list(itertools.islice(model.generate(prompt, temp=0.0), tokens))))

    rates = []
    for number in range(rounds + 1):
        made: list[int] = []
        threads = [threading.Thread(target=ask, args=(100 * number + n,)) for n in range(MANY)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if sum(made) < MANY * tokens:
            raise RuntimeError(f"{sum(made)} of {MANY * tokens} tokens were made; see the lines above")
        rates.append(sum(made) / (time.perf_counter() - begun))
    return rates[1:]


if __name__ == "__main__":
    main()
