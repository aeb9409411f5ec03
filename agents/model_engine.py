"""llama.cpp through llama-cpp-python's low-level API: one model, one context, one sequence. Child process only.

A crash in here is a signal that ends the process, which is why nothing else of rigbus runs in it. The low-level
API instead of its ``Llama`` class: a prompt is read in chunks with a look at the cancel in between, text is bytes
until it is whole characters, and nothing of a former request can reach the next (the memory is cleared).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final

from ..bus.errors import DefinitionError
from .model import Chunk, Finish, GenerateRequest, LoadOptions, ModelInfo, Usage
from .model_text import TextStream

DEFAULT_CTX: Final = 4096
BATCH_TOKENS: Final = 512
MAX_STRETCH: Final = 8  #: times the trained context; beyond it no way of stretching positions gives sense
TOP_K, TOP_P, MIN_P = 40, 0.95, 0.05  # llama.cpp's own defaults
ALL_LAYERS: Final = 0x7FFFFFFF
_LOG_DEBUG, _LOG_WARN, _LOG_ERROR, _LOG_MORE = 1, 3, 4, 5  # enum ggml_log_level of ggml.h


class EngineBroken(RuntimeError):
    """llama.cpp refused a step that it should take: this process is not to be trusted any more."""


class Engine:
    """A loaded model.

    ``on_share`` is called while it loads with 0 to 1.

    Raises:
        DefinitionError: llama.cpp cannot load the file or has no memory for the context; the message has its words.
    """

    def __init__(self, options: LoadOptions, on_share: Callable[[float], None] = lambda share: None) -> None:
        begun_at = monotonic()
        self._name = options.name
        self._errors: deque[str] = deque(maxlen=4)
        self._log_level = 0
        self._llama = llama = _import_llama()
        self._log_callback = llama.llama_log_callback(self._log)  # kept: ctypes does not keep it alive
        llama.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = self._load_model(options, on_share)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._context = self._make_context(options)
        self._ctx = int(llama.llama_n_ctx(self._context))
        self._batch = min(BATCH_TOKENS, self._ctx)
        self._memory = llama.llama_get_memory(self._context)
        self._format = self._chat_format()
        self._piece = ctypes.create_string_buffer(256)
        self.load_s = 0.0
        self._probe()
        self._errors.clear()  # llama.cpp survived them
        self.load_s = monotonic() - begun_at

    def info(self) -> ModelInfo:
        llama = self._llama
        description = ctypes.create_string_buffer(128)
        llama.llama_model_desc(self._model, description, len(description))
        return ModelInfo(
            name=self._name,
            ctx=self._ctx,
            description=description.value.decode("utf-8", "replace"),
            parameters=int(llama.llama_model_n_params(self._model)),
            size_bytes=int(llama.llama_model_size(self._model)),
            chat_template=self._format is not None,
            load_s=self.load_s,
        )

    # ------------------------------------------------------------ loading

    def _load_model(self, options: LoadOptions, on_share: Callable[[float], None]) -> Any:
        llama = self._llama
        params = llama.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if options.gpu_layers < 0 else options.gpu_layers

        def share(value: float, _data: object) -> bool:
            on_share(value)
            return True

        progress = llama.llama_progress_callback(share)
        params.progress_callback = progress
        model = llama.llama_model_load_from_file(os.fsencode(options.path), params)
        if not model:
            raise DefinitionError(
                f"model {options.path} cannot be loaded: {self._why()}; get the file again, or one that this "
                "llama.cpp knows"
            )
        return model

    def _make_context(self, options: LoadOptions) -> Any:
        llama = self._llama
        trained = int(llama.llama_model_n_ctx_train(self._model))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        params = llama.llama_context_default_params()
        params.n_ctx = options.ctx or min(trained or DEFAULT_CTX, DEFAULT_CTX)
        if trained and params.n_ctx > MAX_STRETCH * trained:
            # llama.cpp would try, and first fill the machine's memory with empty cells.
            raise DefinitionError(
                f"model {options.path}: a context of {params.n_ctx} tokens for a model that was trained with {trained}; "
                f"at most {MAX_STRETCH * trained} with --ctx"
            )
        params.n_batch = params.n_ubatch = min(BATCH_TOKENS, params.n_ctx)
        # Two threads on one core's hyper-threads wait for each other at every step; a prompt gains from all.
        params.n_threads = options.threads or max(1, cores // 2)
        params.n_threads_batch = options.threads or cores
        params.no_perf = True
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise DefinitionError(
                f"model {options.path}: no context of {params.n_ctx} tokens: {self._why()}; ask for fewer with --ctx"
            )
        return context

    def _chat_format(self) -> Callable[..., Any] | None:
        template = self._llama.llama_model_chat_template(self._model, None)
        if not template:
            return None
        module: Any = importlib.import_module("llama_cpp.llama_chat_format")
        bos, eos = self._llama.llama_vocab_bos(self._vocab), self._llama.llama_vocab_eos(self._vocab)
        try:
            made: Callable[..., Any] = module.Jinja2ChatFormatter(
                template.decode("utf-8", "replace"), self._token_text(eos), self._token_text(bos)
            )
        except Exception as e:  # a broken template must not make the model useless: prompts work without it
            print(f"the chat template cannot be used: {e!r}", file=sys.stderr, flush=True)
            return None
        return made

    def _probe(self) -> None:
        """A model that is loaded is not yet one that works: out of memory and bad kernels show at the first step."""
        for _ in self.generate(GenerateRequest(prompt="Hi", max_tokens=1, temperature=0.0), lambda: False):
            pass

    # ------------------------------------------------------------ generating

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk | Usage]:
        """The pieces of the answer (a piece may be empty while a character or a stop string is open), then ``Usage``.

        ``cancelled`` is asked before each step.

        Raises:
            DefinitionError: the prompt is empty or longer than the context, or the chat template refuses it.
            EngineBroken: llama.cpp failed.
        """
        begun_at = monotonic()
        tokens = self._prompt_tokens(request)
        self._llama.llama_memory_clear(self._memory, True)
        sampler = self._sampler(request)
        text = TextStream(request.stop)
        taken = 0
        read_at = begun_at
        finish: Finish | None = None
        try:
            for at in range(0, len(tokens), self._batch):
                if cancelled():
                    finish = "cancelled"
                    break
                self._decode(tokens[at : at + self._batch])
                read_at = monotonic()
                yield Chunk("")
            while finish is None:
                token = self._llama.llama_sampler_sample(sampler, self._context, -1)
                if cancelled():
                    finish = "cancelled"
                elif self._llama.llama_vocab_is_eog(self._vocab, token):
                    finish = "stop"
                else:
                    taken += 1
                    yield Chunk(text.feed(self._token_bytes(token)))
                    if text.stopped:
                        finish = "stop"
                    elif taken == request.max_tokens or len(tokens) + taken >= self._ctx:
                        finish = "length"
                    else:
                        self._decode([token])
        finally:
            self._llama.llama_sampler_free(sampler)
        yield Chunk(text.end())
        yield Usage(
            prompt_tokens=len(tokens),
            completion_tokens=taken,
            prefill_s=read_at - begun_at,
            decode_s=monotonic() - read_at,
            load_s=self.load_s,
            finish=finish,
        )

    def _prompt_tokens(self, request: GenerateRequest) -> list[int]:
        messages = request.messages
        if self._format is None:
            if messages is not None:
                raise DefinitionError(
                    f'model {self._name} has no chat template; give "prompt" instead of "messages"'
                )
            prompt = request.prompt or ""
        else:
            if messages is None:
                messages = [{"role": "user", "content": request.prompt or ""}]
            try:
                prompt = self._format(messages=[dict(m) for m in messages]).prompt
            except (
                Exception
            ) as e:  # a template is a program of its own: whatever it raises is about the messages
                raise DefinitionError(
                    f"model {self._name}: its chat template refuses these messages: {e}"
                ) from e
        bos = self._token_text(self._llama.llama_vocab_bos(self._vocab))
        tokens = self._tokenize(prompt, add_special=not (bos and prompt.startswith(bos)))
        if not tokens:
            raise DefinitionError("generate: the prompt is empty; give some text")
        if len(tokens) >= self._ctx:
            raise DefinitionError(
                f"generate: the prompt has {len(tokens)} tokens, the context of model {self._name} holds {self._ctx} "
                "with the answer; shorten it, or start the model with a larger --ctx"
            )
        return tokens

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            tokens = (self._llama.llama_token * size)()
            n = int(self._llama.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True))
            if n >= 0:
                return list(tokens[:n])
            if -n <= size:
                raise EngineBroken(f"llama_tokenize gave {n} for {len(data)} bytes")
            size = -n

    def _decode(self, tokens: list[int]) -> None:
        array = (self._llama.llama_token * len(tokens))(*tokens)
        code = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(array, len(tokens)))
        if code != 0:
            raise EngineBroken(f"llama_decode gave {code} for {len(tokens)} tokens: {self._why()}")

    def _sampler(self, request: GenerateRequest) -> Any:
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if request.temperature == 0:
            links = [llama.llama_sampler_init_greedy()]
        else:
            seed = int.from_bytes(os.urandom(4)) % 0xFFFFFFFF if request.seed is None else request.seed
            links = [
                llama.llama_sampler_init_top_k(TOP_K),
                llama.llama_sampler_init_top_p(TOP_P, 1),
                llama.llama_sampler_init_min_p(MIN_P, 1),
                llama.llama_sampler_init_temp(request.temperature),
                llama.llama_sampler_init_dist(seed),
            ]
        for link in links:
            llama.llama_sampler_chain_add(chain, link)
        return chain

    # ------------------------------------------------------------ words of llama.cpp

    def _token_bytes(self, token: int) -> bytes:
        """The token's bytes; none for control tokens."""
        size = len(self._piece)
        n = int(self._llama.llama_token_to_piece(self._vocab, token, self._piece, size, 0, False))
        if n < 0:
            self._piece = ctypes.create_string_buffer(-n)
            n = int(self._llama.llama_token_to_piece(self._vocab, token, self._piece, -n, 0, False))
        return self._piece.raw[:n]

    def _token_text(self, token: int) -> str:
        """How the vocabulary writes a token; empty for none (-1)."""
        if token < 0:
            return ""
        text: bytes = self._llama.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode("utf-8", "replace")

    def _log(self, level: int, text: bytes, _data: object) -> None:
        """llama.cpp's lines go to stderr, which is the log; the errors among them to our own messages too."""
        if level == _LOG_MORE:  # the rest of the line before
            level = self._log_level
        self._log_level = level
        if level == _LOG_DEBUG:
            return
        line = text.decode("utf-8", "replace")
        if level == _LOG_ERROR and line.strip():
            self._errors.append(line.strip())
        print(line, end="", file=sys.stderr, flush=level in {_LOG_WARN, _LOG_ERROR})

    def _why(self) -> str:
        """The first of the last errors: what follows it is llama.cpp saying on each level that it failed."""
        return self._errors[0] if self._errors else "llama.cpp gave no reason; its log may"


def _import_llama() -> Any:
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as e:
        raise DefinitionError(f"llama-cpp-python is not installed ({e}); pip install 'rigbus[llm]'") from e
    except (OSError, RuntimeError) as e:  # a library that it needs (CUDA's) is missing
        raise DefinitionError(
            f"llama-cpp-python cannot be loaded: {e}; install what it names, or build it again for this machine"
        ) from e
