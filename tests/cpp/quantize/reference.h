#pragma once

// Slow clustering that shares no code with the quantizer: what it is checked against.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "anyprec/linear.h"

namespace anyprec::testing {

/// Those that this machine has beside the scalar one.
inline std::vector<cpu::Isa> vector_isas() {
  std::vector<cpu::Isa> isas;
  for (const cpu::Isa isa : {cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Vbmi}) {
    if (cpu::isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

struct WeightedRow {
  std::vector<double> value;  ///< strictly rising
  std::vector<double> mass;
};

/// Sum of mass * (value - mean)^2 over [begin, end), in two passes.
inline long double segment_error(const WeightedRow& row, std::int64_t begin, std::int64_t end) {
  long double mass = 0;
  long double moment = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    mass += row.mass[i];
    moment += static_cast<long double>(row.mass[i]) * row.value[i];
  }
  if (mass == 0) return 0;
  const long double mean = moment / mass;
  long double error = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    error += row.mass[i] * (row.value[i] - mean) * (row.value[i] - mean);
  }
  return error;
}

template <typename Borders>
long double partition_error(const WeightedRow& row, const Borders& borders) {
  long double error = 0;
  for (std::size_t j = 0; j + 1 < borders.size(); ++j) {
    error += segment_error(row, borders[j], borders[j + 1]);
  }
  return error;
}

/// The least error over every partition into at most k runs, by trying them all.
inline long double brute_force_error(const WeightedRow& row, int k, std::int64_t begin = 0) {
  const auto n = static_cast<std::int64_t>(row.value.size());
  if (begin == n) return 0;
  if (k == 1) return segment_error(row, begin, n);
  long double best = std::numeric_limits<long double>::infinity();
  for (std::int64_t end = begin + 1; end <= n; ++end) {
    best = std::min(best, segment_error(row, begin, end) + brute_force_error(row, k - 1, end));
  }
  return best;
}

/// The least error of each number of clusters 1 .. k, by the textbook dynamic program: O(k n^2).
inline std::vector<long double> dynamic_program_errors(const WeightedRow& row, int k) {
  const std::size_t n = row.value.size();
  std::vector<long double> mass(n + 1), moment(n + 1), square(n + 1);
  for (std::size_t i = 0; i < n; ++i) {
    const long double w = row.mass[i];
    const long double x = row.value[i];
    mass[i + 1] = mass[i] + w;
    moment[i + 1] = moment[i] + w * x;
    square[i + 1] = square[i] + w * x * x;
  }
  const auto cost = [&](std::size_t begin, std::size_t end) {
    const long double w = mass[end] - mass[begin];
    const long double t = moment[end] - moment[begin];
    return square[end] - square[begin] - t * t / w;
  };
  std::vector<long double> layer(n + 1);
  for (std::size_t i = 1; i <= n; ++i) layer[i] = cost(0, i);
  std::vector<long double> errors{layer[n]};
  for (int j = 2; j <= k; ++j) {
    std::vector<long double> next = layer;
    for (std::size_t i = 1; i <= n; ++i) {
      for (std::size_t p = 1; p < i; ++p) next[i] = std::min(next[i], layer[p] + cost(p, i));
    }
    layer = next;
    errors.push_back(layer[n]);
  }
  return errors;
}

/// Rows like those of trained layers: Student's t, or a normal bulk with a few far outliers; masses
/// like squared gradients, over several decades.
enum class RowKind { kStudent, kOutliers, kUniformMass };

inline WeightedRow heavy_tailed_row(RowKind kind, std::size_t n, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  std::student_t_distribution<double> student(4.0);
  std::vector<std::pair<double, double>> points(n);
  for (auto& [value, mass] : points) {
    value = kind == RowKind::kStudent ? 0.02 * student(generator) : 0.02 * normal(generator);
    if (kind == RowKind::kOutliers && generator() % 100 == 0) value *= 30.0;
    const double gradient = normal(generator) * std::exp(normal(generator));
    mass = kind == RowKind::kUniformMass ? 1.0 : gradient * gradient + 1e-6;
  }
  std::sort(points.begin(), points.end());
  WeightedRow row;
  for (const auto& [value, mass] : points) {
    if (!row.value.empty() && row.value.back() == value) continue;
    row.value.push_back(value);
    row.mass.push_back(mass);
  }
  return row;
}

}  // namespace anyprec::testing
