// A block's threads as fibers: each runs until it waits for others, and then the next that can run goes on. A group of blocks that wait for
// each other (a cluster, or a cooperative grid) runs on one thread of the host; other blocks are spread over the host's threads.
//
// Reported instead of computed: a deadlock (no fiber can run), an address outside memory, a write beyond dynamic shared memory.
// Blocks start their threads in ascending and descending order in turn, so that a missing barrier shows in one of them.

#include "machine.h"
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <thread>
#include <vector>

#if defined(__x86_64__)
// Saves what calls preserve on this stack, and goes on on another.
asm(R"(
    .text
    .globl perjoule_switch
    .hidden perjoule_switch
    .type perjoule_switch, @function
perjoule_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size perjoule_switch, .-perjoule_switch
)");
#else
#error "the switch between fibers is written for x86-64"
#endif
extern "C" void perjoule_switch(void** from, void* to);

namespace perjoule {

struct Warp {
    Thread* lanes[WARP];
    unsigned live, waiting;
};

namespace {

constexpr size_t PAGE = 4096;
// Shared memory of a block: static variables, then dynamic memory that ends at a guard page.
// Each lies within 256 KiB: descriptors of matrices hold 18 bits of an address.
constexpr size_t SLOT = 1 << 20, SLOTS = 4095, STATIC_AT = 256 << 10, STATIC_BYTES = 192 << 10, DYNAMIC_END = 768 << 10;
constexpr unsigned char CANARY = 0xFB;
constexpr int SECONDS_WITHOUT_PROGRESS = 60;

unsigned char* window() {
    static unsigned char* base =
        static_cast<unsigned char*>(mmap(nullptr, SLOT * (SLOTS + 1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return base;
}
std::atomic<size_t> slots_used{1};

struct Barrier {
    unsigned expected, arrived, all, any, count;
    std::vector<Thread*> waiting;
};

// A block and what the machine knows of it.
struct Resident {
    Block block;
    unsigned live, static_used;
    size_t dynamic_mapped;
    unsigned char* slot;
    Barrier barriers[BARRIERS];
    std::vector<Warp> warps;
};

struct Machine {
    std::vector<unsigned char*> stacks;
    std::vector<std::unique_ptr<Resident>> residents;
    std::vector<Block*> cluster;
    // Fibers that can run, a ring.
    std::vector<Thread*> ring;
    size_t head = 0, ready = 0;
    void* main = nullptr;
    unsigned live = 0, cluster_arrived = 0;
    std::vector<Thread*> cluster_waiting;
    unsigned long yields = 0;
    std::chrono::steady_clock::time_point progress;
    const Launch* launch = nullptr;
    sigjmp_buf escape;
    std::string why;
    Outcome outcome = Outcome::done;
    const Thread* faulty = nullptr;
    std::vector<unsigned char> signal_stack;
};

thread_local Machine* machine = nullptr;
const Runtime* runtime();

Resident& resident(Thread& t) { return *reinterpret_cast<Resident*>(t.block); }

void enqueue(Thread* t) {
    Machine& m = *machine;
    m.ring[(m.head + m.ready++) % m.ring.size()] = t;
}

std::string place(const Thread& t) {
    char text[160];
    const Index &b = t.block->index, &i = t.index;
    snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, i.x, i.y, i.z);
    return text;
}

[[noreturn]] void leave(Outcome outcome, std::string why) {
    machine->outcome = outcome;
    machine->why = std::move(why);
    siglongjmp(machine->escape, 1);
}

[[noreturn]] void deadlock(const char* what) {
    Machine& m = *machine;
    std::string text = std::string(what) + ": ";
    for (auto& r : m.residents) {
        if (r->live == 0) continue;
        char part[200];
        for (unsigned id = 0; id < BARRIERS; id++) {
            Barrier& b = r->barriers[id];
            if (b.arrived == 0) continue;
            snprintf(part, sizeof part, "%u of %u threads of block (%u, %u, %u) are at barrier %u; ", b.arrived,
                     b.expected ? b.expected : r->live, r->block.index.x, r->block.index.y, r->block.index.z, id);
            text += part;
        }
        for (Warp& w : r->warps) {
            if (w.waiting == 0) continue;
            Thread& t = *w.lanes[__builtin_ctz(w.waiting)];
            snprintf(part, sizeof part, "lanes %08x of warp %u wait for lanes %08x (live %08x); ", w.waiting, t.warp_in_block, t.mask,
                     w.live);
            text += part;
            if (text.size() > 2000) leave(Outcome::fault, text);
        }
    }
    if (!m.cluster_waiting.empty()) text += std::to_string(m.cluster_waiting.size()) + " threads wait for their cluster";
    leave(Outcome::fault, text);
}

// Goes on with the next fiber that can run, and returns when this one can.
void next(Thread* from) {
    Machine& m = *machine;
    if (m.ready == 0) deadlock("deadlock");
    Thread* to = m.ring[m.head];
    m.head = (m.head + 1) % m.ring.size();
    m.ready--;
    if (to != from) perjoule_switch(&from->stack_pointer, to->stack_pointer);
}

void moved() { machine->yields = 0; }

void release(Barrier& b, Vote vote) {
    for (Thread* t : b.waiting) {
        t->vote = vote == Vote::all ? b.all : vote == Vote::any ? b.any : vote == Vote::count ? int(b.count) : 0;
        enqueue(t);
    }
    b.waiting.clear();
    b.arrived = b.any = b.count = b.expected = 0;
    b.all = 1;
    moved();
}

int barrier(unsigned id, unsigned count, bool wait, Vote vote, int value) {
    Thread& t = self();
    Resident& r = resident(t);
    if (id >= BARRIERS) leave(Outcome::fault, "barrier " + std::to_string(id) + " does not exist");
    if (count % WARP != 0) leave(Outcome::fault, "a barrier for " + std::to_string(count) + " threads, which are no whole warps");
    Barrier& b = r.barriers[id];
    if (b.arrived && b.expected != count) leave(Outcome::fault, "barrier " + std::to_string(id) + " is used with two numbers of threads");
    b.expected = count;
    b.arrived++;
    b.all &= value != 0;
    b.any |= value != 0;
    b.count += value != 0;
    if (wait) b.waiting.push_back(&t);
    if (b.arrived >= (count ? count : r.live))
        release(b, vote);
    else
        t.waits = unsigned(vote);
    if (!wait) return 0;
    next(&t);
    return t.vote;
}

// Lets the lanes go on that wait with this one, if all have come.
bool perform(Thread& t) {
    Warp& w = *t.warp;
    const unsigned need = t.mask & w.live;
    if ((w.waiting & need) != need) return false;
    void* arguments[WARP] = {};
    for (unsigned rest = need; rest; rest &= rest - 1) {
        Thread& other = *w.lanes[__builtin_ctz(rest)];
        if (other.collective != t.collective || (other.mask & w.live) != need) return false;
        arguments[other.lane] = other.argument;
    }
    t.collective(arguments, need);
    w.waiting &= ~need;
    for (unsigned rest = need; rest; rest &= rest - 1) enqueue(w.lanes[__builtin_ctz(rest)]);
    moved();
    return true;
}

void warp(unsigned mask, Collective collective, void* argument) {
    Thread& t = self();
    if (!((mask >> t.lane) & 1)) leave(Outcome::fault, "a lane is not in the mask that it waits with");
    t.mask = mask;
    t.collective = collective;
    t.argument = argument;
    t.warp->waiting |= 1u << t.lane;
    perform(t);
    next(&t);
}

void yield() {
    Machine& m = *machine;
    Thread& t = self();
    if ((++m.yields & 0xFFFF) == 0) {
        const auto now = std::chrono::steady_clock::now();
        if (m.yields == 0x10000) m.progress = now;
        if (now - m.progress > std::chrono::seconds(SECONDS_WITHOUT_PROGRESS)) deadlock("no progress");
        std::this_thread::yield();
    }
    enqueue(&t);
    next(&t);
}

void cluster_release() {
    Machine& m = *machine;
    m.cluster_arrived = 0;
    for (Thread* t : m.cluster_waiting) enqueue(t);
    // those that have arrived and do not wait yet need not wait
    for (auto& r : m.residents)
        for (Warp& w : r->warps)
            for (Thread* t : w.lanes)
                if (t) t->cluster_arrived = false;
    m.cluster_waiting.clear();
    moved();
}

void cluster_arrive() {
    Machine& m = *machine;
    Thread& t = self();
    if (t.cluster_arrived) leave(Outcome::fault, "a thread arrives twice at its cluster's barrier");
    t.cluster_arrived = true;
    if (++m.cluster_arrived >= m.live) cluster_release();
}

void cluster_wait() {
    Machine& m = *machine;
    Thread& t = self();
    if (!t.cluster_arrived) return;
    m.cluster_waiting.push_back(&t);
    next(&t);
}

void* shared(Site* site, unsigned long bytes, unsigned long align) {
    Thread& t = self();
    Resident& r = resident(t);
    const unsigned id = unsigned(site->id) % SITES;
    const size_t at = (r.static_used + align - 1) / align * align;
    if (at + bytes > STATIC_BYTES) leave(Outcome::fault, "too much static shared memory");
    unsigned char* there = r.slot + STATIC_AT + at;
    memset(there, 0xFF, bytes);
    r.static_used = unsigned(at + bytes);
    r.block.sites[id] = there;
    return there;
}

[[noreturn]] void fault(const char* why) {
    machine->faulty = &self();
    leave(Outcome::trap, why);
}

const Runtime* runtime() {
    static const Runtime table{barrier, warp, yield, cluster_arrive, cluster_wait, shared, fault};
    return &table;
}

// The end of a fiber: others may have waited for it alone.
[[noreturn]] void ended(Thread& t) {
    Machine& m = *machine;
    Resident& r = resident(t);
    Warp& w = *t.warp;
    w.live &= ~(1u << t.lane);
    r.live--;
    m.live--;
    moved();
    for (unsigned rest = w.waiting; rest; rest &= rest - 1) {
        const unsigned lane = unsigned(__builtin_ctz(rest));
        if ((w.waiting >> lane) & 1) perform(*w.lanes[lane]);
    }
    for (Barrier& b : r.barriers)
        if (b.arrived && b.expected == 0 && b.arrived >= r.live && r.live)
            release(b, b.waiting.empty() ? Vote::none : Vote(b.waiting[0]->waits));
    if (m.cluster_arrived && m.live && m.cluster_arrived >= m.live) cluster_release();
    if (m.live == 0) {
        perjoule_switch(&t.stack_pointer, m.main);
    } else {
        next(&t);
    }
    abort();
}

void begin() {
    Thread& t = self();
    machine->launch->entry.call(machine->launch->parameters);
    ended(t);
}

// Readies the fiber of a thread on its stack.
Thread* fiber(unsigned char* stack) {
    Thread* t = reinterpret_cast<Thread*>(stack + STACK - sizeof(Thread));
    Later* kept = t->later;
    const unsigned capacity = t->capacity;
    memset(static_cast<void*>(t), 0, sizeof *t);
    t->later = kept;
    t->capacity = capacity;
    uintptr_t top = (reinterpret_cast<uintptr_t>(t) - 256) & ~uintptr_t(63);
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // what begin would return to: keeps the stack aligned as a call leaves it
    *--sp = reinterpret_cast<void*>(&begin);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    t->stack_pointer = sp;
    t->runtime = runtime();
    return t;
}

void need_stacks(Machine& m, size_t count) {
    while (m.stacks.size() < count) {
        const size_t many = 256;
        auto* base = static_cast<unsigned char*>(
            mmap(nullptr, STACK * (many + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base == MAP_FAILED) {
            perror("emulator: stacks");
            abort();
        }
        base = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(base) + STACK - 1) & ~uintptr_t(STACK - 1));
        for (size_t i = 0; i < many; i++) {
            mprotect(base + i * STACK, PAGE, PROT_NONE);
            m.stacks.push_back(base + i * STACK);
        }
    }
}

unsigned product(const Index& i) { return i.x * i.y * i.z; }

// Dynamic memory of this size, poisoned: aligned to 1,024 bytes, the rest up to the guard page filled with canaries.
void map_shared(Resident& r, unsigned dynamic) {
    if (r.slot == nullptr) {
        const size_t slot = slots_used++;
        if (slot > SLOTS) abort();
        r.slot = window() + slot * SLOT;
        mprotect(r.slot + STATIC_AT, STATIC_BYTES, PROT_READ | PROT_WRITE);
    }
    const size_t bytes = (size_t(dynamic) + PAGE - 1) / PAGE * PAGE;
    if (bytes > r.dynamic_mapped) mprotect(r.slot + DYNAMIC_END - bytes, bytes, PROT_READ | PROT_WRITE);
    if (bytes < r.dynamic_mapped) mprotect(r.slot + DYNAMIC_END - r.dynamic_mapped, r.dynamic_mapped - bytes, PROT_NONE);
    r.dynamic_mapped = bytes;
    const size_t rounded = (size_t(dynamic) + 1023) / 1024 * 1024;
    r.block.dynamic_shared = r.slot + DYNAMIC_END - rounded;
    r.block.dynamic_bytes = dynamic;
    memset(r.block.dynamic_shared, 0xFF, dynamic);
    memset(r.block.dynamic_shared + dynamic, CANARY, rounded - dynamic);
}

void check_shared(const Resident& r, const Launch& launch) {
    const unsigned char* end = r.slot + DYNAMIC_END;
    for (const unsigned char* p = r.block.dynamic_shared + r.block.dynamic_bytes; p < end; p++) {
        if (*p == CANARY) continue;
        char text[200];
        snprintf(text, sizeof text, "block (%u, %u, %u) wrote byte %ld of dynamic shared memory, of which it has %u", r.block.index.x,
                 r.block.index.y, r.block.index.z, long(p - r.block.dynamic_shared), launch.dynamic_shared);
        leave(Outcome::fault, text);
    }
}

// Runs `count` blocks from `first` (in units of clusters) as one group.
void run_group(Machine& m, const Launch& launch, const std::vector<Index>& blocks, const Index& cluster_index, bool reversed) {
    const unsigned threads = product(launch.block), warps = (threads + WARP - 1) / WARP;
    m.launch = &launch;
    m.live = unsigned(blocks.size()) * threads;
    m.head = m.ready = 0;
    m.ring.assign(m.live, nullptr);
    m.cluster_arrived = 0;
    m.cluster_waiting.clear();
    m.yields = 0;
    need_stacks(m, m.live);
    while (m.residents.size() < blocks.size()) m.residents.push_back(std::make_unique<Resident>());
    m.residents.resize(blocks.size());
    m.cluster.clear();
    for (auto& r : m.residents) m.cluster.push_back(&r->block);
    std::vector<Thread*> fibers;
    for (size_t i = 0; i < blocks.size(); i++) {
        Resident& r = *m.residents[i];
        Block& b = r.block;
        memset(b.sites, 0, sizeof b.sites);
        b.index = blocks[i];
        b.dim = launch.block;
        b.grid = launch.grid;
        b.cluster_dim = launch.cluster;
        b.cluster_index = cluster_index;
        b.cluster_rank = unsigned(i);
        b.cluster_size = unsigned(blocks.size());
        b.cluster = m.cluster.data();
        b.window = window();
        r.live = threads;
        r.static_used = 0;
        map_shared(r, launch.dynamic_shared);
        for (Barrier& barrier : r.barriers) {
            barrier.waiting.clear();
            barrier.arrived = barrier.any = barrier.count = barrier.expected = 0;
            barrier.all = 1;
        }
        r.warps.assign(warps, Warp{});
        unsigned number = 0;
        for (unsigned z = 0; z < launch.block.z; z++)
            for (unsigned y = 0; y < launch.block.y; y++)
                for (unsigned x = 0; x < launch.block.x; x++, number++) {
                    Thread* t = fiber(m.stacks[fibers.size()]);
                    t->index = {x, y, z};
                    t->lane = number % WARP;
                    t->warp_in_block = number / WARP;
                    t->block = &b;
                    t->warp = &r.warps[number / WARP];
                    t->warp->lanes[t->lane] = t;
                    t->warp->live |= 1u << t->lane;
                    fibers.push_back(t);
                }
    }
    for (size_t i = 0; i < fibers.size(); i++) enqueue(fibers[reversed ? fibers.size() - 1 - i : i]);
    Thread* first = m.ring[m.head];
    m.head = (m.head + 1) % m.ring.size();
    m.ready--;
    if (sigsetjmp(m.escape, 1) != 0) {
        if (m.faulty) m.why += ", at " + place(*m.faulty);
        m.faulty = nullptr;
        return;
    }
    perjoule_switch(&m.main, first->stack_pointer);
    for (auto& r : m.residents) check_shared(*r, launch);
}

// ---- faults ----

struct sigaction previous[65];

void on_fault(int number, siginfo_t* info, void* context) {
    Machine* m = machine;
    if (m && m->launch) {
        // the stack pointer at the fault tells which fiber it was
        auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
        const uintptr_t base = uintptr_t(registers[REG_RSP]) & ~uintptr_t(STACK - 1);
        for (unsigned char* stack : m->stacks)
            if (reinterpret_cast<uintptr_t>(stack) == base) m->faulty = reinterpret_cast<Thread*>(stack + STACK - sizeof(Thread));
        char text[96];
        snprintf(text, sizeof text, "%s at address %p",
                 number == SIGFPE   ? "division by zero"
                 : number == SIGILL ? "trap"
                                    : "access",
                 info->si_addr);
        const bool outside = number == SIGSEGV || number == SIGBUS;
        const long slot = static_cast<unsigned char*>(info->si_addr) - window();
        const bool in_shared = slot >= 0 && size_t(slot) < SLOT * (SLOTS + 1);
        if (in_shared && m->faulty) {
            const Block& b = *m->faulty->block;
            snprintf(text, sizeof text, "byte %ld of %u bytes of dynamic shared memory",
                     long(static_cast<unsigned char*>(info->si_addr) - b.dynamic_shared), b.dynamic_bytes);
            leave(Outcome::fault, text);
        }
        leave(number == SIGILL ? Outcome::trap : Outcome::fault, std::string(text) + (outside ? ": " + describe(info->si_addr) : ""));
    }
    const struct sigaction& old = previous[number];
    if (old.sa_flags & SA_SIGINFO) {
        old.sa_sigaction(number, info, context);
    } else if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
        signal(number, SIG_DFL);
        raise(number);
    } else {
        old.sa_handler(number);
    }
}

void catch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
            struct sigaction action{};
            action.sa_sigaction = on_fault;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
            sigaction(number, &action, &previous[number]);
        }
    });
}

