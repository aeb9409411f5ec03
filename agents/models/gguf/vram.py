"""How much memory a model will take on a card, from its GGUF header: weights, cache, and room to compute in.

MB are of 2^20 bytes, as nvidia-smi counts them. The formulas follow what llama.cpp allocates for the engine's settings:
steps of at most 512 tokens, a cache of 16-bit numbers in one pool for all requests, flash attention. Measured against
llama.cpp's own figures on the CPU build (models of zeros, `tests/agents/models/gguf/test_vram.py` repeats it):

    layers × width, heads/kv, vocabulary, context     weights         cache         computing
    4 × 256, 8/2, 1,000, 4,096                        8.2 of 8.2      4 of 4        12.0 of 12.0 MB
    6 × 768, 12/4, 32,000, 8,192                      139 of 139      48 of 48      73.5 of 73.0
    16 × 2,048, 16/4, 32,000, 4,096                   1,626 of 1,626  128 of 128    74.5 of 70.5
    16 × 2,048, 16/4, 32,000, 16,384                  1,626 of 1,626  512 of 512    86.5 of 70.5
    4 × 1,024, 8/8, 152,000 (tied), 32,768            395 of 395      512 of 512    332.9 of 300.9

What a driver keeps for itself (150 to 300 MB a process) is no part of it: that is ``reserve_mb`` of the card. Architectures
with several experts or a vision part compute with somewhat more; a card without flash attention needs ``heads × context × 2
KB`` more. What was measured when the model was loaded last (``peaks.py``) is therefore believed before this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ....bus.errors import DefinitionError
from .model import GgufInfo

MIB: Final = 1 << 20
STEP_TOKENS: Final = 512  #: llama.BATCH_TOKENS
DEFAULT_CTX: Final = 4096  #: llama.DEFAULT_CTX
CELL_STEP: Final = 256  #: llama.cpp rounds a context up to it
MIN_CTX: Final = 64
_KEPT_ROWS: Final = 8  #: of a layer's width, while it computes; measured
_LAST_ROWS: Final = 2  #: of the width, beside the logits; measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Memory in MB for a context of ``ctx`` tokens; cache and computing together grow by ``token_kb`` KB a token.

    ``kv_mb`` is the cache, with what recurrent layers keep for each of the requests at once. ``total_mb`` is rounded up.
    """

    weights_mb: float
    kv_mb: float
    compute_mb: float
    ctx: int
    token_kb: float

    @property
    def total_mb(self) -> int:
        return math.ceil(self.weights_mb + self.kv_mb + self.compute_mb)

    @property
    def fixed_mb(self) -> float:
        """What does not depend on the context."""
        return self.weights_mb + self.kv_mb + self.compute_mb - self.token_kb * _cells(self.ctx) / 1024

    def on_card_mb(self, share: float) -> int:
        """MB on a card that has this share (0 to 1) of the layers; each card computes in room of its own."""
        return math.ceil((self.weights_mb + self.kv_mb) * share + self.compute_mb)

    def largest_ctx(self, free_mb: float) -> int:
        """The largest context that fits into ``free_mb``; 0 where none does."""
        room = free_mb - self.fixed_mb
        if room <= 0:
            return 0
        if not self.token_kb:
            return self.ctx
        tokens = int(room * 1024 / self.token_kb)
        return tokens // CELL_STEP * CELL_STEP


def _cells(ctx: int) -> int:
    return -(-ctx // CELL_STEP) * CELL_STEP


def default_ctx(info: GgufInfo) -> int:
    """The context that the engine takes where none is given."""
    return min(info.context_length or DEFAULT_CTX, DEFAULT_CTX)


def estimate_vram_mb(
    info: GgufInfo,
    ctx: int = 0,
    parallel: int = 8,
    gpu_layers: int = -1,
    kv_bytes: float = 2,
    *,
    gpu: bool = True,
) -> Estimate:
    """What a model takes on the card: the cache is ``2 × layers × kv heads × head length × context × kv_bytes``.

    ``ctx`` in tokens, 0: the engine's default. ``gpu_layers`` -1: all; else the last ones and the output, which counts as
    one layer. ``gpu`` False: in the machine's memory, for a model that runs without a card. ``parallel`` requests share
    the cache; only the state of recurrent layers is there once for each.
    """
    ctx = ctx or default_ctx(info)
    cells, step = _cells(ctx), min(STEP_TOKENS, ctx)
    layers, output = _on_card(info, gpu_layers) if gpu else (range(info.block_count), True)
    weights = sum(info.layer_bytes[n] for n in layers if n < len(info.layer_bytes))
    if output:
        # The token embedding stays in the machine's memory, unless it is the output as well.
        weights += info.output_bytes + (info.input_bytes if info.tied or not gpu else 0)
    attention, recurrent = _kinds(info, layers)
    per_token = sum(info.heads_kv[n] for n in attention) * (info.key_length + info.value_length) * kv_bytes
    state = 4.0 * info.recurrent.per_layer * len(recurrent) * parallel if info.recurrent else 0.0
    # The mask says for each token of a step which cells it may see, in 16 bits.
    mask = 2 * step if attention else 0
    compute = _inside(info, step) + mask * cells if layers or output else 0
    return Estimate(
        weights_mb=weights / MIB,
        kv_mb=(per_token * cells + state) / MIB,
        compute_mb=compute / MIB,
        ctx=ctx,
        token_kb=(per_token + mask) / 1024,
    )


def _on_card(info: GgufInfo, gpu_layers: int) -> tuple[range, bool]:
    """The layers on the card, and whether the output is there."""
    if gpu_layers < 0 or gpu_layers > info.block_count:
        return range(info.block_count), True
    first = info.block_count + 1 - gpu_layers
    return range(min(first, info.block_count), info.block_count), gpu_layers > 0


def _kinds(info: GgufInfo, layers: range) -> tuple[list[int], list[int]]:
    """Which of the layers have a cache, and which a recurrent state."""
    attention = [n for n in layers if n < len(info.heads_kv) and info.heads_kv[n]]
    if info.recurrent is None:
        return attention, []
    return attention, [n for n in layers if n not in set(attention)]


def _inside(info: GgufInfo, step: int) -> int:
    """The largest moment of a step, in bytes: the logits of its tokens, or the inside of a layer."""
    last = info.vocab_size + _LAST_ROWS * info.embedding_length
    layer = 2 * info.feed_forward_length + _KEPT_ROWS * info.embedding_length
    return 4 * step * max(last, layer)


def check_fits(estimate: Estimate, free_mb: float, *, model: str, place: str = "the card") -> None:
    """Whether the memory is there, before anything is loaded.

    Raises:
        DefinitionError: it is not; with the numbers, and the largest context that would fit.
    """
    if estimate.total_mb <= free_mb:
        return
    largest = estimate.largest_ctx(free_mb)
    if largest >= MIN_CTX and estimate.token_kb:
        fix = f"ctx = {largest} would fit"
    else:
        fix = "take a smaller model or quantization, fewer gpu_layers, or split it over two cards"
    raise DefinitionError(
        f"model {model}: {estimate.total_mb} MB are needed for a context of {estimate.ctx} tokens (weights "
        f"{estimate.weights_mb:.0f}, cache {estimate.kv_mb:.0f}, computing {estimate.compute_mb:.0f}), {place} has "
        f"{free_mb:.0f} MB free; {fix}"
    )
