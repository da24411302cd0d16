// Hopper's instructions: barriers in shared memory, clusters, copies of tensors, and the products of warpgroups. Copies and products happen
// at once: what must be waited for shows only where a wait would never end.
#pragma once

namespace perjoule::ptx {

// ---- barriers in shared memory ----

struct Mbarrier {
    unsigned long long pending : 20, expected : 20, phase : 1;
    long long bytes : 23;
};
static_assert(sizeof(Mbarrier) == 8, "a barrier of 64 bits");

inline Mbarrier& mbarrier(Mem m) {
    aligned(Shared::pointer(m), 8);
    return *reinterpret_cast<Mbarrier*>(Shared::pointer(m));
}
inline void settle(Mbarrier& b) {
    if (b.pending != 0 || b.bytes != 0) return;
    b.phase ^= 1;
    b.pending = b.expected;
}
inline void arrive(Mbarrier& b, unsigned count, unsigned bytes) {
    if (b.pending < count) self().runtime->fault("more arrivals at an mbarrier than it expects");
    b.bytes = b.bytes + int(bytes);
    b.pending = b.pending - count;
    settle(b);
}
template <class T>
inline void op_mbarrier_init_shared(Mem m, Reg count) {
    Mbarrier& b = mbarrier(m);
    b.pending = b.expected = unsigned(count.bits);
    b.phase = 0;
    b.bytes = 0;
}
template <class T>
inline void op_mbarrier_inval_shared(Mem) {}
template <class T>
inline void op_mbarrier_arrive_shared(Reg, Mem m) {
    arrive(mbarrier(m), 1, 0);
}
template <class T>
inline void op_mbarrier_arrive_shared(Reg, Mem m, Reg count) {
    arrive(mbarrier(m), unsigned(count.bits), 0);
}
template <class T>
inline void op_mbarrier_arrive_shared_cluster(Reg, Mem m) {
    arrive(mbarrier(m), 1, 0);
}
template <class T>
inline void op_mbarrier_arrive_shared_cluster(Mem m) {
    arrive(mbarrier(m), 1, 0);
}
// Copies of this thread so far are carried out at once: what must be waited for shows only where a wait would never end.
template <class T>
inline void op_cp_async_mbarrier_arrive_shared(Mem m) {
    op_cp_async_wait_all();
    arrive(mbarrier(m), 1, 0);
}
template <class T>
inline void op_mbarrier_arrive_expect_tx_shared(Reg, Mem m, Reg bytes) {
    arrive(mbarrier(m), 1, unsigned(bytes.bits));
}
template <class T>
inline void op_mbarrier_arrive_expect_tx_shared_cluster(Reg, Mem m, Reg bytes) {
    arrive(mbarrier(m), 1, unsigned(bytes.bits));
}
template <class T>
inline void op_mbarrier_expect_tx_shared(Mem m, Reg bytes) {
    Mbarrier& b = mbarrier(m);
    b.bytes = b.bytes + int(bytes.bits);
}
inline bool passed(Mem m, unsigned parity) {
    if (mbarrier(m).phase != (parity & 1)) return true;
    waiting();
    return mbarrier(m).phase != (parity & 1);
}
template <class T>
inline void op_mbarrier_try_wait_parity_shared(Reg& p, Mem m, Reg parity) {
    p = {passed(m, unsigned(parity.bits))};
}
template <class T>
inline void op_mbarrier_try_wait_parity_shared(Reg& p, Mem m, Reg parity, Reg) {
    p = {passed(m, unsigned(parity.bits))};
}
template <class T>
inline void op_mbarrier_test_wait_parity_shared(Reg& p, Mem m, Reg parity) {
    p = {passed(m, unsigned(parity.bits))};
}

// ---- clusters ----

// The address in the block `rank` that stands where `address` does in this one.
inline unsigned mapped(unsigned address, unsigned rank) {
    const Block& b = *self().block;
    if (rank >= b.cluster_size) self().runtime->fault("no such block in the cluster");
    return unsigned(address + (b.cluster[rank]->dynamic_shared - b.dynamic_shared));
}
template <class T>
inline void op_mapa_shared_cluster(Reg& d, Reg address, Reg rank) {
    d = {mapped(unsigned(address.bits), unsigned(rank.bits))};
}
inline void op_barrier_cluster_arrive() { self().runtime->cluster_arrive(); }
inline void op_barrier_cluster_wait() { self().runtime->cluster_wait(); }

// ---- copies of tensors ----

// What the emulated cuTensorMapEncodeTiled writes into a CUtensorMap.
struct Map {
    unsigned long long base, dim[5], stride[5];
    unsigned short box[5];
    unsigned char rank, bytes, swizzle, magic;
};
static_assert(sizeof(Map) <= 128, "a tensor map of 128 bytes");
constexpr unsigned char MAGIC = 0xA7;

// The swizzle works on bits of the address: 16-byte chunks change places within 32, 64 or 128 bytes.
inline unsigned swizzled(unsigned address, unsigned mode) {
    const unsigned mask = mode == 3 ? 7 : mode == 2 ? 3 : mode == 1 ? 1 : 0;
    return address ^ (((address >> 7) & mask) << 4);
}

// Copies the box at `at` between the tensor and shared memory. Gives the bytes of the box.
template <bool LOAD>
inline unsigned box(Mem map, const int* at, int rank, unsigned address) {
    const Map& m = *reinterpret_cast<const Map*>(map.address);
    if (m.magic != MAGIC || m.rank != rank) self().runtime->fault("no tensor map of this rank");
    if (address % 128 != 0) self().runtime->fault("a box in shared memory that is not aligned to 128 bytes");
    unsigned extent[5] = {1, 1, 1, 1, 1};
    int corner[5] = {0, 0, 0, 0, 0};
    for (int i = 0; i < rank; i++) extent[i] = m.box[i], corner[i] = at[i];
    const unsigned row = extent[0] * m.bytes;
    unsigned offset = 0;
    for (unsigned e = 0; e < extent[4]; e++)
        for (unsigned d = 0; d < extent[3]; d++)
            for (unsigned c = 0; c < extent[2]; c++)
                for (unsigned b = 0; b < extent[1]; b++, offset += row) {
                    const long long index[5] = {corner[0], corner[1] + static_cast<long long>(b), corner[2] + static_cast<long long>(c),
                                                corner[3] + static_cast<long long>(d), corner[4] + static_cast<long long>(e)};
                    bool inside = true;
                    unsigned long long from = m.base;
                    for (int i = 1; i < rank; i++) {
                        inside &= index[i] >= 0 && static_cast<unsigned long long>(index[i]) < m.dim[i];
                        from += static_cast<unsigned long long>(index[i]) * m.stride[i];
                    }
                    for (unsigned a = 0; a < extent[0]; a++) {
                        const long long x = index[0] + a;
                        unsigned char* there = window(swizzled(address + offset + a * m.bytes, m.swizzle));
                        unsigned char* global = reinterpret_cast<unsigned char*>(from + static_cast<unsigned long long>(x) * m.bytes);
                        const bool valid = inside && x >= 0 && static_cast<unsigned long long>(x) < m.dim[0];
                        if (LOAD && valid)
                            __builtin_memcpy(there, global, m.bytes);
                        else if (LOAD)
                            __builtin_memset(there, 0, m.bytes);
                        else if (valid)
                            __builtin_memcpy(global, there, m.bytes);
                    }
                }
    return offset;
}
inline void brought(Mbarrier& b, unsigned bytes) {
    b.bytes = b.bytes - int(bytes);
    settle(b);
}
template <class... X>
inline void bring(Mem to, Mem map, Mem barrier, unsigned mask, X... x) {
    const int at[] = {int(x.bits)...};
    const Block& block = *self().block;
    for (unsigned rank = 0; rank < block.cluster_size; rank++) {
        if (mask && !((mask >> rank) & 1)) continue;
        if (!mask && rank != block.cluster_rank) continue;
        const unsigned bytes = box<true>(map, at, sizeof...(X), mapped(unsigned(to.address), rank));
        brought(mbarrier({mapped(unsigned(barrier.address), rank)}), bytes);
    }
}
template <class... X>
inline void carry(Mem map, Mem from, X... x) {
    const int at[] = {int(x.bits)...};
    box<false>(map, at, sizeof...(X), unsigned(from.address));
}
#define PERJOULE_TENSOR(n, XS, XARGS)                                                                                                      \
    inline void op_cp_async_bulk_tensor_##n##d_shared_cluster_tile_mbarrier_complete_tx_bytes(Mem to, Mem map, Vec<n> v, Mem barrier) {    \
        bring(to, map, barrier, 0, XS);                                                                                                    \
    }                                                                                                                                      \
    inline void op_cp_async_bulk_tensor_##n##d_shared_cluster_tile_mbarrier_complete_tx_bytes(Mem to, Mem map, Vec<n> v, Mem barrier,      \
                                                                                              Reg) {                                       \
        bring(to, map, barrier, 0, XS);                                                                                                    \
    }                                                                                                                                      \
    inline void op_cp_async_bulk_tensor_##n##d_shared_cluster_mbarrier_complete_tx_bytes(Mem to, Mem map, Vec<n> v, Mem barrier) {         \
        bring(to, map, barrier, 0, XS);                                                                                                    \
    }                                                                                                                                      \
    inline void op_cp_async_bulk_tensor_##n##d_shared_cluster_tile_mbarrier_complete_tx_bytes_multicast_cluster(Mem to, Mem map, Vec<n> v, \
                                                                                                                Mem barrier, Reg mask) {   \
        bring(to, map, barrier, unsigned(mask.bits), XS);                                                                                  \
    }                                                                                                                                      \
    inline void op_cp_async_bulk_tensor_##n##d_shared_tile_bulk_group(Mem map, Vec<n> v, Mem from) { carry(map, from, XS); }               \
    inline void op_cp_async_bulk_tensor_##n##d_shared_bulk_group(Mem map, Vec<n> v, Mem from) { carry(map, from, XS); }
