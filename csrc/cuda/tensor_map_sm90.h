// How CUTLASS reaches the driver's tensor-map functions, and whether they succeeded.
//
// CUTLASS encodes the TMA descriptors while it builds a kernel's parameters and has no way to
// report that the driver refused: its only check is an assert, and a release build would launch
// with garbage for a descriptor. It calls the driver through one macro, which this header points to
// functions that remember the first refusal. They also look the driver up once instead of on every
// call, and at run time, so that nothing links with libcuda. Encoding is arithmetic on the host: it
// enqueues no work and is allowed while a stream is captured.
//
// Included before any other header of CUTLASS and CuTe. cudaTypedefs.h comes first of all:
// cuda_host_adapter.hpp includes it inside a namespace.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cutlass/cuda_host_adapter.hpp>

namespace fastgen::cuda {

inline CUresult& tensor_map_result() {
  thread_local CUresult result = CUDA_SUCCESS;
  return result;
}

template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) cudaGetLastError();  // told below, so not left for who asks next
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Function>(function);
}

template <class Function, class... Arguments>
CUresult encode_tensor_map(Function encode, Arguments... arguments) {
  const CUresult result = encode == nullptr ? CUDA_ERROR_NOT_FOUND : encode(arguments...);
  if (tensor_map_result() == CUDA_SUCCESS) tensor_map_result() = result;
  return result;
}

template <class... Arguments>
CUresult encode_cuTensorMapEncodeTiled(Arguments... arguments) {
  static const auto encode =
      driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  return encode_tensor_map(encode, arguments...);
}

template <class... Arguments>
CUresult encode_cuTensorMapEncodeIm2col(Arguments... arguments) {
  static const auto encode =
      driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col");
  return encode_tensor_map(encode, arguments...);
}

// The tensor maps encoded by this thread since it was made.
class TensorMapEncoding {
 public:
  TensorMapEncoding() { tensor_map_result() = CUDA_SUCCESS; }
  // Why one of them is not valid, or nullptr.
  const char* error() const {
    switch (tensor_map_result()) {
      case CUDA_SUCCESS:
        return nullptr;
      case CUDA_ERROR_NOT_FOUND:
        return "the CUDA driver has no tensor maps (cuTensorMapEncode...): it is older than 12.0";
      default:
        return "the CUDA driver refused to encode a tensor map of these tensors";
    }
  }
};

}  // namespace fastgen::cuda

#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) fastgen::cuda::encode_##function
