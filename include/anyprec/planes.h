#pragma once

#include <cstdint>

namespace anyprec {

/// Bytes of one row of a canonical bit plane: ceil(K / 8).
constexpr std::int64_t plane_row_bytes(std::int64_t in_features) { return (in_features + 7) / 8; }

/// A bit plane in memory is padded with zero bits, for every backend, to a multiple of 16 rows and
/// of 256 columns. How its bits are ordered is the backend's own affair.
constexpr std::int64_t packed_rows(std::int64_t out_features) {
  return (out_features + 15) / 16 * 16;
}
constexpr std::int64_t packed_row_bytes(std::int64_t in_features) {
  return (in_features + 255) / 256 * 32;
}
constexpr std::int64_t packed_plane_bytes(std::int64_t out_features, std::int64_t in_features) {
  return packed_rows(out_features) * packed_row_bytes(in_features);
}

/// Splits codes into canonical bit planes (docs/format.md).
/// codes: [N, K], each below 2^parent; planes: [parent, N, ceil(K/8)]. Plane 0 holds the most
/// significant bit of the parent code; bit k % 8 (least significant first) of byte k / 8 belongs to
/// column k; padding bits are zero.
void codes_to_planes(const std::uint8_t* codes, std::int64_t out_features, std::int64_t in_features,
                     int parent_precision, std::uint8_t* planes);

/// The inverse at precision b: the first b planes to b-bit codes. planes: [b, N, ceil(K/8)] with
/// `plane_stride` bytes between planes; codes: [N, K].
void planes_to_codes(const std::uint8_t* planes, std::int64_t plane_stride,
                     std::int64_t out_features, std::int64_t in_features, int precision,
                     std::uint8_t* codes);

}  // namespace anyprec
