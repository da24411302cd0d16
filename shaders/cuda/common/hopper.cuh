// Hopper's asynchronous machinery (sm_90a) in thin functions: transaction barriers, tensor copies, clusters, warpgroup registers.
//
// Shared memory is named by 32-bit addresses of the shared window (shared_address). A transaction barrier completes a phase when
// its arrivals and its announced bytes are in; waiters name the phase by its parity, so that a ring of stages needs one counter.
// (PTX ISA 9.0, sections 9.7.9.25 to 9.7.15.)
#ifndef PERJOULE_HOPPER_CUH
#define PERJOULE_HOPPER_CUH

#include "common/element.cuh"

// A CUtensorMap: opaque, passed by value.
struct alignas(128) TensorMap {
    u64 opaque[16];
};

DEVICE u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// ---- transaction barriers ----

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster; a barrier of the block or cluster comes after it.
DEVICE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
#ifdef WATCHDOG
    const long long start = clock64();
#endif
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
#ifdef WATCHDOG
        if (clock64() - start > WATCHDOG) {
            asm volatile("trap;");
        }
#endif
    } while (done == 0);
}

DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of the cluster's block `rank`. It orders no memory of the other block: a release in the scope of the
// cluster costs a fence of the whole GPU. For operands that tensor cores have read none is needed.
DEVICE void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Arrives, and announces bytes that copies will bring.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// ---- tensor copies ----

DEVICE void tensor_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The box at (x, y, z), x fastest, to shared memory; what lies outside the tensor is filled with zeros, and counted all the same.
DEVICE void tensor_load(u32 target, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
            target),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// The same of four dimensions.
DEVICE void tensor_load_4d(u32 target, const TensorMap *map, u32 barrier, i32 x, i32 y, i32 z, i32 w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                     target),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

// `tensor_load` to the same place, and the same barrier, of every block of the cluster whose bit is set.
DEVICE void tensor_load_multicast(u32 target, const TensorMap* map, u32 barrier, i32 x, i32 y, i32 z, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
        "%4, %5}], [%2], %6;" ::"r"(target),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(blocks)
        : "memory");
}

// A box of shared memory to (x, y, z); what lies outside the tensor is left out.
DEVICE void tensor_store(const TensorMap* map, u32 source, i32 x, i32 y, i32 z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(source), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

DEVICE void store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most PENDING of this thread's committed groups still read shared memory.
template <int PENDING>
DEVICE void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// 16 bytes by one thread, of which those behind `bytes` are zeros.
DEVICE void copy_16(u32 target, const void* from, i32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(bytes) : "memory");
}

// Arrives when this thread's copies so far are done. It is one of the arrivals that the barrier was initialised with.
DEVICE void copy_arrive(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

DEVICE void load_16(const void* from, u32 (&words)[4]) {
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(from)
                 : "memory");
}

DEVICE void store_16(void* to, const u32 (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// Orders this thread's stores to shared memory before what the copy engine or the tensor cores read after the next barrier.
DEVICE void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- clusters, grids, warpgroups ----

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster have come here. It orders no memory: barriers are made visible by their own fence.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}

// The same, and what threads of the cluster wrote before is seen after it.
DEVICE void cluster_sync_memory() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Four words to the same address of the cluster's block `rank`.
DEVICE void shared_store_at(u32 address, u32 rank, u32 a, u32 b, u32 c, u32 d) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "st.shared::cluster.v4.b32 [remote], {%2, %3, %4, %5};\n}" ::"r"(address),
        "r"(rank), "r"(a), "r"(b), "r"(c), "r"(d)
        : "memory");
}

DEVICE void shared_store(u32 address, u32 a, u32 b) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

DEVICE void shared_load(u32 address, u32 (&words)[4]) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// Waits for the grids before this one in the stream (programmatic dependent launch; returns at once without it).
DEVICE void grid_dependency_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the grid after this one start as blocks of this one leave.
DEVICE void grid_dependency_release() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// A barrier of `threads` threads; 0 is the block's own. Arriving is counted like waiting.
DEVICE void named_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEVICE void named_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int REGISTERS>
DEVICE void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
DEVICE void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Four 8x8 matrices of 16-bit elements from the fragments that wgmma leaves; lane 8 i + r gives the address of row r of matrix i.
DEVICE void matrix_store(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

// ---- wgmma ----

DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Descriptors of operands in shared memory under the 128-byte swizzle, whose atoms are 8 lines of 128 bytes, 1,024-aligned: `low` is a
// matter of the address, and steps of n bytes add n / 16 to it.
//
// Lines along k (K-major): line = row, STRIDE = bytes from 8 rows to the next 8; LEADING is not used. A step along k within the line
// adds its bytes to the address: the swizzle works on address bits. Lines along m or n (MN-major): line = one k of 64 elements,
// STRIDE = bytes from 8 k to the next 8, LEADING = bytes from 64 elements to the next 64.
template <u32 LEADING>
DEVICE u32 descriptor_low(u32 address) {
    // in a cluster, addresses have the block's rank in their upper bits
    return (address & 0x3ffff) >> 4 | (LEADING >> 4) << 16;
}

template <u32 STRIDE>
DEVICE u64 descriptor(u32 low) {
    return (u64)(1u << 30 | STRIDE >> 4) << 32 | low;
}

#endif
