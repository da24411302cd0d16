// What the emulated driver is made of: memory, streams of late work, graphs, modules, launches. Included by cuda.cpp alone.
#pragma once
#include "machine.h"
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace perjoule {
namespace {

using std::shared_ptr;
using std::string;
using std::vector;
using Address = unsigned long long;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    DEVICE_UNAVAILABLE = 46,
};

// Taken by every call: the machine runs one thing at a time.
std::recursive_mutex driver;
#define ENTER std::lock_guard<std::recursive_mutex> entered(driver)

bool initialised = false;
// What every call answers once a kernel has faulted.
int lost = SUCCESS;
thread_local void* current = nullptr;
char the_context;

string variable(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}
string fault() { return variable("PERJOULE_EMULATED_FAULT", ""); }
int sm() { return atoi(variable("PERJOULE_EMULATED_SM", "75").c_str()); }
size_t memory_limit() { return strtoull(variable("PERJOULE_EMULATED_MEMORY", "8589934592").c_str(), nullptr, 10); }
void say(const string& text) {
    if (!getenv("PERJOULE_EMULATED_QUIET")) fprintf(stderr, "emulator: %s\n", text.c_str());
}
int shared_opt_in() { return sm() >= 90 ? 232448 : sm() == 80 || sm() == 87 ? 166912 : sm() > 80 ? 101376 : 65536; }
int shared_of_multiprocessor() { return sm() >= 90 ? 233472 : sm() == 80 || sm() == 87 ? 167936 : sm() > 80 ? 102400 : 65536; }
int threads_of_multiprocessor() { return sm() == 75 ? 1024 : sm() == 86 || sm() == 89 ? 1536 : 2048; }

int usable() { return !initialised ? NOT_INITIALIZED : lost; }
int in_context() { return usable() ? usable() : current ? SUCCESS : INVALID_CONTEXT; }

// ---- memory ----

constexpr size_t PAGE = 4096, ALIGN = 256, MANY = 8192;
constexpr unsigned char CANARY = 0xFB;

struct Allocation {
    unsigned char *map, *at;
    size_t mapped, bytes;
};
std::map<Address, Allocation> allocations;
std::map<Address, size_t> pinned;
size_t used = 0, peak = 0;

Address address(const void* p) { return reinterpret_cast<Address>(p); }

// The allocation that holds all of a range.
template <class M>
auto holder(M& map, Address at) {
    auto found = map.upper_bound(at);
    return found == map.begin() ? map.end() : std::prev(found);
}
bool on_device(Address at, size_t bytes) {
    auto a = holder(allocations, at);
    return a != allocations.end() && at + bytes <= a->first + a->second.bytes;
}
bool is_pinned(Address at, size_t bytes) {
    auto a = holder(pinned, at);
    return a != pinned.end() && at + bytes <= a->first + a->second;
}

int allocate(Address* out, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > memory_limit() || used + bytes > memory_limit()) return OUT_OF_MEMORY;
    const size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN, pages = (bytes + PAGE - 1) / PAGE * PAGE;
    const size_t mapped = pages + 2 * PAGE;
    auto* map =
        static_cast<unsigned char*>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED) return OUT_OF_MEMORY;
    if (allocations.size() < MANY) {
        mprotect(map, PAGE, PROT_NONE);
        mprotect(map + mapped - PAGE, PAGE, PROT_NONE);
    }
    unsigned char* at = map + mapped - PAGE - rounded;
    memset(map + PAGE, CANARY, size_t(at - map) - PAGE);
    memset(at, 0xFF, bytes);
    memset(at + bytes, CANARY, rounded - bytes);
    allocations[address(at)] = {map, at, mapped, bytes};
    used += bytes;
    peak = std::max(peak, used);
    *out = address(at);
    return SUCCESS;
}

// Where memory beside an allocation was written, a text.
string spoilt(const Allocation& a) {
    const unsigned char *low = a.map + PAGE, *high = a.map + a.mapped - PAGE;
    for (const unsigned char* p = a.at + a.bytes; p < high; p++)
        if (*p != CANARY) return std::to_string(p - a.at) + " of an allocation of " + std::to_string(a.bytes) + " bytes";
    for (const unsigned char* p = std::max(low, static_cast<const unsigned char*>(a.at - 256)); p < a.at; p++)
        if (*p != CANARY) return std::to_string(p - a.at) + " of an allocation of " + std::to_string(a.bytes) + " bytes";
    return "";
}

void restore(Allocation& a) {
    memset(a.map + PAGE, CANARY, size_t(a.at - a.map) - PAGE);
    memset(a.at + a.bytes, CANARY, size_t(a.map + a.mapped - PAGE - (a.at + a.bytes)));
}

void release(Address at) {
    auto a = allocations.find(at);
    if (a == allocations.end()) return;
    const string bad = spoilt(a->second);
    if (!bad.empty() && lost == SUCCESS) {
        say("byte " + bad + " was written");
        lost = ILLEGAL_ADDRESS;
    }
    used -= a->second.bytes;
    munmap(a->second.map, a->second.mapped);
    allocations.erase(a);
}

