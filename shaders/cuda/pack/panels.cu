// Packs weights of a block format into panels of 16 columns, as matmul/skinny.cu reads them: every load of a warp is one contiguous
// piece, and a lane's words are fragments of mma.sync.m16n8k16 (lane 4 g + t has columns g and g + 8).
//
// A panel is a sequence of steps of 128 (q4_k, q6_k: 256) elements of k, zero beyond k and n. A step has codes, then scales:
//   q8_0   4 x [lane][4 words]: four codes of column g, of g + 8, the next four of g, of g + 8    then [column][4] f16
//   q4_0   2 x [lane][4 words]: eight codes each (below)                                          then [column][4] f16
//   mxfp4  the same                                                                               then [column][4] E8M0
//   q4_k   4 x the same                                                                           then [column] 16 bytes: d, dmin, scales
//   q6_k   4 x the same for the lower bits, 2 x [lane][4 words] of upper bits                     then [column][16] i8, [column] f16
// Eight codes: k 0, 1 of column g in bits 0-3 and 16-19; of g + 8 in 4-7 and 20-23; k 2, 3 of g in 8-11 and 24-27; of g + 8 in 12-15 and
// 28-31; of q4_0 and q4_k the word is then turned to the left by three bits, where codes are mantissas. Of mxfp4, sign and magnitude of the same four lie in 15 and 8-6, 12 and 5-3, 9 and 2-0, 14 and 13, 11, 10, and 16 bits above. The k
// of a word of 16 within its block of 32: lane t has 8 t + 4 w .. + 3 for word w, of q6_k 16 w + 4 t .. + 3.
//
// One thread writes one word.

#include "common/element.cuh"

struct Params {
    // Bytes of B from a column to the next and from a matrix to the next; of a panel.
    i64 column, matrix, panel;
    i64 matrices, n, k;
    u32 dtype;
    u32 pad;
};

constexpr u32 COLUMNS = 16;

// The code of element `i` of a block, as it is stored.
DEVICE u32 code_of(const u8 *block, u32 i, u32 dtype) {
    switch (dtype) {
    case DTYPE_Q8_0: return block[2 + i];
    case DTYPE_Q4_0: return block[2 + i % 16] >> (i / 16 * 4) & 15u;
    case DTYPE_MXFP4: return block[1 + i % 16] >> (i / 16 * 4) & 15u;
    case DTYPE_Q4_K: return block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15u;
    default: {
        const u32 half = i / 128, run = i / 32 % 4, at = i % 32;
        const u32 low = block[half * 64 + run % 2 * 32 + at] >> (run / 2 * 4) & 15u;
        const u32 high = block[128 + half * 32 + at] >> (run * 2) & 3u;
        return low | high << 4;
    }
    }
}

// Columns of a panel of one matrix: blocks of column `c`, or null beyond n.
struct Panel {
    const u8 *first;
    i64 column, k;
    u32 columns, dtype;

    __device__ __forceinline__ const u8 *block(u32 c, i64 at) const {
        return c < columns && at < k ? first + c * column + at / block_len(dtype) * block_bytes(dtype) : nullptr;
    }
    __device__ __forceinline__ u32 code(u32 c, i64 at) const {
        const u8 *from = block(c, at);
        return from ? code_of(from, (u32)(at % block_len(dtype)), dtype) : 0;
    }
    // Byte `i` of the block of column `c` at `at`.
    __device__ __forceinline__ u32 byte(u32 c, i64 at, u32 i) const {
        const u8 *from = block(c, at);
        return from ? from[i] : 0;
    }
};

// Which element of a block of 32 is element `i` of word `w` of lane `t`.
DEVICE u32 element_of(u32 dtype, u32 t, u32 w, u32 i) {
    return dtype == DTYPE_Q6_K ? 16 * w + 4 * t + i : 8 * t + 4 * w + i;
}

