"""llama.cpp through llama-cpp-python's low-level API: a loaded model, its memory, its words. Child process only.

A crash in here is a signal that ends the process, which is why nothing else of rigbus runs in it. The low-level API
instead of its ``Llama`` class: several sequences take part in one step, a look at cancels comes between any two, and
text is bytes until it is whole characters.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...bus.errors import DefinitionError
from .batching import Copy, Cut, Row
from .protocol import LoadOptions, ModelInfo

DEFAULT_CTX: Final = 4096
BATCH_TOKENS: Final = 512
MAX_STRETCH: Final = 8  #: times the trained context; beyond it no way of stretching positions gives sense
ALL_LAYERS: Final = 0x7FFFFFFF
_LOG_DEBUG, _LOG_WARN, _LOG_ERROR, _LOG_MORE = 1, 3, 4, 5  # enum ggml_log_level of ggml.h


class EngineBroken(RuntimeError):
    """llama.cpp refused a step that it should take: this process is not to be trusted any more."""


class Llama:
    """A loaded model with one context that all sequences share.

    ``on_share`` is called while it loads with 0 to 1.

    Raises:
        DefinitionError: llama.cpp cannot load the file or has no memory for the context; the message has its words.
    """

    def __init__(self, options: LoadOptions, on_share: Callable[[float], None]) -> None:
        self._errors: deque[str] = deque(maxlen=4)
        self._log_level = 0
        self.api = api = _import_llama()
        self._log_callback = api.llama_log_callback(self._log)  # kept: ctypes does not keep it alive
        api.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._name = options.name
        self._model = self._load_model(options, on_share)
        self.vocab = api.llama_model_get_vocab(self._model)
        self.tokens = int(api.llama_vocab_n_tokens(self.vocab))
        self.context = self._make_context(options)
        self.ctx = int(api.llama_n_ctx(self.context))
        self.batch = min(BATCH_TOKENS, self.ctx)
        self._memory = api.llama_get_memory(self.context)
        self._rows = api.llama_batch_init(self.batch, 0, 1)
        self._format = self._chat_format()
        self._piece = ctypes.create_string_buffer(256)
        #: Can a sequence forget its end? The memory of a recurrent model is a sum of all that it has read.
        self.cuts = not (api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model))

    def info(self, load_s: float, sequences: int) -> ModelInfo:
        description = ctypes.create_string_buffer(128)
        self.api.llama_model_desc(self._model, description, len(description))
        return ModelInfo(
            name=self._name,
            ctx=self.ctx,
            parallel=sequences,
            description=description.value.decode("utf-8", "replace"),
            parameters=int(self.api.llama_model_n_params(self._model)),
            size_bytes=int(self.api.llama_model_size(self._model)),
            chat_template=self._format is not None,
            load_s=load_s,
        )

    # ------------------------------------------------------------ loading

    def _load_model(self, options: LoadOptions, on_share: Callable[[float], None]) -> Any:
        api = self.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if options.gpu_layers < 0 else options.gpu_layers

        def share(value: float, _data: object) -> bool:
            on_share(value)
            return True

        progress = api.llama_progress_callback(share)
        params.progress_callback = progress
        model = api.llama_model_load_from_file(os.fsencode(options.path), params)
        if not model:
            raise DefinitionError(
                f"model {options.path} cannot be loaded: {self.why()}; get the file again, or one that this "
                "llama.cpp knows"
            )
        return model

    def _make_context(self, options: LoadOptions) -> Any:
        api = self.api
        trained = int(api.llama_model_n_ctx_train(self._model))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        params = api.llama_context_default_params()
        params.n_ctx = options.ctx or min(trained or DEFAULT_CTX, DEFAULT_CTX)
        if trained and params.n_ctx > MAX_STRETCH * trained:
            # llama.cpp would try, and first fill the machine's memory with empty cells.
            raise DefinitionError(
                f"model {options.path}: a context of {params.n_ctx} tokens for a model that was trained with {trained}; "
                f"at most {MAX_STRETCH * trained} with --ctx"
            )
        params.n_batch = params.n_ubatch = min(BATCH_TOKENS, params.n_ctx)
        # One pool of cells for all sequences: a single request may have all of it, and prefixes are shared in place.
        params.n_seq_max, params.kv_unified = options.parallel, True
        # Two threads on one core's hyper-threads wait for each other at every step; a prompt gains from all.
        params.n_threads = options.threads or max(1, cores // 2)
        params.n_threads_batch = options.threads or cores
        params.no_perf = True
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise DefinitionError(
                f"model {options.path}: no context of {params.n_ctx} tokens: {self.why()}; ask for fewer with --ctx"
            )
        return context

    def _chat_format(self) -> Callable[..., Any] | None:
        template = self.api.llama_model_chat_template(self._model, None)
        if not template:
            return None
        module: Any = importlib.import_module("llama_cpp.llama_chat_format")
        bos, eos = self.api.llama_vocab_bos(self.vocab), self.api.llama_vocab_eos(self.vocab)
        try:
            made: Callable[..., Any] = module.Jinja2ChatFormatter(
                template.decode("utf-8", "replace"), self._token_text(eos), self._token_text(bos)
            )
        except Exception as e:  # a broken template must not make the model useless: prompts work without it
            print(f"the chat template cannot be used: {e!r}", file=sys.stderr, flush=True)
            return None
        return made

    # ------------------------------------------------------------ steps

    def remember(self, changes: Sequence[Cut | Copy]) -> None:
        """Change what the sequences hold.

        Raises:
            EngineBroken: llama.cpp cannot.
        """
        api, memory = self.api, self._memory
        for change in changes:
            match change:
                case Cut(seq, start):
                    if not api.llama_memory_seq_rm(memory, seq, start, -1):
                        raise EngineBroken(f"its memory of sequence {seq} cannot be cut at {start}")
                case Copy(seq, to, count):
                    api.llama_memory_seq_cp(memory, seq, to, 0, count)

    def decode(self, rows: Sequence[Row]) -> None:
        """One step.

        Raises:
            EngineBroken: llama.cpp failed.
        """
        batch = self._rows
        token, pos, n_seq_id, seq_id, logits = (
            batch.token,
            batch.pos,
            batch.n_seq_id,
            batch.seq_id,
            batch.logits,
        )
        for i, row in enumerate(rows):
            token[i] = row.token
            pos[i] = row.position
            n_seq_id[i] = 1
            seq_id[i][0] = row.seq
            logits[i] = row.logits
        batch.n_tokens = len(rows)
        code = self.api.llama_decode(self.context, batch)
        if code != 0:
            raise EngineBroken(f"llama_decode gave {code} for {len(rows)} tokens: {self.why()}")
        self.api.llama_synchronize(
            self.context
        )  # a device may still compute: what a step took is known only now

    # ------------------------------------------------------------ words

    def prompt(self, text: str | None, messages: Sequence[dict[str, str]] | None) -> list[int]:
        """The tokens of a prompt, by the model's chat template where it has one.

        Raises:
            DefinitionError: it has none for ``messages``, or the template refuses them, or there is nothing to read.
        """
        if self._format is None:
            if messages is not None:
                raise DefinitionError(
                    f'model {self._name} has no chat template; give "prompt" instead of "messages"'
                )
            prompt = text or ""
        else:
            try:
                prompt = self._format(messages=messages or [{"role": "user", "content": text or ""}]).prompt
            except Exception as e:  # a template is a program: whatever it raises is about the messages
                raise DefinitionError(
                    f"model {self._name}: its chat template refuses these messages: {e}"
                ) from e
        bos = self._token_text(self.api.llama_vocab_bos(self.vocab))
        tokens = self._tokenize(prompt, add_special=not (bos and prompt.startswith(bos)))
        if not tokens:
            raise DefinitionError("generate: the prompt is empty; give some text")
        if len(tokens) >= self.ctx:
            raise DefinitionError(
                f"generate: the prompt has {len(tokens)} tokens, the context of model {self._name} holds {self.ctx} "
                "with the answer; shorten it, or start the model with a larger --ctx"
            )
        return tokens

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            tokens = (self.api.llama_token * size)()
            n = int(self.api.llama_tokenize(self.vocab, data, len(data), tokens, size, add_special, True))
            if n >= 0:
                return list(tokens[:n])
            if -n <= size:
                raise EngineBroken(f"llama_tokenize gave {n} for {len(data)} bytes")
            size = -n

    def ends(self, token: int) -> bool:
        """Whether the model says with it that the answer is over."""
        return bool(self.api.llama_vocab_is_eog(self.vocab, token))

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes; none for control tokens."""
        size = len(self._piece)
        n = int(self.api.llama_token_to_piece(self.vocab, token, self._piece, size, 0, False))
        if n < 0:
            self._piece = ctypes.create_string_buffer(-n)
            n = int(self.api.llama_token_to_piece(self.vocab, token, self._piece, -n, 0, False))
        return self._piece.raw[:n]

    def _token_text(self, token: int) -> str:
        """How the vocabulary writes a token; empty for none (-1)."""
        if token < 0:
            return ""
        text: bytes = self.api.llama_vocab_get_text(self.vocab, token) or b""
        return text.decode("utf-8", "replace")

    # ------------------------------------------------------------ what llama.cpp says

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

    def why(self) -> str:
        """The first of the last errors: what follows it is llama.cpp saying on each level that it failed."""
        return self._errors[0] if self._errors else "llama.cpp gave no reason; its log may"

    def forgive(self) -> None:
        """It survived the errors so far."""
        self._errors.clear()


def _import_llama() -> Any:
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as e:
        raise DefinitionError(f"llama-cpp-python is not installed ({e}); pip install 'rigbus[llm]'") from e
    except (OSError, RuntimeError) as e:  # a library that it needs (CUDA's) is missing
        raise DefinitionError(
            f"llama-cpp-python cannot be loaded: {e}; install what it names, or build it again for this machine"
        ) from e
