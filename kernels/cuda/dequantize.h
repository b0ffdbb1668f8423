#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "anyprec/codebook.h"

namespace anyprec::cuda {

enum class ScalarType { kFloat32, kBFloat16, kFloat16 };

/// One quantized matrix in device memory. The backend's layout is canonical bit order with padded
/// rows: planes [>= b, N, packed_row_bytes(K)] (anyprec/planes.h); lut fp16 [N, G, 2^min(b, L)];
/// alpha fp16 [N, G, b - L, C], null where b <= L.
struct Weights {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  CodebookForm form;
  int precision = 0;
  const std::uint8_t* planes = nullptr;
  const std::uint16_t* lut = nullptr;
  const std::uint16_t* alpha = nullptr;
};

/// Writes rows [row_begin, row_end) of W_b to out [row_end - row_begin, K], contiguous, on `stream`
/// of the current device. Returns the launch's status.
cudaError_t dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end,
                       void* out, ScalarType type, cudaStream_t stream);

}  // namespace anyprec::cuda
