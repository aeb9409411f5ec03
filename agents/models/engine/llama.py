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
from collections.abc import Callable, Sequence
from typing import Any, Final

from ....bus.errors import DefinitionError
from ..protocol import LoadOptions, ModelInfo
from .context import Context, EngineBroken, Errors
from .text import plain_prompt

DEFAULT_CTX: Final = 4096
BATCH_TOKENS: Final = 512
#: Of the context that embeds. Its cells are memory beside those of the other one, and all rows of its steps are outputs,
#: for each of which llama.cpp keeps a whole vocabulary of logits.
EMBED_CTX: Final = 2048
EMBED_BATCH_TOKENS: Final = 128
CELL_BLOCK: Final = 256
POOLINGS: Final = {"1": "mean", "2": "cls", "3": "last"}  #: enum llama_pooling_type, as files name them
MAX_STRETCH: Final = 8  #: times the trained context; beyond it no way of stretching positions gives sense
ALL_LAYERS: Final = 0x7FFFFFFF
_LOG_DEBUG, _LOG_WARN, _LOG_ERROR, _LOG_MORE = 1, 3, 4, 5  # enum ggml_log_level of ggml.h


class Llama:
    """A loaded model with one context that all sequences of texts share, and maybe another one for embeddings.

    ``on_share`` is called while it loads with 0 to 1.

    Raises:
        DefinitionError: llama.cpp cannot load the file or has no memory for the context; the message has its words.
    """

    def __init__(self, options: LoadOptions, on_share: Callable[[float], None]) -> None:
        self.errors = Errors()
        self._log_level = 0
        self.api = api = _import_llama()
        self._log_callback = api.llama_log_callback(self._log)  # kept: ctypes does not keep it alive
        api.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.name = options.name
        self._where_ctx = (
            f"ctx ([models.{options.name}] in rigbus.toml; --ctx of an agent that serves it alone)"
        )
        self._model = self._load_model(options, on_share)
        if self._meta(f"{self._meta('general.architecture')}.attention.causal") == "false":
            raise DefinitionError(
                f"model {options.path} only reads (its attention is not causal): it generates no text, and only models that "
                "do can be served, for vectors, too; give one of these"
            )
        self.vocab = api.llama_model_get_vocab(self._model)
        self.tokens = int(api.llama_vocab_n_tokens(self.vocab))
        self.main = self._main_context(options)
        self.context = self.main.pointer
        self.ctx = self.main.ctx
        self._options = options
        self._format = self._chat_format()
        self._piece = ctypes.create_string_buffer(256)
        self.width = int(api.llama_model_n_embd(self._model))  #: numbers in a vector
        #: Can a sequence forget its end? The memory of a recurrent model is a sum of all that it has read.
        self.cuts = not (api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model))

    def info(self, load_s: float, sequences: int) -> ModelInfo:
        description = ctypes.create_string_buffer(128)
        self.api.llama_model_desc(self._model, description, len(description))
        return ModelInfo(
            name=self.name,
            ctx=self.ctx,
            parallel=sequences,
            description=description.value.decode("utf-8", "replace"),
            parameters=int(self.api.llama_model_n_params(self._model)),
            size_bytes=int(self.api.llama_model_size(self._model)),
            chat_template=self._format is not None,
            dimensions=self.width,
            load_s=load_s,
            on_card=self._on_card,
        )

    # ------------------------------------------------------------ loading

    def _load_model(self, options: LoadOptions, on_share: Callable[[float], None]) -> Any:
        api = self.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if options.gpu_layers < 0 else options.gpu_layers
        self._on_card = options.gpu_layers != 0 and bool(api.llama_supports_gpu_offload())
        if options.tensor_split:  # llama.cpp reads a share for every device that it could have
            shares = [*options.tensor_split, *[0.0] * int(api.llama_max_devices())][: api.llama_max_devices()]
            params.tensor_split = (ctypes.c_float * len(shares))(*shares)

        def share(value: float, _data: object) -> bool:
            on_share(value)
            return True

        progress = api.llama_progress_callback(share)
        params.progress_callback = progress
        model = api.llama_model_load_from_file(os.fsencode(options.path), params)
        if not model:
            raise DefinitionError(
                f"model {options.path} cannot be loaded: {self.errors.why()}; get the file again, or one that this "
                "llama.cpp knows"
            )
        return model

    def _main_context(self, options: LoadOptions) -> Context:
        trained = int(self.api.llama_model_n_ctx_train(self._model))
        ctx = options.ctx or min(trained or DEFAULT_CTX, DEFAULT_CTX)
        if trained and ctx > MAX_STRETCH * trained:
            # llama.cpp would try, and first fill the machine's memory with empty cells.
            raise DefinitionError(
                f"model {options.path}: a context of {ctx} tokens for a model that was trained with {trained}; "
                f"give at most {MAX_STRETCH * trained} as {self._where_ctx}"
            )
        context = self._make_context(options, ctx, BATCH_TOKENS)
        if context is None:
            raise DefinitionError(
                f"model {options.path}: no context of {ctx} tokens: {self.errors.why()}; give a smaller {self._where_ctx}"
            )
        return context

    def embedding_context(self) -> Context:
        """Another context, whose steps give a vector a row.

        Raises:
            DefinitionError: there is no memory for it.
        """
        ctx = min(self.ctx, EMBED_CTX)
        self.errors.clear()
        context = self._make_context(self._options, ctx, EMBED_BATCH_TOKENS, embeddings=True)
        if context is None:
            raise DefinitionError(
                f"embed: model {self.name} has no memory for a second context of {ctx} tokens: {self.errors.why()}; "
                f"give it a smaller {self._where_ctx}"
            )
        return context

    def _make_context(
        self, options: LoadOptions, ctx: int, batch: int, *, embeddings: bool = False
    ) -> Context | None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        params = self.api.llama_context_default_params()
        # llama.cpp makes whole blocks of cells, but no steps longer than what it was asked for: so we ask for blocks.
        params.n_ctx = -(-ctx // CELL_BLOCK) * CELL_BLOCK
        params.n_batch = params.n_ubatch = min(batch, params.n_ctx)
        # One pool of cells for all sequences: a single request may have all of it, and prefixes are shared in place.
        params.n_seq_max, params.kv_unified = options.parallel, True
        # Two threads on one core's hyper-threads wait for each other at every step; a prompt gains from all.
        params.n_threads = options.threads or max(1, cores // 2)
        params.n_threads_batch = options.threads or cores
        params.no_perf = True
        if embeddings:
            # Pooled by us: llama.cpp pools what one of its batches holds, so no text could be longer than that.
            params.embeddings, params.pooling_type = True, self.api.LLAMA_POOLING_TYPE_NONE
        pointer = self.api.llama_init_from_model(self._model, params)
        return Context(self.api, pointer, self.errors) if pointer else None

    def pooling(self) -> str:
        """How this model makes one vector of many: as its file says, else their mean.

        Raises:
            DefinitionError: its file says that it makes no vectors.
        """
        arch = self._meta("general.architecture")
        kind = self._meta(f"{arch}.pooling_type") or "1"
        if kind == "0":
            kind = "1"
        if kind not in POOLINGS:
            raise DefinitionError(
                f"embed: model {self.name} ({arch}, pooling {kind}) makes no vectors of texts; give another one"
            )
        return POOLINGS[kind]

    def _meta(self, key: str) -> str:
        """An entry of the file's metadata; empty where there is none."""
        value = ctypes.create_string_buffer(128)
        found = self.api.llama_model_meta_val_str(self._model, key.encode(), value, len(value))
        return value.value.decode("utf-8", "replace") if found >= 0 else ""

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

    # ------------------------------------------------------------ words

    def prompt(self, text: str | None, messages: Sequence[dict[str, str]] | None) -> list[int]:
        """The tokens of a prompt, by the model's chat template; of a model that has none by ``plain_prompt``.

        Raises:
            DefinitionError: the template refuses the messages, or there is nothing to read, or too much for the context.
        """
        if self._format is None:
            prompt = plain_prompt(messages) if messages is not None else text or ""
        else:
            try:
                prompt = self._format(messages=messages or [{"role": "user", "content": text or ""}]).prompt
            except Exception as e:  # a template is a program: whatever it raises is about the messages
                raise DefinitionError(
                    f"model {self.name}: its chat template refuses these messages: {e}"
                ) from e
        bos = self._token_text(self.api.llama_vocab_bos(self.vocab))
        tokens = self._tokenize(prompt, add_special=not (bos and prompt.startswith(bos)), special=True)
        if not tokens:
            raise DefinitionError("generate: the prompt is empty; give some text")
        if len(tokens) >= self.ctx:
            raise DefinitionError(
                f"generate: the prompt has {len(tokens)} tokens, the context of model {self.name} holds {self.ctx} "
                f"with the answer; shorten it, or give it a larger {self._where_ctx}"
            )
        return tokens

    def words(self, text: str) -> list[int]:
        """The tokens of a text as it is: what looks like a control token in it is text, too."""
        return self._tokenize(text, add_special=True, special=False)

    def _tokenize(self, text: str, *, add_special: bool, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            tokens = (self.api.llama_token * size)()
            n = int(self.api.llama_tokenize(self.vocab, data, len(data), tokens, size, add_special, special))
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
            self.errors.append(line.strip())
        print(line, end="", file=sys.stderr, flush=level in {_LOG_WARN, _LOG_ERROR})

    def why(self) -> str:
        """The first of the errors since the last :meth:`forgive`."""
        return self.errors.why()

    def forgive(self) -> None:
        """It survived the errors so far: they are no reason for what fails next."""
        self.errors.clear()


def _import_llama() -> Any:
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as e:
        raise DefinitionError(f"llama-cpp-python is not installed ({e}); pip install 'rigbus[llm]'") from e
    except (OSError, RuntimeError) as e:  # a library that it needs (CUDA's) is missing
        raise DefinitionError(
            f"llama-cpp-python cannot be loaded: {e}; install what it names, or build it again for this machine"
        ) from e