#define PERJOULE_COMMA ,
PERJOULE_TENSOR(1, *v.r[0], )
PERJOULE_TENSOR(2, *v.r[0] PERJOULE_COMMA* v.r[1], )
PERJOULE_TENSOR(3, *v.r[0] PERJOULE_COMMA* v.r[1] PERJOULE_COMMA* v.r[2], )
PERJOULE_TENSOR(4, *v.r[0] PERJOULE_COMMA* v.r[1] PERJOULE_COMMA* v.r[2] PERJOULE_COMMA* v.r[3], )
PERJOULE_TENSOR(5, *v.r[0] PERJOULE_COMMA* v.r[1] PERJOULE_COMMA* v.r[2] PERJOULE_COMMA* v.r[3] PERJOULE_COMMA* v.r[4], )
// copies of plain bytes
inline void op_cp_async_bulk_shared_cluster_mbarrier_complete_tx_bytes(Mem to, Mem from, Reg bytes, Mem barrier) {
    if (to.address % 16 || from.address % 16 || bytes.bits % 16) self().runtime->fault("a bulk copy that is not aligned to 16 bytes");
    __builtin_memcpy(Shared::pointer(to), Global::pointer(from), unsigned(bytes.bits));
    brought(mbarrier(barrier), unsigned(bytes.bits));
}
inline void op_cp_async_bulk_shared_bulk_group(Mem to, Mem from, Reg bytes) {
    if (to.address % 16 || from.address % 16 || bytes.bits % 16) self().runtime->fault("a bulk copy that is not aligned to 16 bytes");
    __builtin_memcpy(Global::pointer(to), Shared::pointer(from), unsigned(bytes.bits));
}
inline void op_cp_async_bulk_commit_group() {}
inline void op_cp_async_bulk_wait_group(Reg) {}
inline void op_cp_async_bulk_wait_group_read(Reg) {}