// ---- streams, events, graphs ----

struct Stream;
using Work = std::function<int()>;

struct Graph {
    vector<Work> work;
    bool invalid = false;
};

struct Capture {
    Graph graph;
    Stream* origin;
    std::set<Stream*> streams;
};

struct Stream {
    bool blocking;
    std::deque<Work> queue;
    uint64_t submitted = 0, done = 0;
    shared_ptr<Capture> capture;
    std::weak_ptr<Stream> self;
};

struct Event {
    bool timed = true, recorded = false;
    shared_ptr<Stream> stream;
    uint64_t ticket = 0;
    shared_ptr<double> time = std::make_shared<double>(0);
    std::weak_ptr<Capture> capture;
};

std::map<void*, shared_ptr<Stream>> streams;
shared_ptr<Stream> null_stream() {
    static shared_ptr<Stream> one = [] {
        auto s = std::make_shared<Stream>();
        s->blocking = true;
        s->self = s;
        return s;
    }();
    return one;
}
std::set<Event*> events;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Runs a stream's work up to a ticket.
void drain(Stream& s, uint64_t ticket) {
    while (s.done < ticket && !s.queue.empty()) {
        Work work = std::move(s.queue.front());
        s.queue.pop_front();
        if (lost == SUCCESS) {
            const int result = work();
            if (result != SUCCESS && !getenv("PERJOULE_EMULATED_FORGIVE")) lost = result;
        }
        s.done++;
    }
}
void drain(Stream& s) { drain(s, s.submitted); }
void drain_all(bool blocking_only) {
    auto list = streams;  // work may free streams' objects
    for (auto& [handle, s] : list)
        if (s->blocking || !blocking_only) drain(*s);
    drain(*null_stream());
}

shared_ptr<Stream> stream_of(void* handle) {
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return null_stream();
    auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

// Adds work to a stream, or to the graph that it records.
int submit(void* handle, Work work) {
    auto s = stream_of(handle);
    if (!s) return INVALID_HANDLE;
    if (s->capture) {
        s->capture->graph.work.push_back(std::move(work));
        return SUCCESS;
    }
    // the legacy default stream and blocking streams wait for each other
    if (s == null_stream())
        drain_all(true);
    else if (s->blocking)
        drain(*null_stream());
    s->queue.push_back(std::move(work));
    s->submitted++;
    return SUCCESS;
}

// Whether a call that waits is allowed: not while the stream is recorded.
int waitable(Stream& s) {
    if (!s.capture) return SUCCESS;
    s.capture->graph.invalid = true;
    return CAPTURE_UNSUPPORTED;
}

int copy(void* stream, Address to, Address from, size_t bytes, bool asynchronous) {
    if (bytes == 0) return SUCCESS;
    const bool to_device = on_device(to, bytes), from_device = on_device(from, bytes);
    if (holder(allocations, to) != allocations.end() && !to_device &&
        holder(allocations, to)->second.bytes + holder(allocations, to)->first > to)
        return INVALID_VALUE;
    const auto run = [=] {
        if ((to_device && !on_device(to, bytes)) || (from_device && !on_device(from, bytes))) {
            say("a copy of " + std::to_string(bytes) + " bytes meets memory that is freed");
            return int(ILLEGAL_ADDRESS);
        }
        memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        return int(SUCCESS);
    };
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (!asynchronous) {
        if (s->capture) return waitable(*s);
        drain_all(true);
        return run();
    }
    if (!from_device && !is_pinned(from, bytes) && !s->capture) {
        // pageable memory is read before the call returns
        auto staged =
            std::make_shared<vector<unsigned char>>(reinterpret_cast<unsigned char*>(from), reinterpret_cast<unsigned char*>(from) + bytes);
        return submit(stream, [=] {
            if (to_device && !on_device(to, bytes)) {
                say("a copy of " + std::to_string(bytes) + " bytes meets memory that is freed");
                return int(ILLEGAL_ADDRESS);
            }
            memcpy(reinterpret_cast<void*>(to), staged->data(), bytes);
            return int(SUCCESS);
        });
    }
    const int result = submit(stream, run);
    if (result == SUCCESS && !to_device && !is_pinned(to, bytes) && !s->capture) {
        drain(*s);
        return lost;
    }
    return result;
}

// ---- modules and kernels ----

struct Module {
    void* library;
};
struct Function {
    Module* module;
    string name;
    Entry entry;
    int dynamic_limit = 48 << 10, nonportable_cluster = 0;
};
std::map<std::pair<Module*, string>, Function*> functions;

size_t image_size(const void* image) {
    struct Header {
        unsigned char magic[16];
        uint16_t type, machine;
        uint32_t version;
        uint64_t entry, programs, sections;
        uint32_t flags;
        uint16_t size, program_size, program_count, section_size, section_count, names;
    };
    const auto* h = static_cast<const Header*>(image);
    if (memcmp(h->magic, "\177ELF", 4) != 0) return 0;
    return h->sections + size_t(h->section_size) * h->section_count;
}

int load(Module** out, const void* image) {
    const size_t bytes = image_size(image);
    if (bytes == 0) return INVALID_IMAGE;
    // a name that was never used: dlopen knows libraries by name
    static int count = 0;
    string path = variable("TMPDIR", "/tmp") + "/perjoule-kernel-" + std::to_string(getpid()) + "-" + std::to_string(count++) + "-XXXXXX";
    const int file = mkstemp(path.data());
    if (file < 0) return OUT_OF_MEMORY;
    const bool written = write(file, image, bytes) == ssize_t(bytes);
    close(file);
    void* library = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path.c_str());
    if (!written) return OUT_OF_MEMORY;
    if (!library) {
        say(dlerror());
        return INVALID_IMAGE;
    }
    const auto number = [&](const char* name) {
        const auto* p = static_cast<const int*>(dlsym(library, name));
        return p ? *p : 0;
    };
    const int arch = number("perjoule_architecture"), specific = number("perjoule_specific");
    if (arch > sm() || (specific && arch != sm())) {
        say("a module for sm_" + std::to_string(arch) + " does not run on sm_" + std::to_string(sm()));
        dlclose(library);
        return NO_BINARY_FOR_GPU;
    }
    *out = new Module{library};
    return SUCCESS;
}

