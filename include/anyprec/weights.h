#pragma once

#include <cstdint>

#include "anyprec/codebook.h"

namespace anyprec {

/// Element type of activations and results.
enum class ScalarType { kFloat32, kBFloat16, kFloat16 };

/// One quantized matrix at one precision, as kernels take it. All pointers are borrowed memory of
/// the kernels' device.
struct Weights {
  std::int64_t out_features = 0;  ///< N
  std::int64_t in_features = 0;   ///< K
  CodebookForm form;
  int precision = 0;  ///< b
  /// At least b planes of packed_plane_bytes(N, K) (anyprec/planes.h), in the backend's layout.
  const std::uint8_t* planes = nullptr;
  const std::uint16_t* lut = nullptr;    ///< fp16 [N, G, 2^min(b, L)]
  const std::uint16_t* alpha = nullptr;  ///< fp16 [N, G, b - L, C]; null where b <= L
};

}  // namespace anyprec
