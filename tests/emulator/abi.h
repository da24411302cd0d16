// What emulated kernels (compiled by the emulated NVRTC) and the emulated driver (libcuda.so.1) agree on. No standard header is included:
// kernels may define any of their names.
#pragma once

namespace perjoule {

struct Index {
    unsigned x, y, z;
};

// Every thread of a block is a fiber on a stack of its own, aligned to its size; the thread's state lies at the stack's top, so that it
// is found from the stack pointer.
constexpr unsigned long STACK = 128 << 10;
constexpr unsigned WARP = 32;
constexpr unsigned SITES = 256;
constexpr unsigned BARRIERS = 16;

struct Block;
struct Warp;
struct Thread;

// What a warp does together: computed once by the lane that arrives last, from what every lane of the mask brought.
using Collective = void (*)(void* const* arguments, unsigned mask);

enum class Vote : int { none, all, any, count };

// One declaration of a `__shared__` variable.
struct Site {
    int id;
};

// What kernels call in the driver.
struct Runtime {
    // Waits at a named barrier until `count` threads have come (0: all that have not ended), and returns the vote. Arriving only does not
    // wait.
    int (*barrier)(unsigned id, unsigned count, bool wait, Vote vote, int value);
    void (*warp)(unsigned mask, Collective collective, void* argument);
    void (*yield)();
    // Waits at the barrier of the cluster.
    void (*cluster_arrive)();
    void (*cluster_wait)();
    void* (*shared)(Site* site, unsigned long bytes, unsigned long align);
    [[noreturn]] void (*fault)(const char* why);
};

struct Block {
    Index index, dim, grid, cluster_dim, cluster_index;
    unsigned cluster_rank, cluster_size;
    unsigned char* dynamic_shared;
    unsigned dynamic_bytes;
    // Base of all shared memory: what 32-bit addresses of it count from.
    unsigned char* window;
    // The blocks of the cluster, by rank.
    Block** cluster;
    void* sites[SITES];
};

// Copies that are carried out when they are waited for (cp.async and the like), by group.
struct Later {
    void* to;
    const void* from;
    unsigned bytes, zeroed;
};

struct Thread {
    Index index;
    unsigned lane, warp_in_block;
    Block* block;
    const Runtime* runtime;
    Warp* warp;
    // The driver's.
    void* stack_pointer;
    unsigned mask;
    Collective collective;
    void* argument;
    int vote;
    unsigned waits;
    bool cluster_arrived;
    // cp.async: pending copies, and how many belong to each committed group.
    Later* later;
    unsigned pending, capacity, groups, open;
    unsigned group_size[64];
    // wgmma.mma_async: products issued and not yet waited for.
    unsigned products;
};

inline Thread& self() {
    unsigned long pointer;
#if defined(__x86_64__)
    __asm__("movq %%rsp, %0" : "=r"(pointer));
#else
    __asm__("mov %0, sp" : "=r"(pointer));
#endif
    return *reinterpret_cast<Thread*>((pointer & ~(STACK - 1)) + STACK - sizeof(Thread));
}

// A kernel as the driver sees it.
struct Entry {
    void (*call)(void** parameters);
    unsigned count;
    const unsigned* bytes;
};

}  // namespace perjoule
