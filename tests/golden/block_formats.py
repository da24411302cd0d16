#!/usr/bin/env python3
"""Makes the golden files of the block formats and casts: kernels/tests/golden/{block,cast}_*.bin.

    python tests/golden/block_formats.py --ggml libggml-base.so

needs numpy, torch (2.15) and gguf (0.19) from PyPI, and ggml's shared library built without contraction of
products and sums, so that its results do not depend on the machine:
cmake -DGGML_NATIVE=OFF -DCMAKE_C_FLAGS=-ffp-contract=off.

block_<format>.bin, little-endian: u32 q, u32 r; f32 values of q blocks; bytes of those blocks as the reference
quantises them; bytes of r random blocks; f32 values of all q + r blocks as gguf dequantises them. The reference
quantiser is gguf where it has one (q8_0, q4_0, mxfp4) and ggml's quantize_row_*_ref otherwise (q4_k, q6_k).

cast_f32.bin: u32 n; then n times f32 input, u16 f16, u16 bf16, u8 e4m3, as torch rounds it. The e4m3 conversion
must be a saturating one, as torch 2.15 has it; older releases turn overflow into NaN.
"""

import argparse
import ctypes
import struct
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

OUT = Path(__file__).resolve().parents[2] / "kernels" / "tests" / "golden"

# name: (type, block length, block bytes, offsets of f16 scales, largest magnitude that they can hold, function of ggml)
FORMATS = {
    "q8_0": (Type.Q8_0, 32, 34, [0], 65504 * 127, None),
    "q4_0": (Type.Q4_0, 32, 18, [0], 65504 * 8, None),
    "q4_k": (Type.Q4_K, 256, 144, [0, 2], 65504 * 63, "quantize_row_q4_K_ref"),
    "q6_k": (Type.Q6_K, 256, 210, [208], 65504 * 127 * 31, "quantize_row_q6_K_ref"),
    "mxfp4": (Type.MXFP4, 32, 17, [], 3e38, None),
}


def blocks_to_quantise(rng, length, limit):
    """Blocks of every kind that a quantiser treats apart, one a row."""
    normal = rng.standard_normal((6, length))
    mixed = rng.standard_normal((1, length)) * np.exp2(rng.integers(-12, 12, length))
    sparse = np.where(rng.random((1, length)) < 0.9, 0.0, rng.standard_normal((1, length)))
    grouped = rng.standard_normal((1, length)) * np.exp2(np.arange(length) // 16 % 8 - 4)
    ramp = np.linspace(-1, 1, length)[None]
    halves = rng.integers(-17, 18, (1, length)) / 2
    alternating = np.where(np.arange(length) % 2 == 0, 0.75, -0.75)[None]
    constants = np.array([0.0, -0.0, 1.0, -1.0, 0.3, -0.3])[:, None] * np.ones((1, length))
    return np.concatenate(
        [
            normal,
            mixed,
            sparse,
            grouped,
            ramp,
            halves,
            alternating,
            constants,
            np.abs(normal[:1]),
            -np.abs(normal[1:2]),
            np.abs(normal[2:3]) + 4,
            normal[3:4] * 0.02,
            normal[4:5] * 1e-6,
            normal[5:6] * 1e-20,
            normal[:1] / np.abs(normal[:1]).max() * (0.999 * limit),
        ]
    ).astype(np.float32)


def random_blocks(rng, count, size, scales_at):
    """Random bytes, with finite f16 scales of any size."""
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales_at:
        scales = rng.integers(0, 0x7C00, count) | rng.integers(0, 2, count) << 15
        data[:, at : at + 2] = scales.astype("<u2")[:, None].view(np.uint8)
    if not scales_at:
        # gguf gives the NaN scale of mxfp4 a finite meaning, and the largest two overflow f32.
        data[:, 0] = np.concatenate([[0, 1, 2, 252], rng.integers(0, 253, count - 4)])
    return data


def ggml_quantise(library, function, values, size):
    out = np.zeros((values.shape[0], size), dtype=np.uint8)
    call = getattr(library, function)
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    call.restype = None
    call(values.ctypes.data, out.ctypes.data, values.size)
    return out


def write_blocks(library):
    for seed, (name, (kind, length, size, scales_at, limit, function)) in enumerate(FORMATS.items()):
        rng = np.random.default_rng(seed)
        values = blocks_to_quantise(rng, length, limit)
        if name == "mxfp4":
            # gguf's scale byte wraps around where the values are smaller than its smallest scale.
            assert np.abs(values).max(axis=1, where=values != 0, initial=1.0).min() > 2.0**-125
        if function is None:
            stored = quantize(values, kind)
        else:
            stored = ggml_quantise(library, function, values, size)
        random = random_blocks(rng, 24 if length == 32 else 8, size, scales_at)
        decoded = dequantize(np.concatenate([stored, random]), kind)
        assert np.isfinite(decoded).all(), name
        header = struct.pack("<II", len(stored), len(random))
        parts = [values.astype("<f4"), stored, random, decoded.astype("<f4")]
        (OUT / f"block_{name}.bin").write_bytes(header + b"".join(p.tobytes() for p in parts))


def write_casts():
    rng = np.random.default_rng(9)
    codes = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    midpoints = ((codes[1:].astype(np.float64) + codes[:-1]) / 2).astype(np.float32)
    near = np.concatenate([codes, midpoints, [464.0, 480.0, 65504.0, 65520.0, 65536.0]]).astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(0))])
    wide = rng.integers(0, 0x7F800000, 1000, dtype=np.uint32).view(np.float32)
    middle = (rng.standard_normal(1000) * np.exp2(rng.integers(-16, 10, 1000))).astype(np.float32)
    values = np.concatenate([near, -near, wide, -wide, middle, [np.inf, -np.inf]]).astype(np.float32)
    tensor = torch.from_numpy(values)
    assert tensor.to(torch.float8_e4m3fn).isnan().sum() == 0, "this torch does not saturate; use a newer one"
    rows = zip(
        values.view(np.uint32).tolist(),
        tensor.to(torch.float16).view(torch.uint16).tolist(),
        tensor.to(torch.bfloat16).view(torch.uint16).tolist(),
        tensor.to(torch.float8_e4m3fn).view(torch.uint8).tolist(),
    )
    data = b"".join(struct.pack("<IHHB", *row) for row in rows)
    (OUT / "cast_f32.bin").write_bytes(struct.pack("<I", len(values)) + data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", required=True, type=Path, help="shared library that has quantize_row_q4_K_ref")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    write_blocks(ctypes.CDLL(str(args.ggml.resolve())))
    write_casts()
