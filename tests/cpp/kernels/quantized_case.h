#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "anyprec/linear.h"
#include "anyprec/planes.h"
#include "kernels/cpu/float_types.h"
#include "kernels/cpu/kernel_set.h"
#include "kernels/reference/linear.h"

namespace anyprec::testing {

inline std::vector<cpu::Isa> supported_isas() {
  std::vector<cpu::Isa> isas;
  for (const cpu::Isa isa :
       {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Vbmi})
    if (cpu::isa_supported(isa)) isas.push_back(isa);
  return isas;
}

/// A random quantized matrix of 8 planes, as a checkpoint stores it and as the CPU wants it.
struct QuantizedCase {
  std::int64_t n, k;
  CodebookForm form;
  int precision;
  std::vector<std::uint8_t> canonical, packed;
  std::vector<std::uint16_t> lut, alpha;

  QuantizedCase(std::int64_t n_, std::int64_t k_, const CodebookForm& form_, int precision_,
                unsigned seed = 1)
      : n(n_), k(k_), form(form_), precision(precision_) {
    std::mt19937 random(seed + 31 * n + 7 * k + precision);
    std::vector<std::uint8_t> codes(n * k);
    for (auto& code : codes) code = static_cast<std::uint8_t>(random());
    canonical.resize(kMaxPrecision * n * plane_row_bytes(k));
    if (k > 0) codes_to_planes(codes.data(), n, k, kMaxPrecision, canonical.data());
    packed.resize(kMaxPrecision * packed_plane_bytes(n, k));
    cpu::pack_planes(canonical.data(), kMaxPrecision, n, k, packed.data());
    std::normal_distribution<float> normal(0.0f, 0.05f);
    const std::int64_t codebooks = n * form.groups(k);
    lut.resize(codebooks * form.lut_entries(precision));
    for (auto& value : lut) value = cpu::float_to_half(normal(random));
    alpha.resize(codebooks * form.sign_planes(precision) * form.classes());
    for (auto& value : alpha) value = cpu::float_to_half(normal(random));
  }

  Weights weights() const {
    return {
        n, k, form, precision, packed.data(), lut.data(), alpha.empty() ? nullptr : alpha.data()};
  }
  reference::Weights canonical_weights() const {
    return {n, k, form, precision, canonical.data(), lut.data(), alpha.data()};
  }
  /// An upper bound of the magnitudes in the codebook of row n, column k.
  double largest_value(std::int64_t row, std::int64_t column) const {
    const std::int64_t group = form.group_size > 0 ? column / form.group_size : 0;
    const std::int64_t codebook = row * form.groups(k) + group;
    double result = 0;
    for (int i = 0; i < form.lut_entries(precision); ++i)
      result = std::max(
          result, std::abs(reference::half_value(lut[codebook * form.lut_entries(precision) + i])));
    for (int i = 0; i < form.sign_planes(precision); ++i) {
      double largest = 0;
      for (int j = 0; j < form.classes(); ++j)
        largest = std::max(
            largest,
            std::abs(reference::half_value(
                alpha[(codebook * form.sign_planes(precision) + i) * form.classes() + j])));
      result += largest;
    }
    return result;
  }
  std::string name() const {
    return "N=" + std::to_string(n) + " K=" + std::to_string(k) +
           " b=" + std::to_string(precision) + " L=" + std::to_string(form.lut_bits) + " " +
           std::string(to_string(form.cell_groups)) + " group=" + std::to_string(form.group_size);
  }
};

/// Every codebook form that the kernels tell apart.
inline std::vector<CodebookForm> forms() {
  std::vector<CodebookForm> result;
  for (const std::int64_t group : {0, 32, 64, 128}) result.push_back({8, CellGroups::kOne, group});
  for (const CellGroups cells :
       {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym, CellGroups::kCell})
    result.push_back({3, cells, 0});
  result.push_back({4, CellGroups::kQu, 0});
  result.push_back({4, CellGroups::kQu, 96});
  result.push_back({0, CellGroups::kOne, 0});
  result.push_back({0, CellGroups::kOne, 128});
  return result;
}

/// A matrix of activations of some type, with room between its rows and around it.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns, std::int64_t stride, ScalarType type)
      : rows_(rows),
        columns_(columns),
        stride_(stride),
        type_(type),
        bytes_((kMargin + rows * stride + kMargin) * cpu::scalar_bytes(type), kPoison) {}

