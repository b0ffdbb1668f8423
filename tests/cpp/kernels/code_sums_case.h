#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "anyprec/sum_by_code.h"
#include "kernels/cpu/float_types.h"

namespace anyprec::testing {

/// Random elements and codes, and the sums that they have by definition.
struct CodeSumsCase {
  CodeSums sums;  ///< its pointers are to host memory
  std::vector<std::uint8_t> values, codes;
  std::vector<double> expected, magnitudes;  ///< [N, G, 2^b]; of the sum's terms

  CodeSumsCase(std::int64_t n, std::int64_t k, int precision, std::int64_t group_size,
               ScalarType type) {
    sums = {nullptr, type, nullptr, n, k, precision, group_size};
    std::mt19937 random(static_cast<unsigned>(n + 7 * k + 31 * precision + group_size));
    std::normal_distribution<float> normal;
    std::vector<float> floats(n * k);
    for (float& value : floats) value = normal(random);
    codes.resize(n * k);
    // All bits are set: those above the precision must not count.
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random());
    values.resize(n * k * cpu::scalar_bytes(type));
    cpu::store_floats(floats.data(), n * k, type, values.data(), 0);
    cpu::load_floats(values.data(), 0, n * k, type, floats.data());
    sums.values = values.data();
    sums.codes = codes.data();

    const std::int64_t width = group_size == 0 ? k : group_size;
    expected.assign(n * sums.groups() << precision, 0.0);
    magnitudes.assign(expected.size(), 0.0);
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t column = 0; column < k; ++column) {
        const std::int64_t code = codes[row * k + column] % (1 << precision);
        const std::int64_t at = ((row * sums.groups() + column / width) << precision) + code;
        expected[at] += floats[row * k + column];
        magnitudes[at] += std::abs(floats[row * k + column]);
      }
    }
  }
  std::string name() const {
    return "N " + std::to_string(sums.rows) + ", K " + std::to_string(sums.columns) +
           ", precision " + std::to_string(sums.precision) + ", group size " +
           std::to_string(sums.group_size) + ", type " +
           std::to_string(static_cast<int>(sums.type));
  }
};

/// Every precision, type and kind of group, over shapes with tails.
template <typename Body>
void for_each_code_sums_case(Body body) {
  for (const ScalarType type :
       {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16}) {
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t group_size : {0, 32, 128}) {
        for (const std::int64_t k : {1, 31, 513, 1536}) {
          body(CodeSumsCase(5, k, precision, group_size, type));
        }
      }
    }
  }
}

}  // namespace anyprec::testing
