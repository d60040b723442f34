// The Hopper launchers, as compiled for the package, on a CUDA runtime and driver of our own that
// write down what they are asked for: tensor maps, grid, cluster, shared memory.
//
//   <folder> obstacle <13 numbers of the geometry>
//   <folder> launch|refuse|old-driver|no-device <tile> <dtype> <13 numbers>
//
// obstacle.txt holds the obstacle or the launcher's error, if any; launch.bin and maps.bin what was
// asked for, as int64 (see test_conv2d_bias_leaky_relu_sm90.py).

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/conv2d_bias_leaky_relu_sm90.h"
#include "host.h"

namespace {

enum Tensor { kInput = 1, kWeight, kOutput, kBias };
// Never read: only the addresses matter. Aligned, and far from one another.
void* address_of(Tensor tensor) {
  return reinterpret_cast<void*>(std::uintptr_t{tensor} << 44);
}

std::string mode;
std::vector<std::int64_t> maps, launches;

struct Map {
  std::int64_t im2col, tensor, rank;
  std::int64_t extents[5], strides[5], steps[5];  // strides in bytes; steps in elements
  std::int64_t lower[3], upper[3];                // im2col: corners, innermost first
  std::int64_t box[5];                            // im2col: channels, pixels
};

CUresult note(Map map, CUtensorMap* written, const cuuint64_t* extents, const cuuint64_t* strides,
              const cuuint32_t* steps) {
  if (mode == "refuse") return CUDA_ERROR_INVALID_VALUE;
  host::require(reinterpret_cast<std::uintptr_t>(written) % 64 == 0, "unaligned tensor map");
  for (int d = 0; d < map.rank; ++d) {
    map.extents[d] = static_cast<std::int64_t>(extents[d]);
    map.strides[d] = d == 0 ? 2 : static_cast<std::int64_t>(strides[d - 1]);
    map.steps[d] = steps[d];
  }
  const auto* numbers = reinterpret_cast<const std::int64_t*>(&map);
  maps.insert(maps.end(), numbers, numbers + sizeof(map) / sizeof(*numbers));
  return CUDA_SUCCESS;
}

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* address,
                      const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map noted{};
  noted.tensor = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address) >> 44);
  noted.rank = rank;
  for (cuuint32_t d = 0; d < rank; ++d) noted.box[d] = box[d];
  return note(noted, map, extents, strides, steps);
}

CUresult encode_im2col(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* address,
                       const cuuint64_t* extents, const cuuint64_t* strides, const int* lower,
                       const int* upper, cuuint32_t channels, cuuint32_t pixels,
                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map noted{};
  noted.im2col = 1;
  noted.tensor = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address) >> 44);
  noted.rank = rank;
  for (cuuint32_t d = 0; d + 2 < rank; ++d) {
    noted.lower[d] = lower[d];
    noted.upper[d] = upper[d];
  }
  noted.box[0] = channels;
  noted.box[1] = pixels;
  return note(noted, map, extents, strides, steps);
}

void write(const std::string& path, const void* data, std::size_t size) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  host::require(file != nullptr, "cannot write " + path);
  if (size != 0) host::require(std::fwrite(data, 1, size, file) == size, "cannot write " + path);
  std::fclose(file);
}

}  // namespace

// ------------------------------------------------------------------------- the runtime's functions

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned int version,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  host::require(version == 12000, "tensor maps are as old as CUDA 12.0, and so asked for");
  *found = mode == "old-driver" ? cudaDriverEntryPointVersionNotSufficent
                                : cudaDriverEntryPointSuccess;
  const bool tiled = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  host::require(tiled || std::strcmp(name, "cuTensorMapEncodeIm2col") == 0, name);
  const PFN_cuTensorMapEncodeTiled_v12000 of_tiles = &encode_tiled;
  const PFN_cuTensorMapEncodeIm2col_v12000 of_pixels = &encode_im2col;
  *function = tiled ? reinterpret_cast<void*>(of_tiles) : reinterpret_cast<void*>(of_pixels);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  host::require(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > 0, "attribute");
  launches.push_back(value);
  return mode == "no-device" ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void** arguments) {
  host::require(reinterpret_cast<std::uintptr_t>(arguments[0]) % 64 == 0, "unaligned parameters");
  host::require(config->numAttrs == 1 && config->attrs->id == cudaLaunchAttributeClusterDimension,
                "one attribute, the cluster");
  const auto& cluster = config->attrs->val.clusterDim;
  for (const std::int64_t number :
       {static_cast<std::int64_t>(config->gridDim.x), static_cast<std::int64_t>(config->gridDim.y),
        static_cast<std::int64_t>(config->gridDim.z),
        static_cast<std::int64_t>(config->blockDim.x * config->blockDim.y * config->blockDim.z),
        static_cast<std::int64_t>(config->dynamicSmemBytes),
        static_cast<std::int64_t>(cluster.x * cluster.y * cluster.z),
        static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(config->stream))}) {
    launches.push_back(number);
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "no kernel image for this device" : "other";
}

// What the compiler adds to a CUDA object: registration before main, and stubs that are not called.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*,
                            int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
cudaError_t __cudaGetKernel(void*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, std::size_t, void*) { std::abort(); }
unsigned __cudaPushCallConfiguration(dim3, dim3, std::size_t, void*) { std::abort(); }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { std::abort(); }

}  // extern "C"

// -------------------------------------------------------------------------------------------------

int main(int count, char** words) {
  const std::string folder = words[1];
  mode = words[2];
  const int first = mode == "obstacle" ? 3 : 5;
  host::require(count == first + 13, "13 numbers are a geometry");
  std::int64_t n[13];
  for (int i = 0; i < 13; ++i) n[i] = std::atoll(words[first + i]);
  const fastgen::cuda::HopperGeometry geometry{n[0], n[1], n[2], n[3],  n[4],  n[5], n[6],
                                               n[7], n[8], n[9], n[10], n[11], n[12]};

  const char* obstacle = fastgen::cuda::hopper_obstacle(geometry);
  if (mode != "obstacle") {
    host::require(obstacle == nullptr, obstacle == nullptr ? "" : obstacle);
    fastgen::cuda::HopperConv2dCall call{};
    call.geometry = geometry;
    call.input = address_of(kInput);
    call.weight = address_of(kWeight);
    call.output = address_of(kOutput);
    call.bias = address_of(kBias);
    call.slope = 0.2f;
    const auto& tile = fastgen::cuda::kHopperTiles[std::atoi(words[3])];
    const auto launch = std::string(words[4]) == "bfloat16" ? tile.bfloat16 : tile.float16;
    obstacle = launch(call, reinterpret_cast<void*>(std::uintptr_t{77}));
    launches.push_back(tile.pixels);
    launches.push_back(tile.filters);
  }

  write(folder + "/obstacle.txt", obstacle, obstacle == nullptr ? 0 : std::strlen(obstacle));
  write(folder + "/launch.bin", launches.data(), launches.size() * sizeof(std::int64_t));
  write(folder + "/maps.bin", maps.data(), maps.size() * sizeof(std::int64_t));
  return 0;
}