  void* data() { return bytes_.data() + kMargin * cpu::scalar_bytes(type_); }
  std::int64_t stride() const { return stride_; }
  float get(std::int64_t i, std::int64_t k) {
    float value;
    cpu::load_floats(data(), i * stride_ + k, 1, type_, &value);
    return value;
  }
  void set(std::int64_t i, std::int64_t k, float value) {
    cpu::store_floats(&value, 1, type_, data(), i * stride_ + k);
  }
  /// Normal values with an outlier of a hundred times their size in every row.
  void randomize(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < rows_; ++i) {
      for (std::int64_t k = 0; k < columns_; ++k) set(i, k, normal(random));
      if (columns_ > 0) set(i, random() % columns_, 100.0f);
    }
  }
  /// As doubles, without the room between the rows.
  std::vector<double> values() {
    std::vector<double> result;
    for (std::int64_t i = 0; i < rows_; ++i)
      for (std::int64_t k = 0; k < columns_; ++k) result.push_back(get(i, k));
    return result;
  }
  /// Whether the bytes outside the matrix are as they were made.
  bool surroundings_untouched() {
    const std::int64_t size = cpu::scalar_bytes(type_);
    for (std::int64_t e = 0; e < static_cast<std::int64_t>(bytes_.size()) / size; ++e) {
      const std::int64_t inside = e - kMargin;
      if (inside >= 0 && inside < rows_ * stride_ && inside % stride_ < columns_) continue;
      for (std::int64_t b = 0; b < size; ++b)
        if (bytes_[e * size + b] != kPoison) return false;
    }
    return true;
  }
  const std::vector<std::uint8_t>& bytes() const { return bytes_; }

 private:
  static constexpr std::int64_t kMargin = 64;
  static constexpr std::uint8_t kPoison = 0xff;  // a NaN in every type

  std::int64_t rows_, columns_, stride_;
  ScalarType type_;
  std::vector<std::uint8_t> bytes_;
};

/// Relative error of rounding to `type`, and the size below which it becomes absolute.
inline double rounding(ScalarType type) {
  return type == ScalarType::kFloat32 ? 0x1p-24 : type == ScalarType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

/// The largest error that linear.h allows for result y of row n: w and x are the K factors.
inline double error_bound(const QuantizedCase& c, std::int64_t n, const double* w, const double* x,
                          double y, std::int64_t m, ScalarType type) {
  double products = 0, fixed_point = 0, largest_w = 0;
  for (std::int64_t unit = 0; unit < c.k; unit += cpu::kUnitColumns) {
    double largest_x[cpu::kUnitBlocks] = {}, sum_w[cpu::kUnitBlocks] = {};
    for (std::int64_t k = unit; k < std::min<std::int64_t>(unit + cpu::kUnitColumns, c.k); ++k) {
      const int block = cpu::fixed_block(static_cast<int>(k - unit));
      products += std::abs(w[k] * x[k]);
      largest_x[block] = std::max(largest_x[block], std::abs(x[k]));
      sum_w[block] += std::abs(w[k]);
      if (k == 0 || (c.form.group_size > 0 && k % c.form.group_size == 0))
        largest_w = c.largest_value(n, k);
      fixed_point += largest_w * std::abs(x[k]) / 65200.0;
    }
    for (int b = 0; b < cpu::kUnitBlocks; ++b) fixed_point += largest_x[b] * sum_w[b] / 32766.0;
  }
  const double terms = static_cast<double>(c.k) / 8 + 64;
  return products * terms * 0x1p-24 + (m <= 4 ? 1.001 * fixed_point : 0.0) +
         1.01 * std::abs(y) * rounding(type) + 0x1p-24;
}

}  // namespace anyprec::testing
