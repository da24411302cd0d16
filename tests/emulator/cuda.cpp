// libcuda.so.1 without a GPU: the driver's functions that perjoule-cuda calls, over the machine of machine.cpp.
//
// Streams are lazy: what is submitted runs when something waits for it, so that work which nobody ordered comes late. New memory holds
// 0xFF; it lies between guard pages, and the rest of its last page is watched. A kernel that faults makes the context useless, as a GPU's.
//
// Environment:
//   PERJOULE_EMULATED_SM       compute capability times ten (75)
//   PERJOULE_EMULATED_MEMORY   bytes of device memory (8 GiB)
//   PERJOULE_EMULATED_THREADS  host threads (all)
//   PERJOULE_EMULATED_FAULT    no-device: cuInit finds none; none: it counts zero; launch: every kernel faults;
//                              launch=<name>: that kernel does; busy: contexts are refused
//   PERJOULE_EMULATED_FORGIVE  kernels that fault are reported, and the context stays usable
//   PERJOULE_EMULATED_QUIET    says nothing on standard error

#include "driver.h"

#define API extern "C" __attribute__((visibility("default"))) int

using namespace perjoule;

// ---- initialisation and devices ----

API cuInit(unsigned) {
    ENTER;
    if (fault() == "no-device") return NO_DEVICE;
    initialised = true;
    return SUCCESS;
}
API cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    ENTER;
    if (!initialised) return NOT_INITIALIZED;
    *count = fault() == "none" ? 0 : 1;
    return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
    ENTER;
    if (!initialised) return NOT_INITIALIZED;
    if (ordinal != 0 || fault() == "none") return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}
API cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, size_t(bytes), "Emulated sm_%d", sm());
    return SUCCESS;
}
API cuDeviceGetUuid_v2(char* uuid, int) {
    memcpy(uuid, "perjoule emulate", 16);
    return SUCCESS;
}
API cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory_limit();
    return SUCCESS;
}
API cuDeviceGetPCIBusId(char* text, int bytes, int) {
    snprintf(text, size_t(bytes), "0000:00:1F.0");
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER;
    if (!initialised) return NOT_INITIALIZED;
    switch (attribute) {
        case 1:
            *value = 1024;
            break;  // threads of a block
        case 2:
        case 3:
            *value = 1024;
            break;  // block x, y
        case 4:
            *value = 64;
            break;  // block z
        case 5:
            *value = 2147483647;
            break;  // grid x
        case 6:
        case 7:
            *value = 65535;
            break;  // grid y, z
        case 8:
            *value = 48 << 10;
            break;  // shared memory of a block
        case 9:
            *value = 64 << 10;
            break;  // constant memory
        case 10:
            *value = 32;
            break;  // warp
        case 12:
        case 82:
            *value = 65536;
            break;  // registers of a block, of a multiprocessor
        case 13:
            *value = 1500000;
            break;  // clock, kHz
        case 16:
            *value = 4;
            break;  // multiprocessors
        case 31:
        case 41:
        case 83:
        case 115:
            *value = 1;
            break;  // concurrent kernels, unified addressing, managed memory, pools
        case 36:
            *value = 1000000;
            break;  // memory clock, kHz
        case 37:
            *value = 256;
            break;  // bus, bits
        case 38:
            *value = 4 << 20;
            break;  // L2
        case 39:
            *value = threads_of_multiprocessor();
            break;
        case 40:
            *value = 2;
            break;  // copy engines
        case 75:
            *value = sm() / 10;
            break;
        case 76:
            *value = sm() % 10;
            break;
        case 81:
            *value = shared_of_multiprocessor();
            break;
        case 95:
            *value = 1;
            break;  // cooperative launch
        case 97:
            *value = shared_opt_in();
            break;
        case 106:
            *value = 16;
            break;  // blocks of a multiprocessor
        case 111:
            *value = sm() >= 80 ? 1024 : 0;
            break;  // shared memory that the system keeps
        case 120:
            *value = sm() >= 90;
            break;  // clusters
        default:
            *value = 0;
    }
    return SUCCESS;
}
static int error_text(int code, const char** text, const char* Known::* what) {
    *text = nullptr;
    for (const Known& k : KNOWN)
        if (k.code == code) *text = k.*what;
    return *text ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorName(int code, const char** text) { return error_text(code, text, &Known::name); }
API cuGetErrorString(int code, const char** text) { return error_text(code, text, &Known::text); }

// ---- contexts ----

API cuDevicePrimaryCtxRetain(void** context, int) {
    ENTER;
    if (!initialised) return NOT_INITIALIZED;
    if (fault() == "busy") return DEVICE_UNAVAILABLE;
    *context = &the_context;
    return lost;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
API cuCtxSetCurrent(void* context) {
    ENTER;
    if (context && context != &the_context) return INVALID_CONTEXT;
    current = context;
    return SUCCESS;
}
API cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}
API cuCtxGetDevice(int* device) {
    if (!current) return INVALID_CONTEXT;
    *device = 0;
    return SUCCESS;
}
API cuCtxPushCurrent_v2(void* context) { return cuCtxSetCurrent(context); }
API cuCtxPopCurrent_v2(void** context) {
    if (context) *context = current;
    current = nullptr;
    return SUCCESS;
}
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxSynchronize() {
    ENTER;
    if (int bad = in_context()) return bad;
    for (auto& [handle, s] : streams)
        if (int bad = waitable(*s)) return bad;
    drain_all(false);
    return lost;
}

// ---- memory ----

API cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER;
    if (int bad = in_context()) return bad;
    *total = memory_limit();
    *available = *total - std::min(used, *total);
    return SUCCESS;
}
API cuMemAlloc_v2(Address* at, size_t bytes) {
    ENTER;
    if (int bad = in_context()) return bad;
    return allocate(at, bytes);
}
API cuMemFree_v2(Address at) {
    ENTER;
    if (int bad = in_context()) return bad;
    if (!allocations.count(at)) return INVALID_VALUE;
    drain_all(false);
    release(at);
    return lost;
}
API cuMemAllocAsync(Address* at, size_t bytes, void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (s->capture) return waitable(*s);
    return allocate(at, bytes);
}
API cuMemAllocFromPoolAsync(Address* at, size_t bytes, void*, void* stream) { return cuMemAllocAsync(at, bytes, stream); }
API cuMemFreeAsync(Address at, void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    if (!allocations.count(at)) return INVALID_VALUE;
    return submit(stream, [=] {
        release(at);
        return lost;
    });
}
API cuMemAllocHost_v2(void** p, size_t bytes) {
    ENTER;
    if (int bad = in_context()) return bad;
    *p = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (!*p) return OUT_OF_MEMORY;
    memset(*p, 0xFF, bytes);
    pinned[address(*p)] = bytes;
    return SUCCESS;
}
API cuMemHostAlloc(void** p, size_t bytes, unsigned) { return cuMemAllocHost_v2(p, bytes); }
API cuMemFreeHost(void* p) {
    ENTER;
    if (!pinned.erase(address(p))) return INVALID_VALUE;
    drain_all(false);
    free(p);
    return SUCCESS;
}
API cuMemHostGetDevicePointer_v2(Address* at, void* p, unsigned) {
    *at = address(p);
    return SUCCESS;
}
API cuMemHostRegister_v2(void* p, size_t bytes, unsigned) {
    ENTER;
    pinned[address(p)] = bytes;
    return SUCCESS;
}
API cuMemHostUnregister(void* p) {
    ENTER;
    drain_all(false);
    return pinned.erase(address(p)) ? SUCCESS : INVALID_VALUE;
}
API cuMemPoolCreate(void** pool, const void*) {
    *pool = new char;
    return SUCCESS;
}
API cuMemPoolDestroy(void* pool) {
    delete static_cast<char*>(pool);
    return SUCCESS;
}
API cuDeviceGetDefaultMemPool(void** pool, int) {
    static char one;
    *pool = &one;
    return SUCCESS;
}
API cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
API cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int, void* value) {
    ENTER;
    const uint64_t bytes = used;
    memcpy(value, &bytes, 8);
    return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }
API cuMemPoolSetAccess(void*, const void*, size_t) { return SUCCESS; }

static int fill(Address at, unsigned value, size_t count, unsigned size, void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    const size_t bytes = count * size;
    if (bytes == 0) return SUCCESS;
    if (!on_device(at, bytes) || at % size) return INVALID_VALUE;
    return submit(stream, [=] {
        if (!on_device(at, bytes)) return int(ILLEGAL_ADDRESS);
        auto* p = reinterpret_cast<unsigned char*>(at);
        for (size_t i = 0; i < bytes; i++) p[i] = static_cast<unsigned char>(value >> (8 * (i % size)));
        return int(SUCCESS);
    });
}
API cuMemsetD8Async(Address at, unsigned char v, size_t n, void* s) { return fill(at, v, n, 1, s); }
API cuMemsetD16Async(Address at, unsigned short v, size_t n, void* s) { return fill(at, v, n, 2, s); }
API cuMemsetD32Async(Address at, unsigned v, size_t n, void* s) { return fill(at, v, n, 4, s); }
API cuMemsetD8_v2(Address at, unsigned char v, size_t n) { return fill(at, v, n, 1, nullptr); }
API cuMemsetD32_v2(Address at, unsigned v, size_t n) { return fill(at, v, n, 4, nullptr); }