// ---- products of warpgroups ----

inline void op_wgmma_fence() {}
inline void op_wgmma_commit_group() {}
inline void op_wgmma_wait_group(Reg) {}

// One element of an operand that a matrix descriptor describes, as its 32-bit address: `line` counts rows of A or columns of B, `k` bytes
// (K-major) or elements (MN-major) along k.
inline unsigned element_address(unsigned long long descriptor, bool lines_along_mn, unsigned line, unsigned k, unsigned bytes) {
    const unsigned start = unsigned(descriptor & 0x3fff) << 4, leading = unsigned(descriptor >> 16 & 0x3fff) << 4;
    const unsigned stride = unsigned(descriptor >> 32 & 0x3fff) << 4, code = unsigned(descriptor >> 62);
    const unsigned mode = code == 1 ? 3 : code == 2 ? 2 : code == 3 ? 1 : 0;
    const unsigned span = mode ? 16u << mode : 16;
    unsigned at = start;
    if (!lines_along_mn) {
        const unsigned byte = k * bytes;
        at += line / 8 * stride + line % 8 * span + (mode ? byte : byte / 16 * leading + byte % 16);
    } else {
        const unsigned byte = line * bytes;
        at += mode ? byte / span * leading + byte % span + k / 8 * stride + k % 8 * span
                   : byte / 16 * stride + byte % 16 + k / 8 * leading + k % 8 * 16;
    }
    return swizzled(at, mode);
}
// Descriptors hold 18 bits of the address: the rest is that of the block's own shared memory.
inline unsigned char* described(unsigned address) {
    const unsigned base = unsigned(self().block->dynamic_shared - self().block->window);
    return window((base & ~0x3ffffu) | (address & 0x3ffff));
}

