// A mock of libcuda: device memory is host memory, kernels run on the CPU through shim.h.
//
// Every allocation ends at a page that may not be touched, and is filled with NaN. A launch runs under
// schedule MOCK_SCHEDULE (0 forward, 1 reverse, 2 random); under 3, the default, it runs under all three, and
// results that differ by a bit are a race. A failure is reported as CUDA_ERROR_LAUNCH_FAILED, with the reason
// on stderr.
//
// The stream is a queue: copies, kernels and graphs run when the host synchronizes, so that pinned memory that is
// overwritten too early gives a wrong result. While the stream is captured they are added to a graph instead.
//
// MOCK_DRIVER_LOG: a file that gets a line for every allocation, launch and graph.
// MOCK_NO_DEVICE: no GPU. MOCK_COMPUTE_CAPABILITY: 75 is a Turing GPU. MOCK_MEMORY: bytes of device memory.
// MOCK_HOST_MEMORY: bytes of the host that can be page-locked and mapped, which kernels access as device memory.
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
#include <string>
#include <sys/mman.h>
#include <vector>

typedef int Result;
typedef uint64_t Pointer;
typedef int (*Kernel)(const unsigned* grid, const unsigned* block, size_t shared, void** args, int schedule);
#define API extern "C" __attribute__((visibility("default"))) Result

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NO_BINARY = 209,
       NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

namespace {
struct Allocation { char* map; size_t mapped; size_t size; bool on_host; };
struct Function { Kernel run; std::string name; int parameters; int shared_limit = 48 * 1024; };
struct Module { void* library; };
std::map<Pointer, Allocation> live;
std::recursive_mutex lock;
size_t used = 0, used_on_host = 0;
constexpr size_t PAGE = 4096;

size_t number(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t memory() { return number("MOCK_MEMORY", size_t(1) << 34); }

bool inside(Pointer p, size_t n) {
    auto it = live.upper_bound(p);
    if (it == live.begin()) return false;
    --it;
    return p + n <= it->first + it->second.size;
}

// Without the workspace of cuBLASLt and larger memory, to which no kernel writes.
constexpr size_t WORKSPACE = 32 << 20;
std::vector<std::vector<char>> snapshot() {
    std::vector<std::vector<char>> all;
    for (auto& [p, a] : live)
        if (a.size < WORKSPACE) all.emplace_back((char*)p, (char*)p + a.size);
    return all;
}
void restore(const std::vector<std::vector<char>>& all) {
    size_t i = 0;
    for (auto& [p, a] : live)
        if (a.size < WORKSPACE) memcpy((void*)p, all[i++].data(), a.size);
}

Result fail(const Function* f, const char* why) {
    fprintf(stderr, "mock driver: kernel %s: %s\n", f->name.c_str(), why);
    return LAUNCH_FAILED;
}

typedef std::function<Result()> Work;
typedef std::vector<Work> Graph;
std::deque<Work> queue;
uint64_t enqueued = 0;  // number of works so far
// Tests run beside each other, each with a stream of its own in a thread of its own.
thread_local Graph* captured = nullptr;
Result failed = 0;  // the first fault stays
std::map<char*, size_t> pinned;

void log(const char* what, const std::string& which) {
    const char* path = getenv("MOCK_DRIVER_LOG");
    if (!path) return;
    FILE* file = fopen(path, "a");
    fprintf(file, "%s %s\n", what, which.c_str());
    fclose(file);
}

Result enqueue(Work work) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (captured) captured->push_back(std::move(work));
    else queue.push_back(std::move(work)), enqueued++;
    return failed;
}
// Runs the queue, except the last `keep` works.
Result run(size_t keep = 0) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    while (queue.size() > keep) {
        Work work = std::move(queue.front());
        queue.pop_front();
        if (Result result = failed ? 0 : work()) failed = result;
    }
    return failed;
}
// Synchronizes, which is not allowed while the stream is captured.
Result wait() { return captured ? CAPTURE_UNSUPPORTED : run(); }
bool is_pinned(const void* p, size_t n) {
    auto it = pinned.upper_bound((char*)p);
    if (it == pinned.begin()) return false;
    --it;
    return (char*)p + n <= it->first + it->second;
}
}  // namespace

// For cublaslt.cpp.
extern "C" __attribute__((visibility("default"))) void mock_enqueue(void (*work)(void*), void* data) {
    std::shared_ptr<void> owned(data, free);
    enqueue([=] { work(owned.get()); return 0; });
}