struct Configuration {
    Index grid, block, cluster;
    unsigned shared;
    void* stream;
    bool cooperative;
};

int launch(Function* f, const Configuration& c, void** parameters, void** extra) {
    if (int bad = in_context()) return bad;
    if (!f) return INVALID_HANDLE;
    const auto empty = [](const Index& i) { return i.x == 0 || i.y == 0 || i.z == 0; };
    if (extra || empty(c.grid) || empty(c.block) || empty(c.cluster)) return INVALID_VALUE;
    if (c.grid.x > 2147483647u || c.grid.y > 65535 || c.grid.z > 65535 || c.block.x > 1024 || c.block.y > 1024 || c.block.z > 64 ||
        c.block.x * c.block.y * c.block.z > 1024)
        return INVALID_VALUE;
    if (int(c.shared) > f->dynamic_limit) {
        say(f->name + ": " + std::to_string(c.shared) + " bytes of dynamic shared memory, allowed are " + std::to_string(f->dynamic_limit));
        return INVALID_VALUE;
    }
    const unsigned cluster = c.cluster.x * c.cluster.y * c.cluster.z;
    if (cluster > 1 && (sm() < 90 || cluster > (f->nonportable_cluster ? 16u : 8u) || c.grid.x % c.cluster.x || c.grid.y % c.cluster.y ||
                        c.grid.z % c.cluster.z))
        return INVALID_VALUE;
    if (f->entry.count && !parameters) return INVALID_VALUE;
    // parameters are copied; a tensor map must be aligned to 128 bytes
    size_t bytes = 0;
    vector<size_t> offsets;
    for (unsigned i = 0; i < f->entry.count; i++) {
        offsets.push_back(bytes);
        bytes += (f->entry.bytes[i] + 127) / 128 * 128;
    }
    shared_ptr<unsigned char> copied(static_cast<unsigned char*>(aligned_alloc(128, bytes + 128)), free);
    for (unsigned i = 0; i < f->entry.count; i++) memcpy(copied.get() + offsets[i], parameters[i], f->entry.bytes[i]);
    const string name = f->name;
    const Entry entry = f->entry;
    return submit(c.stream, [=] {
        const string wanted = fault();
        if (wanted == "launch" || wanted == "launch=" + name) {
            say(name + ": told to fault");
            return int(ILLEGAL_ADDRESS);
        }
        vector<void*> pointers;
        for (size_t offset : offsets) pointers.push_back(copied.get() + offset);
        string why;
        const Outcome outcome = run({name.c_str(), entry, c.grid, c.block, c.cluster, c.shared, c.cooperative, pointers.data()}, why);
        if (outcome == Outcome::done && allocations.size() < MANY)
            for (auto& [at, a] : allocations) {
                const string bad = spoilt(a);
                if (bad.empty()) continue;
                say(name + ": wrote byte " + bad);
                restore(a);
                return int(ILLEGAL_ADDRESS);
            }
        if (outcome == Outcome::done) return int(SUCCESS);
        say(name + ": " + why);
        return int(outcome == Outcome::trap ? LAUNCH_FAILED : ILLEGAL_ADDRESS);
    });
}

struct Known {
    int code;
    const char *name, *text;
};
const Known KNOWN[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
};

}  // namespace

string describe(const void* p) {
    const Address at = address(p);
    const auto text = [&](const Allocation& a) {
        return "byte " + std::to_string(static_cast<long long>(at) - static_cast<long long>(address(a.at))) + " of an allocation of " +
               std::to_string(a.bytes) + " bytes";
    };
    auto below = holder(allocations, at);
    if (below != allocations.end() && at < address(below->second.map) + below->second.mapped) return text(below->second);
    auto above = allocations.lower_bound(at);
    if (above != allocations.end() && at >= address(above->second.map)) return text(above->second);
    return "no allocation is there";
}

}  // namespace perjoule