// Word `word` of the step that begins at `k0`.
DEVICE u32 word_of(const Panel &from, i64 k0, u32 word) {
    const u32 lane = word / 4 % 32, g = lane / 4, t = lane % 4, j = word % 4;
    u32 out = 0;
    if (from.dtype == DTYPE_Q8_0 && word < 512) {
        const i64 k = k0 + word / 128 * 32;
        for (u32 i = 0; i < 4; i++) {
            out |= from.code(g + j % 2 * 8, k + element_of(from.dtype, t, j / 2, i)) << 8 * i;
        }
        return out;
    }
    const u32 codes = from.dtype == DTYPE_Q8_0 ? 512 : block_len(from.dtype) == 256 ? 512 : 256;
    if (word < codes) {
        const i64 k = k0 + word / 128 * 64 + j / 2 * 32;
        for (u32 i = 0; i < 8; i++) {
            const u32 code = from.code(g + i / 2 % 2 * 8, k + element_of(from.dtype, t, j % 2, i / 4 * 2 + i % 2));
            const u32 r = i / 2;
            if (from.dtype == DTYPE_MXFP4) {
                const u32 bits = r < 3 ? (code >> 3 << 15 | (code & 7u) << 6) >> 3 * r : code >> 3 << 14 | (code & 4u) << 11 | (code & 3u) << 10;
                out |= bits << i % 2 * 16;
            } else {
                out |= (code & 15u) << (r * 4 + i % 2 * 16);
            }
        }
        return from.dtype == DTYPE_Q4_0 || from.dtype == DTYPE_Q4_K ? out << 3 | out >> 29 : out;
    }
    word -= codes;
    switch (from.dtype) {
    case DTYPE_Q8_0:
    case DTYPE_Q4_0:
        for (u32 i = 0; i < 4; i++) {
            out |= from.byte(word / 2, k0 + (word % 2 * 2 + i / 2) * 32, i % 2) << 8 * i;
        }
        return out;
    case DTYPE_MXFP4:
        for (u32 i = 0; i < 4; i++) {
            out |= from.byte(word, k0 + i * 32, 0) << 8 * i;
        }
        return out;
    case DTYPE_Q4_K:
        for (u32 i = 0; i < 4; i++) {
            out |= from.byte(word / 4, k0, word % 4 * 4 + i) << 8 * i;
        }
        return out;
    default: break;
    }
    if (word < 256) {
        const i64 k = k0 + word / 128 * 128 + j * 32;
        for (u32 i = 0; i < 16; i++) {
            const u32 w = i / 8, r = i / 2 % 4;
            const u32 code = from.code(g + r % 2 * 8, k + element_of(DTYPE_Q6_K, t, w, r / 2 * 2 + i % 2));
            out |= (code >> 4) << (w * 8 + r * 2 + i % 2 * 16);
        }
        return out;
    }
    word -= 256;
    for (u32 i = 0; i < 4; i++) {
        out |= (word < 64 ? from.byte(word / 4, k0, 192 + word % 4 * 4 + i) : from.byte((word - 64) * 2 + i / 2, k0, 208 + i % 2)) << 8 * i;
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(256) pack_panels(const __grid_constant__ Params p, const u8 *__restrict__ b, u32 *__restrict__ packed) {
    const i64 panels = (p.n + COLUMNS - 1) / COLUMNS, words = p.panel / 4;
    const i64 step = block_len(p.dtype) == 256 ? 256 : 128, steps = (p.k + step - 1) / step;
    for (i64 at = (i64)blockIdx.x * 256 + threadIdx.x; at < p.matrices * panels * words; at += (i64)gridDim.x * 256) {
        const i64 panel = at / words % panels, matrix = at / words / panels;
        const i64 left = p.n - panel * COLUMNS;
        const Panel from = {b + matrix * p.matrix + panel * COLUMNS * p.column, p.column, p.k, (u32)(left < COLUMNS ? left : COLUMNS), p.dtype};
        const i64 per_step = words / steps, word = at % words;
        packed[at] = word_of(from, word / per_step * step, (u32)(word % per_step));
    }
}