API cuInit(unsigned) { return getenv("MOCK_NO_DEVICE") ? NO_DEVICE : 0; }
API cuDriverGetVersion(int* v) { *v = 13000; return 0; }
API cuDeviceGetCount(int* n) { *n = 1; return 0; }
API cuDeviceGet(int* d, int i) { *d = i; return i ? INVALID_DEVICE : 0; }
API cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "mock GPU"); return 0; }
API cuDeviceTotalMem_v2(size_t* b, int) { *b = memory(); return 0; }
API cuDeviceGetAttribute(int* v, int attribute, int) {
    int cc = (int)number("MOCK_COMPUTE_CAPABILITY", 90);
    switch (attribute) {
        case 75: *v = cc / 10; return 0;   // compute capability, major
        case 76: *v = cc % 10; return 0;   // minor
        case 16: *v = 4; return 0;         // multiprocessors
        case 115: *v = 1; return 0;        // memory pools
        case 97: *v = 227 * 1024; return 0;  // shared memory of a block, opted in
        default: *v = 0; return 0;
    }
}
API cuDevicePrimaryCtxRetain(void** c, int) { *c = (void*)1; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuCtxGetCurrent(void** c) { *c = (void*)1; return 0; }
API cuCtxSynchronize() { return wait(); }
API cuMemGetInfo_v2(size_t* free, size_t* total) { *total = memory(); *free = *total - used; return 0; }

// Memory that kernels access.
static Result allocate(Pointer* p, size_t n, bool on_host) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (n == 0) return INVALID_VALUE;
    if (captured) return CAPTURE_UNSUPPORTED;
    log(on_host ? "mapped" : "alloc", std::to_string(n));
    size_t& used_there = on_host ? used_on_host : used;
    if (used_there + n > (on_host ? number("MOCK_HOST_MEMORY", size_t(1) << 34) : memory())) return OUT_OF_MEMORY;
    size_t room = (n + 15) / 16 * 16, pages = (room + PAGE - 1) / PAGE * PAGE;
    char* map = (char*)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(map + pages, PAGE, PROT_NONE);
    char* start = map + pages - room;
    memset(start, 0xff, room);
    live[(Pointer)start] = {map, pages + PAGE, n, on_host};
    used_there += n;
    *p = (Pointer)start;
    return 0;
}
API cuMemAlloc_v2(Pointer* p, size_t n) { return allocate(p, n, false); }
API cuMemAllocAsync(Pointer* p, size_t n, void*) { return cuMemAlloc_v2(p, n); }
static Result release(Pointer p, bool on_host) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = wait()) return result;
    auto it = live.find(p);
    if (it == live.end() || it->second.on_host != on_host) return INVALID_VALUE;
    log(on_host ? "unmapped" : "free", std::to_string(it->second.size));
    (on_host ? used_on_host : used) -= it->second.size;
    munmap(it->second.map, it->second.mapped);
    live.erase(it);
    return 0;
}
API cuMemFree_v2(Pointer p) { return release(p, false); }
API cuMemFreeAsync(Pointer p, void*) { return cuMemFree_v2(p); }

API cuMemHostAlloc(void** p, size_t n, unsigned flags) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (flags & 2) {  // CU_MEMHOSTALLOC_DEVICEMAP
        Pointer address;
        if (Result result = allocate(&address, n, true)) return result;
        *p = (void*)address;
        return 0;
    }
    log("pinned", std::to_string(n));
    *p = malloc(n);
    pinned[(char*)*p] = n;
    return 0;
}
API cuMemFreeHost(void* p) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (live.count((Pointer)p)) return release((Pointer)p, true);
    run();
    if (!pinned.erase((char*)p)) return INVALID_VALUE;
    free(p);
    return 0;
}

API cuMemHostGetDevicePointer_v2(Pointer* d, void* p, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto it = live.find((Pointer)p);
    if (it == live.end() || !it->second.on_host) return INVALID_VALUE;
    *d = (Pointer)p;
    return 0;
}

API cuMemcpyHtoDAsync_v2(Pointer d, const void* s, size_t n, void*) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!inside(d, n)) return INVALID_VALUE;
    if (is_pinned(s, n)) return enqueue([=] { memcpy((void*)d, s, n); return 0; });
    if (Result result = wait()) return result;
    memcpy((void*)d, s, n);
    return 0;
}
API cuMemcpyDtoHAsync_v2(void* d, Pointer s, size_t n, void*) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!inside(s, n)) return INVALID_VALUE;
    if (is_pinned(d, n)) return enqueue([=] { memcpy(d, (void*)s, n); return 0; });
    if (Result result = wait()) return result;
    memcpy(d, (void*)s, n);
    return 0;
}
API cuMemcpyDtoDAsync_v2(Pointer d, Pointer s, size_t n, void*) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!inside(s, n) || !inside(d, n)) return INVALID_VALUE;
    return enqueue([=] { memmove((void*)d, (void*)s, n); return 0; });
}
API cuMemsetD8Async(Pointer d, unsigned char v, size_t n, void*) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!inside(d, n)) return INVALID_VALUE;
    return enqueue([=] { memset((void*)d, v, n); return 0; });
}