// ---- the host's threads ----

struct Pool {
    std::mutex lock;
    std::condition_variable begun, done;
    const Launch* launch = nullptr;
    std::atomic<size_t> next_group{0};
    size_t groups = 0;
    unsigned long generation = 0;
    unsigned busy = 0;
    Outcome outcome = Outcome::done;
    std::string why;
    std::vector<std::thread> threads;

    static unsigned count() {
        if (const char* given = getenv("PERJOULE_EMULATED_THREADS")) return std::max(1, atoi(given));
        return std::max(1u, std::thread::hardware_concurrency());
    }

    void start() {
        if (!threads.empty()) return;
        catch_faults();
        for (unsigned i = 0; i < count(); i++) {
            threads.emplace_back([this] { work(); });
            threads.back().detach();
        }
    }

    void work() {
        auto* m = new Machine;
        machine = m;
        m->signal_stack.resize(256 << 10);
        stack_t alternative{};
        alternative.ss_sp = m->signal_stack.data();
        alternative.ss_size = m->signal_stack.size();
        sigaltstack(&alternative, nullptr);
        unsigned long seen = 0;
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            begun.wait(guard, [&] { return generation != seen; });
            seen = generation;
            const Launch* now = launch;
            guard.unlock();
            groups_of(*m, *now, seen);
            guard.lock();
            if (m->outcome != Outcome::done) {
                if (outcome == Outcome::done) {
                    outcome = m->outcome;
                    why = m->why;
                }
                m->outcome = Outcome::done;
            }
            if (--busy == 0) done.notify_all();
        }
    }

    void groups_of(Machine& m, const Launch& l, unsigned long seed) {
        const Index c = l.cooperative ? l.grid : l.cluster;
        const Index many{l.grid.x / c.x, l.grid.y / c.y, l.grid.z / c.z};
        std::vector<Index> blocks;
        for (;;) {
            const size_t group = next_group++;
            if (group >= groups) break;
            const Index at{unsigned(group % many.x), unsigned(group / many.x % many.y), unsigned(group / many.x / many.y)};
            blocks.clear();
            for (unsigned z = 0; z < c.z; z++)
                for (unsigned y = 0; y < c.y; y++)
                    for (unsigned x = 0; x < c.x; x++) blocks.push_back({at.x * c.x + x, at.y * c.y + y, at.z * c.z + z});
            run_group(m, l, blocks, at, (group + seed) % 2);
            m.launch = nullptr;
            if (m.outcome != Outcome::done) {
                next_group = groups;
                break;
            }
        }
    }

    Outcome run(const Launch& l, std::string& text) {
        std::unique_lock<std::mutex> guard(lock);
        start();
        const Index c = l.cooperative ? l.grid : l.cluster;
        launch = &l;
        groups = size_t(l.grid.x / c.x) * (l.grid.y / c.y) * (l.grid.z / c.z);
        next_group = 0;
        outcome = Outcome::done;
        busy = unsigned(threads.size());
        generation++;
        begun.notify_all();
        done.wait(guard, [&] { return busy == 0; });
        if (outcome != Outcome::done) text = why;
        return outcome;
    }
};

Pool& pool() {
    static Pool* one = new Pool;  // never destroyed: its threads outlive main
    return *one;
}

}  // namespace

Outcome run(const Launch& launch, std::string& why) { return pool().run(launch, why); }

}  // namespace perjoule