static int device_copy(void* stream, Address to, Address from, size_t bytes, bool asynchronous, bool to_device, bool from_device) {
    ENTER;
    if (int bad = in_context()) return bad;
    if (bytes && ((to_device && !on_device(to, bytes)) || (from_device && !on_device(from, bytes)))) return INVALID_VALUE;
    return copy(stream, to, from, bytes, asynchronous);
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* s) {
    return device_copy(s, to, address(from), n, true, true, false);
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* s) { return device_copy(s, address(to), from, n, true, false, true); }
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void* s) { return device_copy(s, to, from, n, true, true, true); }
API cuMemcpyAsync(Address to, Address from, size_t n, void* s) { return device_copy(s, to, from, n, true, false, false); }
API cuMemcpyHtoD_v2(Address to, const void* from, size_t n) { return device_copy(nullptr, to, address(from), n, false, true, false); }
API cuMemcpyDtoH_v2(void* to, Address from, size_t n) { return device_copy(nullptr, address(to), from, n, false, false, true); }
API cuMemcpyDtoD_v2(Address to, Address from, size_t n) { return device_copy(nullptr, to, from, n, false, true, true); }
API cuMemcpy(Address to, Address from, size_t n) { return device_copy(nullptr, to, from, n, false, false, false); }
API cuPointerGetAttribute(void* value, int attribute, Address at) {
    ENTER;
    auto a = holder(allocations, at);
    if (a == allocations.end() || at >= a->first + a->second.bytes) return INVALID_VALUE;
    if (attribute == 2)
        *static_cast<unsigned*>(value) = 2;  // memory type: device
    else if (attribute == 1)
        *static_cast<void**>(value) = &the_context;
    else
        return NOT_SUPPORTED;
    return SUCCESS;
}

// ---- streams and events ----

API cuStreamCreate(void** stream, unsigned flags) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto s = std::make_shared<Stream>();
    s->blocking = !(flags & 1);
    s->self = s;
    streams[s.get()] = s;
    *stream = s.get();
    return SUCCESS;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}
API cuStreamDestroy_v2(void* stream) {
    ENTER;
    auto s = stream_of(stream);
    if (!s || s == null_stream()) return INVALID_HANDLE;
    drain(*s);
    streams.erase(stream);
    return lost;
}
API cuStreamSynchronize(void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (int bad = waitable(*s)) return bad;
    if (s == null_stream()) drain_all(true);
    drain(*s);
    return lost;
}
API cuStreamQuery(void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (s->queue.empty()) return SUCCESS;
    drain(*s, s->done + 1);  // someone polls: it gets there
    return lost ? lost : NOT_READY;
}
API cuStreamGetCtx(void*, void** context) {
    *context = &the_context;
    return SUCCESS;
}
API cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    ENTER;
    if (int bad = in_context()) return bad;
    return submit(stream, [=] {
        function(data);
        return int(SUCCESS);
    });
}
API cuEventCreate(void** event, unsigned flags) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto* e = new Event;
    e->timed = !(flags & 2);
    events.insert(e);
    *event = e;
    return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
    ENTER;
    auto* e = static_cast<Event*>(event);
    if (!events.erase(e)) return INVALID_HANDLE;
    delete e;
    return SUCCESS;
}
static Event* event_of(void* event) {
    auto* e = static_cast<Event*>(event);
    return events.count(e) ? e : nullptr;
}
API cuEventRecord(void* event, void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    Event* e = event_of(event);
    auto s = stream_of(stream);
    if (!e || !s) return INVALID_HANDLE;
    e->recorded = true;
    e->capture = s->capture;
    if (s->capture) return SUCCESS;
    auto time = std::make_shared<double>(0);
    e->time = time;
    const int result = submit(stream, [=] {
        *time = now();
        return int(SUCCESS);
    });
    e->stream = s;
    e->ticket = s->submitted;
    return result;
}
API cuEventRecordWithFlags(void* event, void* stream, unsigned) { return cuEventRecord(event, stream); }
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
    ENTER;
    if (int bad = in_context()) return bad;
    Event* e = event_of(event);
    auto s = stream_of(stream);
    if (!e || !s) return INVALID_HANDLE;
    if (auto capture = e->capture.lock()) {
        if (s->capture && s->capture != capture) return CAPTURE_UNMATCHED;
        s->capture = capture;
        capture->streams.insert(s.get());
        return SUCCESS;
    }
    if (s->capture) {
        // an event from outside the capture
        s->capture->graph.invalid = true;
        return 905;
    }
    if (!e->recorded) return SUCCESS;
    auto other = e->stream;
    const uint64_t ticket = e->ticket;
    return submit(stream, [=] {
        drain(*other, ticket);
        return lost;
    });
}
API cuEventQuery(void* event) {
    ENTER;
    if (int bad = in_context()) return bad;
    Event* e = event_of(event);
    if (!e) return INVALID_HANDLE;
    if (!e->capture.expired()) return CAPTURE_UNSUPPORTED;
    if (!e->recorded || e->stream->done >= e->ticket) return SUCCESS;
    drain(*e->stream, e->stream->done + 1);
    return lost ? lost : NOT_READY;
}
API cuEventSynchronize(void* event) {
    ENTER;
    if (int bad = in_context()) return bad;
    Event* e = event_of(event);
    if (!e) return INVALID_HANDLE;
    if (!e->capture.expired()) return CAPTURE_UNSUPPORTED;
    if (e->recorded) drain(*e->stream, e->ticket);
    return lost;
}
API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    ENTER;
    if (int bad = in_context()) return bad;
    Event *a = event_of(from), *b = event_of(to);
    if (!a || !b || !a->timed || !b->timed || !a->recorded || !b->recorded) return INVALID_HANDLE;
    if (a->stream->done < a->ticket || b->stream->done < b->ticket) return NOT_READY;
    *milliseconds = float((*b->time - *a->time) * 1e3);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

