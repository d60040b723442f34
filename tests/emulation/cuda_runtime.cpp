// A CUDA runtime for machines without a GPU, under the name of the real one (libcudart).
//
// Memory of the device is memory of the host, streams run at once, and what torch launches does
// nothing: emulation.py computes it on the CPU. Real are the rules: which calls are refused while a
// stream is captured, which streams belong to a capture, what an event carries from one to the
// other, where memory lies. Fresh memory is full of ones, which is NaN.
//
// FASTGEN_EMULATED_GPUS is the number of devices, 1 by default; each says that it is an H200, but
// FASTGEN_EMULATED_MULTIPROCESSORS says how large.
#include <cuda_runtime_api.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr std::size_t kMemory = std::size_t{8} << 30;

int multiprocessors() {
  const char* wanted = std::getenv("FASTGEN_EMULATED_MULTIPROCESSORS");
  return wanted != nullptr ? std::atoi(wanted) : 132;
}

struct Capture {
  unsigned long long id;
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  pid_t thread;
  bool broken = false;
  std::set<cudaStream_t> streams, unjoined;
};
struct Stream {
  int priority;
};
struct Event {
  double milliseconds = 0;
  unsigned long long capture = 0;
  cudaStream_t stream = nullptr;
  bool recorded = false;
};
struct Graph {
  unsigned long long id;
};
struct Block {
  std::size_t bytes;
  int device;
};

std::recursive_mutex mutex;
std::map<unsigned long long, Capture> captures;
std::map<char*, Block> device_memory, pinned_memory;
std::size_t used = 0;
unsigned long long next_capture = 1;

thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local int current_device = 0;
thread_local bool captures_hidden = false;

// What Python is told: 0 a capture begins, 1 it ends well, 2 its graph is launched, 3 it broke.
using Listener = void (*)(int what, unsigned long long id);
Listener listener = nullptr;
void tell(int what, unsigned long long id) {
  if (listener != nullptr) listener(what, id);
}

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t fail(cudaError_t error) { return last_error = error; }
cudaError_t fail(int error) { return fail(static_cast<cudaError_t>(error)); }

Capture* capture_of(cudaStream_t stream) {
  if (captures_hidden) return nullptr;
  for (auto& [id, capture] : captures) {
    if (capture.streams.count(stream) != 0) return &capture;
  }
  return nullptr;
}

cudaError_t break_capture(Capture& capture, int error) {
  capture.broken = true;
  return fail(error);
}

