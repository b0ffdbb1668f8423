#pragma once

#include <cstdint>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/norm_scale.cuh"
#include "kernels/cuda/vectors.cuh"

namespace anyprec::cuda {

/// The norm of a row of which every thread of a block has one chunk, for rows_to_planes.
class ChunkNorm {
 public:
  static constexpr bool kWanted = true;  ///< by a kernel; by a launch: wanted()

  /// Reads the thread's weights, before x is there; nothing waits for them until `apply`.
  __device__ __forceinline__ ChunkNorm(const InputNorm& norm, ScalarType type, int columns)
      : norm_(norm), type_(type) {
    const int first = static_cast<int>(threadIdx.x) * kChunkColumns;
    if (wanted()) read_chunk(norm.weight, type, first, columns, words_);
  }
  __device__ __forceinline__ bool wanted() const { return norm_.weight != nullptr; }

  /// squares: the thread's. scratch: a float a warp. Every thread of the block calls it.
  template <int kThreads>
  __device__ __forceinline__ void set(float squares, float* scratch) {
    scale_ = norm_scale(norm_, block_sum<kThreads>(squares, scratch));
  }
  /// v: the thread's chunk, rounded to its type.
  __device__ __forceinline__ void apply(float (&v)[kChunkColumns]) const {
    float weights[kChunkColumns];
    unpack_chunk(words_, type_, weights);
#pragma unroll
    for (int i = 0; i < kChunkColumns; ++i) v[i] = v[i] * scale_ * (weights[i] + norm_.offset);
    if (type_ == ScalarType::kFloat16) {
#pragma unroll
      for (int i = 0; i < kChunkColumns; ++i) v[i] = rounded<ScalarType::kFloat16>(v[i]);
    } else if (type_ == ScalarType::kBFloat16) {
#pragma unroll
      for (int i = 0; i < kChunkColumns; ++i) v[i] = rounded<ScalarType::kBFloat16>(v[i]);
    }
  }

 private:
  InputNorm norm_;
  ScalarType type_;
  ChunkWords words_ = {};
  float scale_ = 0.0f;
};

}  // namespace anyprec::cuda