// ---- graphs ----

API cuStreamBeginCapture_v2(void* stream, int) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto s = stream_of(stream);
    if (!s || s == null_stream()) return INVALID_HANDLE;
    if (s->capture) return INVALID_VALUE;
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s.get();
    s->capture->streams.insert(s.get());
    return SUCCESS;
}
API cuStreamEndCapture(void* stream, void** graph) {
    ENTER;
    *graph = nullptr;
    if (int bad = in_context()) return bad;
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    if (!s->capture) return INVALID_VALUE;
    auto capture = s->capture;
    if (capture->origin != s.get()) return CAPTURE_UNMATCHED;
    for (auto& [handle, each] : streams)
        if (capture->streams.count(each.get())) each->capture = nullptr;
    if (capture->graph.invalid) return CAPTURE_INVALIDATED;
    *graph = new Graph(capture->graph);
    return SUCCESS;
}
API cuStreamIsCapturing(void* stream, int* status) {
    ENTER;
    auto s = stream_of(stream);
    if (!s) return INVALID_HANDLE;
    *status = !s->capture ? 0 : s->capture->graph.invalid ? 2 : 1;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    ENTER;
    if (int bad = in_context()) return bad;
    *executable = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
API cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
API cuGraphExecDestroy(void* executable) {
    ENTER;
    drain_all(false);
    delete static_cast<Graph*>(executable);
    return SUCCESS;
}
API cuGraphUpload(void*, void*) { return SUCCESS; }
API cuGraphLaunch(void* executable, void* stream) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto* graph = static_cast<Graph*>(executable);
    return submit(stream, [=] {
        for (const Work& work : graph->work)
            if (int bad = work()) return bad;
        return int(SUCCESS);
    });
}

// ---- modules and launches ----