// For calls that are unsafe while a stream is captured, unless the thread or the capture says that
// it does not care.
cudaError_t unsafe_call() {
  if (captures_hidden || thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (auto& [id, capture] : captures) {
    if (capture.mode == cudaStreamCaptureModeRelaxed) continue;
    const bool everyone = thread_mode == cudaStreamCaptureModeGlobal &&
                          capture.mode == cudaStreamCaptureModeGlobal;
    if (everyone || capture.thread == gettid()) {
      return break_capture(capture, cudaErrorStreamCaptureUnsupported);
    }
  }
  return cudaSuccess;
}

cudaError_t wait_for(cudaStream_t stream) {
  Lock lock(mutex);
  if (const cudaError_t error = unsafe_call()) return error;
  Capture* capture = capture_of(stream);
  return capture ? break_capture(*capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaStreamCaptureStatus status_of(const Capture* capture) {
  if (capture == nullptr) return cudaStreamCaptureStatusNone;
  return capture->broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

cudaError_t allocate(std::map<char*, Block>& blocks, void** address, std::size_t bytes) {
  Lock lock(mutex);
  if (const cudaError_t error = unsafe_call()) return error;
  const bool on_device = &blocks == &device_memory;
  const std::size_t whole = (bytes / 512 + 2) * 512;
  *address = nullptr;
  if ((on_device && used + bytes > kMemory) || posix_memalign(address, 512, whole) != 0) {
    return fail(cudaErrorMemoryAllocation);
  }
  std::memset(*address, 0xff, whole);
  blocks[static_cast<char*>(*address)] = {bytes, current_device};
  if (on_device) used += bytes;
  return cudaSuccess;
}

cudaError_t release(std::map<char*, Block>& blocks, void* address) {
  Lock lock(mutex);
  if (address == nullptr) return cudaSuccess;
  const auto found = blocks.find(static_cast<char*>(address));
  if (found == blocks.end()) return fail(cudaErrorInvalidValue);
  if (&blocks == &device_memory) used -= found->second.bytes;
  blocks.erase(found);
  free(address);
  return cudaSuccess;
}

const Block* block_of(const std::map<char*, Block>& blocks, const void* address) {
  auto next = blocks.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  if (next == blocks.begin()) return nullptr;
  const auto& [first, block] = *--next;
  return address < first + (block.bytes ? block.bytes : 1) ? &block : nullptr;
}

bool known(const void* address) {
  return block_of(device_memory, address) || block_of(pinned_memory, address);
}

}  // namespace

// ----------------------------------------------------------------------------------- for Python

EXPORT void emulation_listen(Listener given) { listener = given; }
EXPORT unsigned long long emulation_capture_of(cudaStream_t stream) {
  Lock lock(mutex);
  const Capture* capture = capture_of(stream);
  return capture ? capture->id : 0;
}
// What this thread does next is no part of a capture: Triton's interpreter goes through the host.
EXPORT void emulation_hide_captures(int hidden) { captures_hidden = hidden != 0; }

// --------------------------------------------------------------------------------------- errors

EXPORT cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorString(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
  }
  return "an error of the emulated runtime";
}
EXPORT const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorEmulated";
}

// -------------------------------------------------------------------------------------- devices

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const char* wanted = std::getenv("FASTGEN_EMULATED_GPUS");
  *count = visible != nullptr && *visible == 0 ? 0 : wanted ? std::atoi(wanted) : 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  int count = 0;
  cudaGetDeviceCount(&count);
  if (device < 0 || device >= count) return fail(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  static const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMultiProcessorCount, multiprocessors()},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
      {cudaDevAttrL2CacheSize, 50 << 20},
  };
  const auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::snprintf(p->name, sizeof(p->name), "NVIDIA H200");
  p->major = 9;
  p->multiProcessorCount = multiprocessors();
  p->totalGlobalMem = kMemory;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 50 << 20;
  for (int d = 0; d < 3; ++d) p->maxGridSize[d] = d == 0 ? 2147483647 : 65535;
  for (int d = 0; d < 3; ++d) p->maxThreadsDim[d] = d == 2 ? 64 : 1024;
  p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  std::snprintf(text, static_cast<std::size_t>(size), "0000:%02x:00.0", device);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  Lock lock(mutex);
  return unsafe_call();
}

// --------------------------------------------------------------------------------------- memory

