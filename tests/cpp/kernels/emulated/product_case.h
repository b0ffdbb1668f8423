#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/cpp/kernels/emulated/weights.h"

namespace anyprec::testing::emulated {

/// y = x W^T + bias of a random matrix, in an emulated block's global memory. x and y have
/// `padding` elements between rows.
struct ProductCase {
  QuantizedCase c;
  std::int64_t m;
  ScalarType type;
  Aligned<std::uint8_t> planes;
  Aligned<std::uint16_t> lut, alpha;
  Matrix x, y;
  std::vector<double> bias;
  std::vector<std::uint16_t> typed_bias;  ///< empty: none

  ProductCase(const QuantizedCase& of, std::int64_t rows, ScalarType of_x, bool with_bias,
              std::int64_t padding)
      : c(of),
        m(rows),
        type(of_x),
        planes(packed_planes(c)),
        lut(c.lut),
        alpha(c.alpha),
        x(m, c.k, c.k + padding, type),
        y(m, c.n, c.n + padding, type) {
    x.randomize(7);
    if (!with_bias) return;
    typed_bias.resize(c.n);
    for (std::int64_t i = 0; i < c.n; ++i) {
      const float value = static_cast<float>(i % 7) - 3.5f;
      bias.push_back(value);
      cpu::store_floats(&value, 1, type, typed_bias.data(), i);
    }
  }

  const void* bias_data() const { return typed_bias.empty() ? nullptr : typed_bias.data(); }

  /// Against the reference. of_x: what rounding x or W beforehand may have changed of it.
  void check(double of_x = 0) {
    const std::vector<double> values = x.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), values, m, bias.empty() ? nullptr : bias.data());
    std::vector<double> largest(c.k);
    for (std::int64_t j = 0; j < c.n; ++j) {
      for (std::int64_t q = 0; q < c.k; ++q) {
        const bool begins = q == 0 || (c.form.group_size > 0 && q % c.form.group_size == 0);
        largest[q] = begins ? c.largest_value(j, q) : largest[q - 1];
      }
      for (std::int64_t i = 0; i < m; ++i) {
        double terms = 0;
        for (std::int64_t q = 0; q < c.k; ++q) terms += largest[q] * std::abs(values[i * c.k + q]);
        const double want = expected[i * c.n + j];
        ASSERT_NEAR(y.get(i, j), want,
                    terms * (0x1p-21 + of_x) + 1.01 * std::abs(want) * rounding(type) + 0x1p-23)
            << c.name() << " M=" << m << " at " << i << ", " << j;
      }
    }
    EXPECT_TRUE(y.surroundings_untouched());
  }
};

}  // namespace anyprec::testing::emulated