template <int N, int K, class D, class A, class B>
struct Wgmma {
    static constexpr unsigned SIZE = 4 / Element<A>::EACH;
    Reg* const* d;
    unsigned a[4];
    unsigned long long a_descriptor, b_descriptor;
    bool a_registers, accumulate, a_mn, b_mn;
    float sign;

    template <class T>
    static float element(unsigned address) {
        unsigned word = 0;
        __builtin_memcpy(&word, described(address), SIZE);
        return float(Element<T>::at(word, 0));
    }
    static void run(void* const* lanes, unsigned) {
        const Wgmma& first = *static_cast<Wgmma*>(lanes[0]);
        const unsigned warp = self().warp_in_block % 4;
        static thread_local float x[16][K], y[K][N];
        if (first.a_registers) {
            constexpr int EACH = Element<A>::EACH;
            for (int lane = 0; lane < 32; lane++)
                for (int r = 0; r < 4; r++)
                    for (int i = 0; i < EACH; i++)
                        x[lane / 4 + 8 * (r & 1)][EACH * (lane % 4) + (r >> 1) * 4 * EACH + i] =
                            float(Element<A>::at(static_cast<Wgmma*>(lanes[lane])->a[r], i));
        } else {
            for (unsigned row = 0; row < 16; row++)
                for (unsigned k = 0; k < K; k++)
                    x[row][k] = element<A>(element_address(first.a_descriptor, first.a_mn, 16 * warp + row, k, SIZE));
        }
        for (unsigned k = 0; k < K; k++)
            for (unsigned n = 0; n < N; n++) y[k][n] = element<B>(element_address(first.b_descriptor, first.b_mn, n, k, SIZE));
        for (unsigned row = 0; row < 16; row++) {
            double sum[N] = {};
            for (unsigned k = 0; k < K; k++)
                for (unsigned n = 0; n < N; n++) sum[n] += double(x[row][k]) * double(y[k][n]);
            for (unsigned n = 0; n < N; n++) {
                Wgmma& m = *static_cast<Wgmma*>(lanes[row % 8 * 4 + n % 8 / 2]);
                Reg& r = *m.d[n / 8 * 4 + row / 8 * 2 + n % 2];
                using C = typename D::C;
                if constexpr (C(0.5) == 0)
                    r = get((m.accumulate ? int(r.bits) : 0) + int(sum[n]));
                else
                    r = get(float(double(m.sign) * sum[n] + (m.accumulate ? double(bits<float>(unsigned(r.bits))) : 0.0)));
            }
        }
    }
};
template <int N, int K, class D, class A, class B>
inline void op_wgmma_mma_async(Vec<N / 2> d, Reg a, Reg b, Reg p, Reg sa = {1}, Reg sb = {1}, Reg ta = {0}, Reg tb = {0}) {
    using W = Wgmma<N, K, D, A, B>;
    W w{d.r, {}, a.bits, b.bits, false, truth(p), truth(ta), truth(tb), float(int(sa.bits) * int(sb.bits))};
    self().runtime->warp(0xffffffffu, &W::run, &w);
}
template <int N, int K, class D, class A, class B>
inline void op_wgmma_mma_async(Vec<N / 2> d, Vec<4> a, Reg b, Reg p, Reg sa = {1}, Reg sb = {1}, Reg tb = {0}) {
    using W = Wgmma<N, K, D, A, B>;
    W w{d.r, {}, 0, b.bits, true, truth(p), false, truth(tb), float(int(sa.bits) * int(sb.bits))};
    for (int i = 0; i < 4; i++) w.a[i] = unsigned(a.r[i]->bits);
    self().runtime->warp(0xffffffffu, &W::run, &w);
}

}  // namespace perjoule::ptx