EXPORT cudaError_t cudaMalloc(void** p, std::size_t n) { return allocate(device_memory, p, n); }
EXPORT cudaError_t cudaFree(void* p) {
  {
    Lock lock(mutex);
    if (const cudaError_t error = unsafe_call()) return error;
  }
  return release(device_memory, p);
}
EXPORT cudaError_t cudaHostAlloc(void** p, std::size_t n, unsigned) {
  return allocate(pinned_memory, p, n);
}
EXPORT cudaError_t cudaFreeHost(void* p) { return release(pinned_memory, p); }
EXPORT cudaError_t cudaMemGetInfo(std::size_t* unused, std::size_t* total) {
  Lock lock(mutex);
  *total = kMemory;
  *unused = kMemory - used;
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Lock lock(mutex);
  *a = {};
  a->devicePointer = a->hostPointer = const_cast<void*>(p);
  if (const Block* block = block_of(device_memory, p)) {
    a->type = cudaMemoryTypeDevice;
    a->device = block->device;
    a->hostPointer = nullptr;
  } else if (block_of(pinned_memory, p) != nullptr) {
    a->type = cudaMemoryTypeHost;
  } else {
    a->type = cudaMemoryTypeUnregistered;
    a->device = cudaInvalidDeviceId;
    a->devicePointer = nullptr;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, std::size_t n, cudaMemcpyKind) {
  Lock lock(mutex);
  if (const cudaError_t error = unsafe_call()) return error;
  std::memmove(to, from, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t n, cudaMemcpyKind,
                                   cudaStream_t stream) {
  Lock lock(mutex);
  if (Capture* capture = capture_of(stream)) {
    if (known(to) && known(from)) return cudaSuccess;
    return break_capture(*capture, cudaErrorStreamCaptureUnsupported);  // pageable memory
  }
  std::memmove(to, from, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void* to, int value, std::size_t n) {
  std::memset(to, value, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, std::size_t n, cudaStream_t stream) {
  Lock lock(mutex);
  if (capture_of(stream) == nullptr) std::memset(to, value, n);
  return cudaSuccess;
}

// --------------------------------------------------------------------- streams, events, captures

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream{priority});
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = stream ? reinterpret_cast<Stream*>(stream)->priority : 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return wait_for(stream); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for(stream); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t given, unsigned) {
  Lock lock(mutex);
  const auto* event = reinterpret_cast<Event*>(given);
  const auto found = captures.find(event->capture);
  if (found != captures.end()) {
    Capture& capture = found->second;
    if (stream == nullptr) return break_capture(capture, cudaErrorStreamCaptureImplicit);
    capture.unjoined.erase(event->stream);
    const bool joins = capture.streams.insert(stream).second;
    if (joins && stream != capture.origin) capture.unjoined.insert(stream);
    return cudaSuccess;
  }
  Capture* capture = capture_of(stream);
  if (capture && event->recorded && capture->streams.count(event->stream) == 0) {
    return break_capture(*capture, cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  *status = status_of(capture_of(stream));
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** nodes,
                                            const cudaGraphEdgeData** edges, std::size_t* count) {
  Lock lock(mutex);
  const Capture* capture = capture_of(stream);
  *status = status_of(capture);
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  unsigned long long id = 0;
  {
    Lock lock(mutex);
    if (stream == nullptr || capture_of(stream)) return fail(cudaErrorIllegalState);
    id = next_capture++;
    captures[id] = {id, stream, mode, gettid(), false, {stream}, {}};
  }
  tell(0, id);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  unsigned long long id = 0;
  int error = cudaSuccess;
  {
    Lock lock(mutex);
    const Capture* capture = capture_of(stream);
    if (capture == nullptr) return fail(cudaErrorIllegalState);
    id = capture->id;
    if (!capture->unjoined.empty()) error = cudaErrorStreamCaptureUnjoined;
    if (capture->broken) error = cudaErrorStreamCaptureInvalidated;
    captures.erase(id);
  }
  tell(error ? 3 : 1, id);
  if (error != cudaSuccess) return fail(error);
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{id});
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                                 unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(new Graph{*reinterpret_cast<Graph*>(graph)});
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  tell(2, reinterpret_cast<Graph*>(graph)->id);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, std::size_t* count) {
  *count = 1;  // torch warns of a graph without nodes
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  Lock lock(mutex);
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const Capture* capture = capture_of(stream);
  const double milliseconds =
      static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
  *reinterpret_cast<Event*>(event) = {milliseconds, capture ? capture->id : 0, stream, true};
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return cudaDeviceSynchronize(); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const double passed =
      reinterpret_cast<Event*>(to)->milliseconds - reinterpret_cast<Event*>(from)->milliseconds;
  *milliseconds = static_cast<float>(passed > 1e-4 ? passed : 1e-4);
  return cudaSuccess;
}

// ------------------------------------------------------------------------ what torch brings along

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(+[]() { return 0; });
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char somewhere[65536];
  *address = somewhere;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                          int, std::size_t,
                                                                          unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3, dim3, std::size_t, void*) { return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared,
                                              void* stream) {
  *grid = *block = dim3();
  *shared = 0;
  *static_cast<void**>(stream) = nullptr;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
// torch compares the versions of cuDNN at run time and at build time: 9.19.0 in torch 2.11.
EXPORT int cudnnGetProperty(int which, int* value) {
  *value = which == 0 ? 9 : which == 1 ? 19 : 0;
  return 0;
}
EXPORT std::size_t cudnnGetVersion() { return 91900; }