API cuStreamCreate(void** s, unsigned) { *s = (void*)16; return 0; }
API cuStreamSynchronize(void*) { return wait(); }
API cuStreamDestroy_v2(void*) { return 0; }
API cuStreamWaitEvent(void*, void*, unsigned) { return 0; }

// Waiting for an event completes all work before it, and none after it.
static std::map<void*, uint64_t> recorded;  // event: number of the work that it comes after
API cuEventCreate(void** e, unsigned) { *e = new char; return 0; }
API cuEventRecord(void* e, void*) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (captured) return CAPTURE_UNSUPPORTED;
    recorded[e] = enqueued;
    return failed;
}
API cuEventSynchronize(void* e) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (captured) return CAPTURE_UNSUPPORTED;
    return run(enqueued - recorded[e]);
}
API cuEventDestroy_v2(void* e) { recorded.erase(e); delete (char*)e; return 0; }

API cuStreamBeginCapture_v2(void*, int) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (captured) return CAPTURE_INVALIDATED;
    captured = new Graph;
    return 0;
}
API cuStreamEndCapture(void*, void** graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!captured) return CAPTURE_INVALIDATED;
    *graph = captured;
    captured = nullptr;
    return 0;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*(Graph*)graph);
    log("graph", std::to_string(((Graph*)graph)->size()));
    return 0;
}
API cuGraphLaunch(void* executable, void*) {
    log("replay", std::to_string(((Graph*)executable)->size()));
    for (auto& work : *(Graph*)executable)
        if (Result result = enqueue(work)) return result;
    return 0;
}
API cuGraphExecDestroy(void* executable) {
    run();
    delete (Graph*)executable;
    return 0;
}
API cuGraphDestroy(void* graph) { delete (Graph*)graph; return 0; }

// An image made by nvrtc.cpp is the name of a library of kernels beside this file.
API cuModuleLoadData(void** m, const void* image) {
    Dl_info self;
    dladdr((void*)&cuInit, &self);
    std::string dir = self.dli_fname;
    dir.resize(dir.rfind('/') + 1);
    void* library = dlopen((dir + (const char*)image).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "mock driver: %s\n", dlerror());
        return NO_BINARY;
    }
    *m = new Module{library};
    return 0;
}
API cuModuleUnload(void* m) { delete (Module*)m; return 0; }
API cuModuleGetFunction(void** f, void* m, const char* name) {
    Kernel run = (Kernel)dlsym(((Module*)m)->library, (std::string("launch_") + name).c_str());
    int* parameters = (int*)dlsym(((Module*)m)->library, (std::string("parameters_") + name).c_str());
    if (!run || !parameters) return NOT_FOUND;
    *f = new Function{run, name, *parameters};
    return 0;
}
API cuFuncSetAttribute(void* f, int attribute, int value) {
    if (attribute != 8 || value > 227 * 1024) return INVALID_VALUE;
    ((Function*)f)->shared_limit = value;
    return 0;
}

static Result launch(Function* f, unsigned* grid, unsigned* block, unsigned shared, void** args) {
    int schedule = (int)number("MOCK_SCHEDULE", 3);
    if (schedule < 3) return f->run(grid, block, shared, args, schedule) ? fail(f, "stopped") : 0;
    auto before = snapshot();
    std::vector<std::vector<char>> first;
    for (int s = 0; s < 3; s++) {
        if (s) restore(before);
        if (f->run(grid, block, shared, args, s)) return fail(f, "stopped");
        auto after = snapshot();
        if (s == 0) first = std::move(after);
        else if (after != first) return fail(f, "a race: the result depends on the order of threads");
    }
    return 0;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** args, void**) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto* f = (Function*)function;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535) return fail(f, "grid out of range");
    if (!bx || !by || !bz || (size_t)bx * by * bz > 1024) return fail(f, "block out of range");
    if ((int)shared > f->shared_limit) return fail(f, "more dynamic shared memory than its attribute allows");
    log("launch", f->name);
    // Arguments are copied at the launch, not when the kernel runs. The host passes eight bytes for each.
    std::vector<uint64_t> values;
    for (int i = 0; i < f->parameters; i++) values.push_back(*(uint64_t*)args[i]);
    return enqueue([=]() mutable {
        unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(&value);
        return launch(f, grid, block, shared, pointers.data());
    });
}
API cuGetErrorName(int, const char** s) { *s = "MOCK_ERROR"; return 0; }
API cuGetErrorString(int, const char** s) { *s = "mock error"; return 0; }
