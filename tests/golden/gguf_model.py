"""Writes a tiny llama model with a vocabulary as a GGUF file, with the official Python package: tests/files/tiny-Q8_0.gguf.

    pip install gguf==0.19.0 numpy==2.4.6
    python tests/golden/gguf_model.py
"""

from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Q

TARGET = Path(__file__).parents[1] / "files/tiny-Q8_0.gguf"
HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


def printable_bytes():
    """The stand-ins that byte-level vocabularies have for the 256 bytes, as GPT-2 numbers them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def main():
    TARGET.parent.mkdir(exist_ok=True)
    random = numpy.random.default_rng(3)
    tokens = printable_bytes() + ["he", "ll", "hell", "hello", "<end>", "<begin>"]
    w = gguf.GGUFWriter(TARGET, "llama")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_block_count(LAYERS)
    w.add_context_length(128)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL] * 2)
    w.add_token_merges(["h e", "l l", "he ll", "hell o"])
    w.add_bos_token_id(len(tokens) - 1)
    w.add_eos_token_id(len(tokens) - 2)

    def matrix(name, rows, columns):
        values = random.normal(scale=0.15, size=(rows, columns)).astype(numpy.float32)
        w.add_tensor(f"{name}.weight", gguf.quantize(values, Q.Q8_0), raw_dtype=Q.Q8_0)

    def norm(name):
        w.add_tensor(f"{name}.weight", random.normal(1.0, 0.1, HIDDEN).astype(numpy.float32))

    matrix("token_embd", len(tokens), HIDDEN)
    head = HIDDEN // HEADS
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm")
        matrix(f"blk.{layer}.attn_q", HEADS * head, HIDDEN)
        matrix(f"blk.{layer}.attn_k", KV_HEADS * head, HIDDEN)
        matrix(f"blk.{layer}.attn_v", KV_HEADS * head, HIDDEN)
        matrix(f"blk.{layer}.attn_output", HIDDEN, HEADS * head)
        norm(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", FFN, HIDDEN)
        matrix(f"blk.{layer}.ffn_up", FFN, HIDDEN)
        matrix(f"blk.{layer}.ffn_down", HIDDEN, FFN)
    norm("output_norm")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
