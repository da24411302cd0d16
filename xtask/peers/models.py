"""Writes a Llama of 1.1 billion random weights as GGUF files: models.py FOLDER. Times do not depend on what the weights are.

bf16 is written here; the others are made of it by llama.cpp itself. Files that are there stay."""

import ctypes, os, sys

import gguf
import llama_cpp as llama
import numpy as np

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 16, 2048, 8192, 32, 8, 32000
HEAD = HIDDEN // HEADS
folder = sys.argv[1]
path = lambda name: os.path.join(folder, name + ".gguf")


def write(to):
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_name("random-1b")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(llama.LLAMA_FTYPE_MOSTLY_BF16)

    def matrix(name, rows, cols):
        values = (random.standard_normal(rows * cols, dtype=np.float32) * 0.02).view(np.uint32)
        bits = ((values + 0x8000) >> 16).astype(np.uint16).reshape(rows, cols)
        writer.add_tensor(name + ".weight", bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name):
        writer.add_tensor(name + ".weight", np.ones(HIDDEN, dtype=np.float32))

    matrix("token_embd", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm")
        matrix(block + "attn_q", HIDDEN, HIDDEN)
        matrix(block + "attn_k", KV_HEADS * HEAD, HIDDEN)
        matrix(block + "attn_v", KV_HEADS * HEAD, HIDDEN)
        matrix(block + "attn_output", HIDDEN, HIDDEN)
        norm(block + "ffn_norm")
        matrix(block + "ffn_gate", FFN, HIDDEN)
        matrix(block + "ffn_up", FFN, HIDDEN)
        matrix(block + "ffn_down", HIDDEN, FFN)
    norm("output_norm")
    matrix("output", VOCAB, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(name, how):
    if not os.path.exists(path(name)):
        how(path(name) + ".part")
        os.rename(path(name) + ".part", path(name))  # a whole file, or none


quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, ctypes.c_void_p(0))


def quantise(kind):
    def how(to):
        params = llama.llama_model_quantize_default_params()
        params.ftype = kind
        if llama.llama_model_quantize(path("bf16").encode(), to.encode(), ctypes.byref(params)):
            raise SystemExit("llama.cpp could not write " + to)

    return how


os.makedirs(folder, exist_ok=True)
make("bf16", write)
make("q8_0", quantise(llama.LLAMA_FTYPE_MOSTLY_Q8_0))
make("q4_0", quantise(llama.LLAMA_FTYPE_MOSTLY_Q4_0))
make("q4_k_m", quantise(llama.LLAMA_FTYPE_MOSTLY_Q4_K_M))
