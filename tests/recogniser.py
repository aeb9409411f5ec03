"""Asks llama.cpp itself which texts a grammar allows: byte by byte, with the vocabulary of the tiny model."""

from __future__ import annotations

import ctypes
from pathlib import Path
from random import Random

END = 258  # the tiny model's token for the end of a text
# llama.cpp takes overlong forms that begin with these for characters; whoever reads the stream replaces them.
OVERLONG = b"\xe0\xf0"
STRUCTURE = b'"]}\\'


class Recogniser:
    """Holds a vocabulary; :meth:`close` frees it. A grammar that llama.cpp cannot read is a ``ValueError``."""

    def __init__(self, gguf: Path) -> None:
        import llama_cpp

        self.api = api = llama_cpp
        self.said: list[str] = []
        self._log = api.llama_log_callback(lambda _level, text, _data: self.said.append(text.decode()))
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        params = api.llama_model_default_params()
        params.vocab_only = True
        self._model = api.llama_model_load_from_file(str(gguf).encode(), params)
        self._vocab = api.llama_model_get_vocab(self._model)
        piece = ctypes.create_string_buffer(16)
        self.tokens: dict[int, int] = {}  # byte -> token
        for token in range(256):
            assert api.llama_token_to_piece(self._vocab, token, piece, 16, 0, False) == 1
            self.tokens[piece.raw[0]] = token
        self.bytes = {token: byte for byte, token in self.tokens.items()}

    def close(self) -> None:
        self.api.llama_log_set(self.api.llama_log_callback(0), ctypes.c_void_p(0))
        self.api.llama_model_free(self._model)

    def grammar(self, gbnf: str) -> Grammar:
        sampler = self.api.llama_sampler_init_grammar(self._vocab, gbnf.encode("ascii"), b"root")
        if not sampler:
            raise ValueError(f"llama.cpp cannot read this grammar: {''.join(self.said[-3:])}\n{gbnf[:2000]}")
        return Grammar(self, sampler)

    def accepts(self, gbnf: str, *texts: str) -> list[bool]:
        grammar = self.grammar(gbnf)
        try:
            return [grammar.accepts(text.encode()) for text in texts]
        finally:
            grammar.close()


class Grammar:
    """One grammar and how far a text has come in it. :meth:`close` frees it."""

    def __init__(self, recogniser: Recogniser, sampler: object) -> None:
        import numpy as np

        self._r, self._sampler, self._np = recogniser, sampler, np
        api = recogniser.api
        self._one = api.llama_token_data(0, 1.0, 0.0)
        self._only = api.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        self._all = np.empty(END + 1, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._all["id"], self._all["p"] = np.arange(END + 1), 0.0
        self._every = api.llama_token_data_array(
            ctypes.cast(self._all.ctypes.data, api.llama_token_data_p), END + 1, -1, False
        )

    def close(self) -> None:
        self._r.api.llama_sampler_free(self._sampler)

    def _allows(self, token: int) -> bool:
        self._one.id, self._one.logit = token, 1.0
        self._r.api.llama_sampler_apply(self._sampler, ctypes.byref(self._only))
        return bool(self._one.logit == 1.0)

    def _take(self, byte: int) -> bool:
        token = self._r.tokens[byte]
        if not self._allows(token):  # llama.cpp ends the process over a token that it does not allow
            return False
        self._r.api.llama_sampler_accept(self._sampler, token)
        return True

    def accepts(self, text: bytes) -> bool:
        """Whether it may be a whole text."""
        self._r.api.llama_sampler_reset(self._sampler)
        return all(map(self._take, text)) and self._allows(END)

    def lengths(self) -> list[int]:
        """The lengths that a string of the letter x may have; they end."""
        self._r.api.llama_sampler_reset(self._sampler)
        found, length, quote = [], 0, self._r.tokens[ord('"')]
        assert self._take(ord('"'))
        while True:
            if self._allows(quote):
                found.append(length)
            if not self._take(ord("x")):
                return found
            length += 1

    def write(self, random: Random, most: int = 20_000) -> str | None:
        """A text that it allows, by chance; None if it is longer than ``most`` bytes."""
        self._r.api.llama_sampler_reset(self._sampler)
        weights = self._np.ones(END + 1)
        weights[[self._r.tokens[byte] for byte in range(0x20, 0x7F)]] = 5
        weights[[self._r.tokens[byte] for byte in STRUCTURE]] = 20
        weights[[self._r.tokens[byte] for byte in OVERLONG]] = 1e-9  # only where nothing else may follow
        weights[256:END] = 0  # control tokens
        weights[END] = 40
        found = bytearray()
        while len(found) < most:
            self._all["logit"] = 1.0
            self._r.api.llama_sampler_apply(self._sampler, ctypes.byref(self._every))
            sums = (weights * (self._all["logit"] == 1.0)).cumsum()
            assert sums[-1], f"nothing may follow {bytes(found)!r}"
            token = int(self._np.searchsorted(sums, random.random() * sums[-1], side="right"))
            if token == END:
                return found.decode()
            self._r.api.llama_sampler_accept(self._sampler, token)
            found.append(self._r.bytes[token])
        return None
