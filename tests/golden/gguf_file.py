"""Writes a GGUF file with the official Python package: every type of value, and a tensor of every type that perjoule reads.

Each tensor `x` comes with `x.expected`: what the package itself makes of its bytes, in F32. The K formats, which the package only reads, hold
random codes under small scales.

    pip install gguf==0.19.0 numpy==2.4.6
    python tests/golden/gguf_file.py
"""

from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V

TARGET = Path(__file__).parents[2] / "bench-harness/model/tests/files/official.gguf"
SHAPE = (3, 512)


def k_blocks(random, count, q4):
    """Blocks of random codes whose f16 scales are small and of either sign."""
    size = gguf.GGML_QUANT_SIZES[Q.Q4_K if q4 else Q.Q6_K][1]
    blocks = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    scales = random.uniform(-0.02, 0.02, (count, 2)).astype(numpy.float16).view(numpy.uint8)
    if q4:
        blocks[:, :4] = scales
    else:
        blocks[:, -2:] = scales[:, :2]
    return blocks


def main():
    random = numpy.random.default_rng(7)
    w = gguf.GGUFWriter(TARGET, "llama")
    w.add_key_value("a.u8", 200, V.UINT8)
    w.add_key_value("a.i8", -100, V.INT8)
    w.add_key_value("a.u16", 60000, V.UINT16)
    w.add_key_value("a.i16", -30000, V.INT16)
    w.add_key_value("a.u32", 4000000000, V.UINT32)
    w.add_key_value("a.i32", -2000000000, V.INT32)
    w.add_key_value("a.u64", 2**63 + 1, V.UINT64)
    w.add_key_value("a.i64", -(2**62), V.INT64)
    w.add_key_value("a.f32", 0.1, V.FLOAT32)
    w.add_key_value("a.f64", 0.1, V.FLOAT64)
    w.add_key_value("a.yes", True, V.BOOL)
    w.add_key_value("a.text", "größer ▁ \n", V.STRING)
    w.add_array("a.numbers", [1, -2, 3])
    w.add_array("a.texts", ["", "ab", "▁c"])
    w.add_array("a.nested", [[1, 2], [3]])
    w.add_array("a.flags", [True, False])
    w.add_custom_alignment(64)

    def add(name, raw, dtype):
        w.add_tensor(name, raw, raw_dtype=dtype)
        expected = gguf.dequantize(raw, dtype).reshape(SHAPE)
        w.add_tensor(f"{name}.expected", numpy.ascontiguousarray(expected, dtype=numpy.float32))

    values = random.normal(size=SHAPE).astype(numpy.float32)
    for dtype in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.MXFP4):
        add(dtype.name, gguf.quantize(values, dtype), dtype)
    for dtype in (Q.Q4_K, Q.Q6_K):
        per_row = SHAPE[1] // 256
        add(dtype.name, k_blocks(random, SHAPE[0] * per_row, dtype == Q.Q4_K).reshape(SHAPE[0], -1), dtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
