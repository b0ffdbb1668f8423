#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "anyprec/cuda.h"

/// Elements of a type that is known at run time.
namespace anyprec::cuda {

__device__ __forceinline__ float load_scalar(const void* from, ScalarType type, std::int64_t at) {
  switch (type) {
    case ScalarType::kFloat32:
      return static_cast<const float*>(from)[at];
    case ScalarType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at]);
    default:
      return __half2float(static_cast<const __half*>(from)[at]);
  }
}

__device__ __forceinline__ void store_scalar(void* to, ScalarType type, std::int64_t at,
                                             float value) {
  switch (type) {
    case ScalarType::kFloat32:
      static_cast<float*>(to)[at] = value;
      break;
    case ScalarType::kBFloat16:
      static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value);
      break;
    default:
      static_cast<__half*>(to)[at] = __float2half_rn(value);
  }
}

/// What a type keeps of a value.
__device__ __forceinline__ float rounded(ScalarType type, float value) {
  switch (type) {
    case ScalarType::kFloat32:
      return value;
    case ScalarType::kBFloat16:
      return __bfloat162float(__float2bfloat16_rn(value));
    default:
      return __half2float(__float2half_rn(value));
  }
}

}  // namespace anyprec::cuda
