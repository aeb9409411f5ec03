"""Writes a real GGUF of about 0.5 MB: llama architecture, random weights, a vocabulary of 260 tokens.

llama.cpp loads it in some 20 ms and generates noise from it, mostly printable. The weights are tuned in one
way: every embedding has a large first component, so the first column of the output matrix acts as a bias on the
logits, and a test can have a model that never ends by itself or one that soon does. By hand:
``python tests/agents/tiny_gguf.py FILE``.
"""

from __future__ import annotations

import sys
from pathlib import Path

LAYERS, EMBEDDING, HEADS, FEED_FORWARD = 2, 64, 4, 128
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_TOKEN = 258  # <|im_end|>


def byte_tokens() -> list[str]:
    """The 256 byte tokens of byte-level BPE in the order of the bytes: printable ones stand for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 7,
    ctx: int = 8192,
    ends: bool = False,
    template: str | None = CHAT_TEMPLATE,
    nan: str | None = None,
    mute: str = "",
    pooling: int | None = None,
    causal: bool = True,
) -> Path:
    """Write the model; the same arguments give the same bytes. ``ends``: it soon says its end token.

    ``nan``: its weights are no numbers, "" for all that it computes, else for prompts that have this character.
    ``mute``: a character that its vocabulary lacks. ``pooling``: how its vectors are made (llama.cpp's enum), as its
    file says. ``causal``: False for a file that says that it only reads.
    """
    import gguf
    import numpy as np

    random = np.random.default_rng(seed)

    def noise(*shape: int, scale: float = 0.2) -> np.ndarray:
        return random.normal(0.0, scale, shape).astype(np.float32)

    tokens = [*byte_tokens(), *SPECIAL, "th"]
    if mute:
        tokens[ord(mute)] = "~~"
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name("tiny")
    w.add_context_length(ctx)
    w.add_embedding_length(EMBEDDING)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FEED_FORWARD)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(EMBEDDING // HEADS)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types([3 if t in SPECIAL else 1 for t in tokens])  # 3: control, 1: normal
    w.add_token_merges(["t h"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(END_TOKEN)
    w.add_add_bos_token(False)
    if not causal:
        w.add_causal_attention(False)
    if pooling is not None:
        w.add_pooling_type(gguf.PoolingType(pooling))
    if template is not None:
        w.add_chat_template(template)

    embedding = noise(len(tokens), EMBEDDING)
    embedding[:, 0] = 4.0
    if nan is not None:
        embedding[ord(nan) if nan else slice(None), 1] = np.nan
    output = noise(len(tokens), EMBEDDING)
    printable = [i for i in range(256) if 0x20 <= i < 0x7F]
    output[:, 0] = 0.0
    output[printable, 0] = 0.5
    output[256:259, 0] = -10.0
    if ends:
        output[END_TOKEN, 0] = 0.8
    w.add_tensor("token_embd.weight", embedding)
    w.add_tensor("output_norm.weight", np.ones(EMBEDDING, dtype=np.float32))
    w.add_tensor("output.weight", output)
    for n in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v"):
            w.add_tensor(f"blk.{n}.{name}.weight", noise(EMBEDDING, EMBEDDING))
        for name in ("ffn_gate", "ffn_up"):
            w.add_tensor(f"blk.{n}.{name}.weight", noise(FEED_FORWARD, EMBEDDING))
        for name, width in (("attn_output", EMBEDDING), ("ffn_down", FEED_FORWARD)):
            weights = noise(EMBEDDING, width)
            weights[0] = 0.0  # no layer changes the first component
            w.add_tensor(f"blk.{n}.{name}.weight", weights)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{n}.{name}.weight", np.ones(EMBEDDING, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


if __name__ == "__main__":
    write_tiny_gguf(Path(sys.argv[1]))
