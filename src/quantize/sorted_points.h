#pragma once

#include <cstdint>
#include <vector>

namespace anyprec::quantize {

/// Added to every weight's normalized sensitivity, so that a weight of no sensitivity still counts
/// among its like.
inline constexpr double kMassFloor = 1e-6;

/// The distinct values of one (row, group), rising: the points that clustering works on. Equal
/// weights are one point, so they always share a code.
struct SortedPoints {
  std::vector<std::uint32_t> order;  ///< [n] columns, by (value, sensitivity, column)
  std::vector<std::uint32_t> first;  ///< [m + 1] where in `order` each point's columns begin
  std::vector<double> value;         ///< [m] strictly rising
  std::vector<double> mass;          ///< [m] sum of sensitivity / mean + kMassFloor; positive
  std::vector<double> sensitivity;   ///< [m] sum of sensitivities, as given

  std::int64_t size() const { return static_cast<std::int64_t>(value.size()); }
};

/// Sorts (row, group)s into points. Keeps its buffers from call to call. The points depend only on
/// the pairs (weight, sensitivity), not on the order that they come in.
class PointSorter {
 public:
  /// weights, sensitivities: [n], finite; sensitivities may be null for all ones.
  void sort(const float* weights, const float* sensitivities, std::int64_t n, SortedPoints& points);

 private:
  /// By (key, sensitivity, column).
  void sort_keys(const float* sensitivities);

  /// High 32 bits: a key that orders as the weight does; low 32 bits: the column.
  std::vector<std::uint64_t> keys_;
  std::vector<std::uint64_t> swap_;
};

}  // namespace anyprec::quantize
