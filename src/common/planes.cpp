#include "anyprec/planes.h"

#include <algorithm>

namespace anyprec {

void codes_to_planes(const std::uint8_t* codes, std::int64_t out_features, std::int64_t in_features,
                     int parent_precision, std::uint8_t* planes) {
  const std::int64_t row_bytes = plane_row_bytes(in_features);
  const std::int64_t plane_bytes = out_features * row_bytes;
  std::fill_n(planes, parent_precision * plane_bytes, std::uint8_t{0});
  for (std::int64_t n = 0; n < out_features; ++n) {
    const std::uint8_t* row = codes + n * in_features;
    for (int p = 0; p < parent_precision; ++p) {
      std::uint8_t* out = planes + p * plane_bytes + n * row_bytes;
      const int shift = parent_precision - 1 - p;
      for (std::int64_t k = 0; k < in_features; ++k) {
        out[k / 8] = static_cast<std::uint8_t>(out[k / 8] | (((row[k] >> shift) & 1) << (k % 8)));
      }
    }
  }
}

void planes_to_codes(const std::uint8_t* planes, std::int64_t plane_stride,
                     std::int64_t out_features, std::int64_t in_features, int precision,
                     std::uint8_t* codes) {
  const std::int64_t row_bytes = plane_row_bytes(in_features);
  for (std::int64_t n = 0; n < out_features; ++n) {
    std::uint8_t* row = codes + n * in_features;
    std::fill_n(row, in_features, std::uint8_t{0});
    for (int p = 0; p < precision; ++p) {
      const std::uint8_t* in = planes + p * plane_stride + n * row_bytes;
      for (std::int64_t k = 0; k < in_features; ++k) {
        row[k] = static_cast<std::uint8_t>((row[k] << 1) | ((in[k / 8] >> (k % 8)) & 1));
      }
    }
  }
}

}  // namespace anyprec
