"""The next token of one request: its own chain of llama.cpp's samplers, and llama.cpp's grammar of a JSON schema.

A grammar is asked about the token that the chain chose; only where it says no are all tokens weighed by it. (For a
vocabulary of 150,000 the weighing of all costs more than a step of a small model.)
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from time import thread_time
from typing import Any, Final

import numpy as np  # llama-cpp-python has it

from ....bus.errors import DefinitionError
from ..grammar.schema import to_gbnf
from ..protocol import GenerateRequest
from .llama import Llama

TOP_K, TOP_P, MIN_P = 40, 0.95, 0.05  # llama.cpp's own defaults
#: What llama.cpp may take to follow a grammar past a token, in seconds of this thread. It takes below 0.3 ms, whatever the
#: text's length and depth, and the square of the number of ways that it has to follow: parts that begin alike, one inside
#: of another, multiply them. The next level would take minutes, and no call of llama.cpp can be ended: so it is not begun.
FOLLOW_S: Final = 0.002  #: twice in a row; a single one may be the machine's
FOLLOW_ONCE_S: Final = 0.02


class Sampler:
    """Of one request. :meth:`close` frees it.

    Raises:
        DefinitionError: llama.cpp has no grammar for the request's JSON schema.
    """

    def __init__(self, llama: Llama, request: GenerateRequest) -> None:
        self._llama = llama
        self._chain = _chain(llama.api, request)
        self._grammar = None
        self._slow_before = False
        if request.json_schema is not None:
            llama.forgive()  # the errors of others are no reason why llama.cpp cannot read this grammar
            try:
                self._grammar = _grammar(llama, request.json_schema)
            except BaseException:
                self.close()
                raise

    def next(self, row: int) -> int:
        """The token after the step's row ``row``.

        Raises:
            DefinitionError: the grammar allows nothing any more, or follows too many ways: this request cannot end,
                others can go on.
        """
        api = self._llama.api
        token = int(api.llama_sampler_sample(self._chain, self._llama.context, row))
        if self._grammar is None:
            return token
        if not self._allowed(token):
            token = self._weigh(row)
        self._follow(token)
        return token

    def is_number(self, row: int) -> bool:
        """Whether the step's row ``row`` gave logits that are numbers."""
        return not np.isnan(self._logits(row).sum())

    def _follow(self, token: int) -> None:
        since = thread_time()
        self._llama.api.llama_sampler_accept(self._grammar, token)
        took_s = thread_time() - since
        slow = took_s > FOLLOW_S
        if took_s > FOLLOW_ONCE_S or (slow and self._slow_before):
            raise DefinitionError(
                f"json_schema: its grammar has too many ways to go on ({1000 * took_s:.0f} ms for one token): parts that "
                "begin alike lie inside of one another; give each a first property with a constant of its own"
            )
        self._slow_before = slow

    def _logits(self, row: int) -> Any:
        logits = self._llama.api.llama_get_logits_ith(self._llama.context, row)
        return np.ctypeslib.as_array(logits, (self._llama.tokens,))

    def _allowed(self, token: int) -> bool:
        api = self._llama.api
        one = api.llama_token_data(token, 1.0, 0.0)
        array = api.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return not math.isinf(one.logit)

    def _weigh(self, row: int) -> int:
        """The grammar first, then the chain."""
        api, count = self._llama.api, self._llama.tokens
        weights = np.empty(count, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        weights["id"], weights["logit"], weights["p"] = np.arange(count), self._logits(row), 0.0
        data = ctypes.cast(weights.ctypes.data, api.llama_token_data_p)
        array = api.llama_token_data_array(data, count, -1, False)
        api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        api.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size or math.isinf(array.data[array.selected].logit):
            raise DefinitionError(
                "json_schema: the text has come to where its grammar allows no token of this model; loosen its patterns, "
                "enums or lengths"
            )
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free what llama.cpp holds. Once only."""
        self._llama.api.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._llama.api.llama_sampler_free(self._grammar)


def _chain(api: Any, request: GenerateRequest) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if request.temperature == 0:
        links = [api.llama_sampler_init_greedy()]
    else:
        seed = int.from_bytes(os.urandom(4)) % 0xFFFFFFFF if request.seed is None else request.seed
        links = [
            api.llama_sampler_init_top_k(TOP_K),
            api.llama_sampler_init_top_p(TOP_P, 1),
            api.llama_sampler_init_min_p(MIN_P, 1),
            api.llama_sampler_init_temp(request.temperature),
            api.llama_sampler_init_dist(seed),
        ]
    for link in links:
        api.llama_sampler_chain_add(chain, link)
    return chain


def _grammar(llama: Llama, schema: Mapping[str, Any]) -> Any:
    text = to_gbnf(schema)
    grammar = llama.api.llama_sampler_init_grammar(llama.vocab, text.encode("ascii"), b"root")
    if not grammar:
        raise DefinitionError(f"json_schema: llama.cpp cannot read its grammar: {llama.why()}; simplify it")
    return grammar