API cuModuleLoadData(void** module, const void* image) {
    ENTER;
    if (int bad = in_context()) return bad;
    return load(reinterpret_cast<Module**>(module), image);
}
API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) { return cuModuleLoadData(module, image); }
API cuModuleUnload(void* module) {
    ENTER;
    if (!module) return INVALID_HANDLE;
    drain_all(false);
    auto* m = static_cast<Module*>(module);
    for (auto i = functions.begin(); i != functions.end();) {
        if (i->first.first == m) {
            delete i->second;
            i = functions.erase(i);
        } else {
            ++i;
        }
    }
    dlclose(m->library);
    delete m;
    return SUCCESS;
}
API cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto* m = static_cast<Module*>(module);
    Function*& f = functions[{m, name}];
    if (!f) {
        const auto entry = reinterpret_cast<Entry (*)()>(dlsym(m->library, (string("perjoule_entry_") + name).c_str()));
        if (!entry) {
            functions.erase({m, name});
            return NOT_FOUND;
        }
        f = new Function{m, name, entry()};
    }
    *function = f;
    return SUCCESS;
}
API cuModuleGetGlobal_v2(Address* at, size_t* bytes, void* module, const char* name) {
    ENTER;
    void* p = dlsym(static_cast<Module*>(module)->library, name);
    if (!p) return NOT_FOUND;
    if (at) *at = address(p);
    if (bytes) *bytes = 0;
    return SUCCESS;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
    ENTER;
    if (int bad = in_context()) return bad;
    auto* f = static_cast<Function*>(function);
    if (attribute == 8) {
        if (value < 0 || value > shared_opt_in()) return INVALID_VALUE;
        f->dynamic_limit = std::max(value, 48 << 10);
    } else if (attribute == 13) {
        f->nonportable_cluster = value;
    }
    return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, void* function) {
    auto* f = static_cast<Function*>(function);
    *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : attribute == 8 ? f->dynamic_limit : attribute == 5 || attribute == 6 ? sm() : 0;
    return SUCCESS;
}
API cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
    if (!function || threads <= 0) return INVALID_VALUE;
    const int by_threads = threads_of_multiprocessor() / ((threads + 31) / 32 * 32);
    const int by_shared = shared ? int(size_t(shared_of_multiprocessor()) / (shared + (sm() >= 80 ? 1024 : 0))) : 16;
    *blocks = std::min({by_threads, by_shared, 16});
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* function, int threads, size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** parameters, void** extra) {
    ENTER;
    return launch(static_cast<Function*>(function), {{gx, gy, gz}, {bx, by, bz}, {1, 1, 1}, shared, stream, false}, parameters, extra);
}
API cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                              void* stream, void** parameters) {
    ENTER;
    return launch(static_cast<Function*>(function), {{gx, gy, gz}, {bx, by, bz}, {1, 1, 1}, shared, stream, true}, parameters, nullptr);
}

struct LaunchAttribute {
    int id;
    char padding[4];
    union {
        char bytes[64];
        unsigned dim[3];
        int number;
    } value;
};
struct LaunchConfig {
    unsigned gx, gy, gz, bx, by, bz, shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned count;
};
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
    ENTER;
    Configuration c{
        {config->gx, config->gy, config->gz}, {config->bx, config->by, config->bz}, {1, 1, 1}, config->shared, config->stream, false};
    for (unsigned i = 0; i < config->count; i++) {
        const LaunchAttribute& a = config->attributes[i];
        if (a.id == 2)
            c.cooperative = a.value.number != 0;
        else if (a.id == 4)
            c.cluster = {a.value.dim[0], a.value.dim[1], a.value.dim[2]};
        else if (a.id == 6 && a.value.number && sm() < 90)
            return NOT_SUPPORTED;
    }
    return launch(static_cast<Function*>(function), c, parameters, extra);
}

// As hopper.h reads it.
struct TensorMap {
    Address base;
    uint64_t dim[5], stride[5];
    uint16_t box[5];
    uint8_t rank, bytes, swizzle, magic;
};
API cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* base, const uint64_t* dim, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int, int) {
    ENTER;
    if (sm() < 90) return NOT_SUPPORTED;
    static const uint8_t BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if (type < 0 || type > 12 || rank < 1 || rank > 5 || address(base) % 16 || address(map) % 64 || interleave != 0 || swizzle < 0 ||
        swizzle > 3)
        return INVALID_VALUE;
    TensorMap m{};
    m.base = address(base);
    m.rank = uint8_t(rank);
    m.bytes = BYTES[type];
    m.swizzle = uint8_t(swizzle);
    m.magic = 0xA7;
    for (unsigned i = 0; i < rank; i++) {
        if (dim[i] == 0 || dim[i] > (1ull << 32) || box[i] == 0 || box[i] > 256 || element_strides[i] != 1) return INVALID_VALUE;
        if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= (1ull << 40))) return INVALID_VALUE;
        m.dim[i] = dim[i];
        m.stride[i] = i ? strides[i - 1] : m.bytes;
        m.box[i] = uint16_t(box[i]);
    }
    const unsigned inner = box[0] * m.bytes;
    if (inner % 16 || (swizzle && inner > (16u << swizzle))) return INVALID_VALUE;
    memset(map, 0, 128);
    memcpy(map, &m, sizeof m);
    return SUCCESS;
}

API cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
    *function = nullptr;
    for (const char* suffix : {"_v2", ""})
        if (!*function) *function = dlsym(RTLD_DEFAULT, (string(name) + suffix).c_str());
    if (found) *found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
