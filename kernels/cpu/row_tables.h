#pragma once

#include <cstdint>

#include "kernels/cpu/kernel_set.h"

namespace anyprec::cpu {

/// Whether fp16 tables hold the values exactly (b <= L): hybrids are sums, which need fp32.
inline bool has_half_tables(const Weights& w) { return w.precision <= w.form.lut_bits; }

inline std::int64_t group_count(const Weights& w) { return w.form.groups(w.in_features); }

inline std::int64_t blocks_per_group(const Weights& w) {
  return w.form.group_size > 0 ? w.form.group_size / kBlockColumns : INT64_MAX;
}

inline PlaneRow plane_row(const Weights& w, std::int64_t row) {
  const std::int64_t row_bytes = packed_row_bytes(w.in_features);
  return {w.planes + row * row_bytes, packed_plane_bytes(w.out_features, w.in_features),
          row_bytes / kUnitBytes, (w.in_features + kBlockColumns - 1) / kBlockColumns};
}

/// Fixed-point tables of every group of `count` rows. tables: [count, G, table_bytes(b)], scales:
/// [count, G], a NaN where a value is not finite, which fixed point cannot hold.
void make_fixed_tables(const KernelSet& kernels, const Weights& weights, std::int64_t row,
                       std::int64_t count, std::uint8_t* tables, float* scales);

/// Exact tables of every group of a row, [G, table_bytes(b)] each: fp16 bits in `high` where
/// has_half_tables, else the upper and lower halves of fp32 bits in `high` and `low`.
void make_exact_tables(const KernelSet& kernels, const Weights& weights, std::int64_t row,
                       std::uint8_t* high, std::uint8_t* low);

}  // namespace anyprec::cpu
