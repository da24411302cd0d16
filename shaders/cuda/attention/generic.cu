// Attention by online softmax (arXiv:1805.02867) in f32: every type, head length, mask and cache.
//
// A block of 4 warps computes rows (a query and a head) one after the other: the keys are dealt out to the warps 32 at a time, a lane
// computes the score of one of them, and then all lanes add the values, each lane the elements of the head that lie 32 apart. The warps'
// results are put together through shared memory in a fixed order. Heads of more than 256 elements are computed 256 elements at a time.
//
// Grid: `items` blocks for each sequence and head; block `i` has the query rows `i`, `i + items`, ...
#include "attention/common.cuh"

static constexpr int WARPS = 4, DIMS = 8;

template <class KV> static __device__ void rows(const Attention &p, const Operands &o) {
    __shared__ float tops[WARPS], sums[WARPS], values[WARPS][32 * DIMS];
    const i32 warp = (i32)(threadIdx.x / 32), lane = (i32)(threadIdx.x % 32);
    const i32 item = (i32)(blockIdx.x % (u32)p.items), unit = (i32)(blockIdx.x / (u32)p.items);
    const i32 head = unit % p.heads;
    const Sequence s = sequence_of(p, o.kv_len, o.q_offsets, unit / p.heads);
    for (i32 row = item; row < s.n; row += p.items) {
        i32 start, end;
        visible(p, s, row, start, end);
        for (i32 base = 0; base < p.head_dim; base += 32 * DIMS) {
            Running<DIMS> run;
            attend<KV, DIMS>(p, o, s, row, head, warp, WARPS, base, run);
            if (lane == 0) {
                tops[warp] = run.top;
                sums[warp] = run.sum;
            }
#pragma unroll
            for (int j = 0; j < DIMS; j++) {
                values[warp][lane + 32 * j] = run.value[j];
            }
            __syncthreads();
            float top = o.sinks ? o.sinks[head] : -INFINITE;
            for (int w = 0; w < WARPS; w++) {
                top = fmaxf(top, tops[w]);
            }
            const float less = subtrahend(top);
            float sum = o.sinks ? expf(o.sinks[head] - less) : 0.0f;
            for (int w = 0; w < WARPS; w++) {
                sum += sums[w] * expf(tops[w] - less);
            }
            for (i32 d = (i32)threadIdx.x; d < min(32 * DIMS, p.head_dim - base); d += 32 * WARPS) {
                float value = 0.0f;
                for (int w = 0; w < WARPS; w++) {
                    value = fmaf(values[w][d], expf(tops[w] - less), value);
                }
                const i64 at = (i64)(s.first + row) * p.out_outer + head * p.out_inner + base + d;
                store_element(o.out, (u64)at, p.out_dtype, start < end ? value / sum : 0.0f);
            }
            __syncthreads();
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
    attention_generic(const __grid_constant__ Attention p, const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v,
                      const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets, const i32 *__restrict__ table,
                      const float *__restrict__ sinks, void *__restrict__ out) {
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
    switch (p.kv_dtype) {
    case DTYPE_F32: rows<float>(p, o); break;
    case DTYPE_F16: rows<f16>(p, o); break;
    case DTYPE_BF16: rows<bf16>(p, o); break;
    case DTYPE_F8E4M3: rows<e4m3>(p, o); break;
    default: rows<q8_0>(p, o); break;
    }
}
