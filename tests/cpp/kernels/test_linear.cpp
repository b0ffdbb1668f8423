#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "anyprec/error.h"
#include "tests/cpp/kernels/quantized_case.h"

namespace anyprec::testing {
namespace {

constexpr ScalarType kTypes[] = {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16};
constexpr std::int64_t kSizesM[] = {1, 2, 3, 5, 8, 9, 33, 64};
constexpr std::int64_t kSizesN[] = {1, 3, 13, 31};
constexpr std::int64_t kSizesK[] = {1, 7, 31, 32, 33, 255, 256, 257, 513, 576, 1000, 1536};

class Linear : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  const cpu::Isa isa = GetParam();
  const SerialExecutor serial;

  /// Runs one case on strided, poisoned memory and compares every result with the reference.
  void compare(const QuantizedCase& c, Matrix& x, std::int64_t m, ScalarType type, bool with_bias) {
    Matrix y(m, c.n, c.n + 3, type);
    Matrix bias(1, c.n, c.n, type);
    bias.randomize(5);
    cpu::linear(c.weights(), x.data(), x.stride(), m, with_bias ? bias.data() : nullptr, y.data(),
                y.stride(), type, serial, isa);

    const std::vector<double> w = reference::dequantize(c.canonical_weights());
    const std::vector<double> xs = x.values();
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), xs, m, with_bias ? bias.values().data() : nullptr);
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t n = 0; n < c.n; ++n) {
        const double wanted = expected[i * c.n + n];
        const double bound =
            error_bound(c, n, w.data() + n * c.k, xs.data() + i * c.k, wanted, m, type);
        ASSERT_NEAR(y.get(i, n), wanted, bound)
            << c.name() << " M=" << m << " type " << static_cast<int>(type) << " at [" << i << ", "
            << n << "]";
      }
    }
    ASSERT_TRUE(y.surroundings_untouched()) << c.name() << " M=" << m;
  }
};

TEST_P(Linear, EveryFormAndPrecisionOverSweptColumns) {
  unsigned turn = 0;  // walks through the other sizes, so that all meet each other
  for (const CodebookForm& form : forms()) {
    for (int precision = 2; precision <= 8; ++precision) {
      for (const std::int64_t k : kSizesK) {
        const std::int64_t m = kSizesM[turn % std::size(kSizesM)];
        const QuantizedCase c(kSizesN[turn / 3 % std::size(kSizesN)], k, form, precision, turn);
        const ScalarType type = kTypes[turn / 2 % std::size(kTypes)];
        Matrix x(m, k, k + turn % 5, type);
        x.randomize(turn);
        compare(c, x, m, type, turn % 2 == 0);
        if (HasFatalFailure()) return;
        turn += 1;
      }
      turn += 5;
    }
  }
}

TEST_P(Linear, EveryNumberOfRowsAndType) {
  for (const std::int64_t m : kSizesM) {
    for (const ScalarType type : kTypes) {
      for (const int precision : {2, 3, 4, 5, 6, 7, 8}) {
        for (const std::int64_t k : {33, 576}) {
          const QuantizedCase c(13, k, {}, precision);
          Matrix x(m, k, k + 5, type);
          x.randomize(static_cast<unsigned>(m));
          compare(c, x, m, type, m % 2 == 0);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Linear, MoreRowsThanAPassOfTheGemm) {
  const QuantizedCase c(14, 300, {}, 3);
  Matrix x(261, 300, 300, ScalarType::kFloat32);
  x.randomize(3);
  compare(c, x, 261, ScalarType::kFloat32, true);
}

TEST_P(Linear, ZerosGiveTheBias) {
  for (const std::int64_t m : {1, 12}) {
    const QuantizedCase c(5, 300, {}, 4);
    Matrix x(m, 300, 300, ScalarType::kFloat32), y(m, 5, 5, ScalarType::kFloat32);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t k = 0; k < 300; ++k) x.set(i, k, 0.0f);
    Matrix bias(1, 5, 5, ScalarType::kFloat32);
    bias.randomize(1);
    cpu::linear(c.weights(), x.data(), 300, m, bias.data(), y.data(), 5, ScalarType::kFloat32,
                serial, isa);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t n = 0; n < 5; ++n) EXPECT_EQ(y.get(i, n), bias.get(0, n));
  }
}

TEST_P(Linear, HugeAndTinyActivationsKeepTheirRelativeAccuracy) {
  for (const float size : {1e-20f, 1e20f, 1e34f}) {
    for (const std::int64_t m : {1, 12}) {
      const QuantizedCase c(5, 300, {}, 6);
      Matrix x(m, 300, 300, ScalarType::kFloat32), y(m, 5, 5, ScalarType::kFloat32);
      x.randomize(2);
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t k = 0; k < 300; ++k) x.set(i, k, size * x.get(i, k));
      cpu::linear(c.weights(), x.data(), 300, m, nullptr, y.data(), 5, ScalarType::kFloat32, serial,
                  isa);
      const std::vector<double> expected =
          reference::linear(c.canonical_weights(), x.values(), m, nullptr);
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t n = 0; n < 5; ++n)
          EXPECT_NEAR(y.get(i, n) / size, expected[i * 5 + n] / size, 5e-3) << size << " M=" << m;
    }
  }
}

TEST_P(Linear, NanOrInfinityMakesItsWholeRowNotFiniteAndNoOther) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const ScalarType type : kTypes) {
      for (const std::int64_t m : {3, 12}) {
        const QuantizedCase c(7, 300, {}, 4);
        Matrix x(m, 300, 300, type), y(m, 7, 7, type);
        x.randomize(4);
        x.set(1, 299, bad);
        cpu::linear(c.weights(), x.data(), 300, m, nullptr, y.data(), 7, type, serial, isa);
        for (std::int64_t i = 0; i < m; ++i)
          for (std::int64_t n = 0; n < 7; ++n)
            EXPECT_EQ(std::isfinite(y.get(i, n)), i != 1) << "row " << i << " M=" << m;
      }
    }
  }
}

TEST_P(Linear, TablesThatAreNotFiniteTouchOnlyTheirRow) {
  for (const std::int64_t m : {1, 12}) {
    QuantizedCase c(3, 300, {}, 3);
    c.lut[8 + 2] = 0x7c00;  // row 1: infinity; with positive x the sum is infinite
    Matrix x(m, 300, 300, ScalarType::kFloat32), y(m, 3, 3, ScalarType::kFloat32);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t k = 0; k < 300; ++k) x.set(i, k, 1.0f + static_cast<float>(k % 3));
    cpu::linear(c.weights(), x.data(), 300, m, nullptr, y.data(), 3, ScalarType::kFloat32, serial,
                isa);
    const std::vector<double> expected =
        reference::linear(c.canonical_weights(), x.values(), m, nullptr);
    for (std::int64_t i = 0; i < m; ++i) {
      EXPECT_EQ(y.get(i, 1), std::numeric_limits<float>::infinity()) << "M=" << m;
      EXPECT_NEAR(y.get(i, 0), expected[i * 3], 1e-3) << "M=" << m;
      EXPECT_NEAR(y.get(i, 2), expected[i * 3 + 2], 1e-3) << "M=" << m;
    }
  }
}

TEST_P(Linear, InfinityOfCodeZeroDoesNotLeakInFromThePadding) {
  for (const std::int64_t m : {1, 12}) {
    QuantizedCase c(1, 40, {}, 2);
    // Codes without a zero among them: plane 0 all ones.
    std::fill(c.canonical.begin(), c.canonical.begin() + plane_row_bytes(40), std::uint8_t{0xff});
    cpu::pack_planes(c.canonical.data(), kMaxPrecision, 1, 40, c.packed.data());
    c.lut[0] = 0x7c00;
    Matrix x(m, 40, 40, ScalarType::kFloat32), y(m, 1, 1, ScalarType::kFloat32);
    x.randomize(9);
    cpu::linear(c.weights(), x.data(), 40, m, nullptr, y.data(), 1, ScalarType::kFloat32, serial,
                isa);
    for (std::int64_t i = 0; i < m; ++i) EXPECT_TRUE(std::isfinite(y.get(i, 0))) << "M=" << m;
  }
}

TEST_P(Linear, SameBytesOnAnyNumberOfThreads) {
  for (const std::int64_t m : {1, 4, 40}) {
    for (const CodebookForm& form : {CodebookForm{}, CodebookForm{4, CellGroups::kQu, 96}}) {
      const QuantizedCase c(601, 700, form, 5);
      Matrix x(m, 700, 700, ScalarType::kFloat32);
      x.randomize(11);
      Matrix alone(m, c.n, c.n, ScalarType::kFloat32);
      cpu::linear(c.weights(), x.data(), 700, m, nullptr, alone.data(), c.n, ScalarType::kFloat32,
                  serial, isa);
      for (const int threads : {2, 3, 7}) {
        const ThreadPool pool(threads);
        Matrix shared(m, c.n, c.n, ScalarType::kFloat32);
        cpu::linear(c.weights(), x.data(), 700, m, nullptr, shared.data(), c.n,
                    ScalarType::kFloat32, pool, isa);
        EXPECT_EQ(shared.bytes(), alone.bytes()) << threads << " threads, M=" << m;
      }
    }
  }
}

TEST_P(Linear, SeveralMatricesTogetherGiveTheBytesOfEachAlone) {
  const QuantizedCase cases[] = {{150, 320, {}, 4},
                                 {1, 320, {3, CellGroups::kIo, 0}, 6},
                                 {77, 320, {0, CellGroups::kOne, 64}, 3}};
  for (const std::int64_t m : {1, 3, 9}) {
    Matrix x(m, 320, 320, ScalarType::kFloat32), bias(1, 150, 150, ScalarType::kFloat32);
    x.randomize(5);
    bias.randomize(6);
    const std::int64_t all = 150 + 1 + 77;
    Matrix together(m, all, all, ScalarType::kFloat32), alone(m, all, all, ScalarType::kFloat32);
    std::vector<cpu::Product> products;
    std::int64_t column = 0;
    for (const QuantizedCase& c : cases) {
      const void* const own_bias = products.empty() ? bias.data() : nullptr;
      const auto at = [&](Matrix& y) { return static_cast<float*>(y.data()) + column; };
      products.push_back({c.weights(), own_bias, at(together), all});
      cpu::linear(c.weights(), x.data(), 320, m, own_bias, at(alone), all, ScalarType::kFloat32,
                  serial, isa);
      column += c.n;
    }
    cpu::linear(products, x.data(), 320, m, ScalarType::kFloat32, ThreadPool(3), isa);
    EXPECT_EQ(together.bytes(), alone.bytes()) << "M=" << m;
  }
  const QuantizedCase other(5, 64, {}, 4);
  Matrix x(1, 320, 320, ScalarType::kFloat32), y(1, 150, 150, ScalarType::kFloat32);
  const cpu::Product unequal[] = {{cases[0].weights(), nullptr, y.data(), 150},
                                  {other.weights(), nullptr, y.data(), 150}};
  EXPECT_THROW(cpu::linear(unequal, x.data(), 320, 1, ScalarType::kFloat32, serial, isa),
               InvalidArgument);
}

TEST_P(Linear, CallsFromSeveralThreadsDoNotDisturbEachOther) {
  const QuantizedCase narrow(200, 600, {}, 3), wide(200, 600, {}, 8);
  const ThreadPool pool(2);
  std::atomic<int> wrong = 0;
  const auto work = [&](const QuantizedCase& c, std::int64_t m) {
    Matrix x(m, c.k, c.k, ScalarType::kFloat32), expected(m, c.n, c.n, ScalarType::kFloat32);
    x.randomize(static_cast<unsigned>(m));
    cpu::linear(c.weights(), x.data(), c.k, m, nullptr, expected.data(), c.n, ScalarType::kFloat32,
                SerialExecutor(), isa);
    for (int repeat = 0; repeat < 5; ++repeat) {
      Matrix y(m, c.n, c.n, ScalarType::kFloat32);
      cpu::linear(c.weights(), x.data(), c.k, m, nullptr, y.data(), c.n, ScalarType::kFloat32, pool,
                  isa);
      wrong += y.bytes() != expected.bytes();
    }
  };
  std::thread threads[] = {std::thread(work, std::cref(narrow), 1),
                           std::thread(work, std::cref(wide), 2),
                           std::thread(work, std::cref(narrow), 20)};
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Linear, NoColumnsGiveTheBiasAndNoRowsGiveNothing) {
  const QuantizedCase c(3, 0, {}, 4);
  for (const std::int64_t m : {1, 12}) {
    Matrix y(m, 3, 3, ScalarType::kFloat32), bias(1, 3, 3, ScalarType::kFloat32);
    bias.randomize(1);
    cpu::linear(c.weights(), nullptr, 0, m, bias.data(), y.data(), 3, ScalarType::kFloat32, serial,
                isa);
    for (std::int64_t n = 0; n < 3; ++n) EXPECT_EQ(y.get(m - 1, n), bias.get(0, n));
  }
  cpu::linear(c.weights(), nullptr, 0, 0, nullptr, nullptr, 3, ScalarType::kFloat32, serial, isa);
}

TEST_P(Linear, RejectsWhatItsContractExcludes) {
  const QuantizedCase c(3, 40, {3, CellGroups::kOne, 0}, 5);
  Matrix x(2, 40, 40, ScalarType::kFloat32), y(2, 3, 3, ScalarType::kFloat32);
  const auto run = [&](const Weights& weights, std::int64_t m, std::int64_t y_stride) {
    cpu::linear(weights, x.data(), 40, m, nullptr, y.data(), y_stride, ScalarType::kFloat32, serial,
                isa);
  };
  Weights bad = c.weights();
  bad.precision = 9;
  EXPECT_THROW(run(bad, 1, 3), InvalidArgument);
  bad = c.weights();
  bad.alpha = nullptr;
  EXPECT_THROW(run(bad, 1, 3), InvalidArgument);
  bad = c.weights();
  bad.form.group_size = 33;
  EXPECT_THROW(run(bad, 1, 3), InvalidArgument);
  EXPECT_THROW(run(c.weights(), -1, 3), InvalidArgument);
  EXPECT_THROW(run(c.weights(), 2, 2), InvalidArgument);
  EXPECT_NO_THROW(run(c.weights(), 2, 3));
}

INSTANTIATE_TEST_SUITE_P(Isa, Linear, ::testing::ValuesIn(supported_isas()),
                         [](const auto& info) { return cpu::to_string(info.param); });

TEST(FloatTypes, HalfAndBfloatSurviveTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const std::uint16_t pattern = static_cast<std::uint16_t>(bits);
    const float half = cpu::half_to_float(pattern);
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(cpu::half_to_float(cpu::float_to_half(half))));
    } else {
      ASSERT_EQ(half, reference::half_value(pattern));
      ASSERT_EQ(cpu::float_to_half(half), pattern);
    }
    const float bfloat = cpu::bfloat_to_float(pattern);
    if (!std::isnan(bfloat)) {
      ASSERT_EQ(cpu::float_to_bfloat(bfloat), pattern);
    }
  }
}

TEST(FloatTypes, RoundsToTheNearestWithTiesToEven) {
  EXPECT_EQ(cpu::float_to_half(1.0f + 0x1p-11f), 0x3c00);     // tie: down to even
  EXPECT_EQ(cpu::float_to_half(1.0f + 0x1.8p-10f), 0x3c02);   // tie: up to even
  EXPECT_EQ(cpu::float_to_half(1.0f + 0x1.02p-11f), 0x3c01);  // just above a tie
  EXPECT_EQ(cpu::float_to_half(65519.0f), 0x7bff);            // the largest half
  EXPECT_EQ(cpu::float_to_half(65520.0f), 0x7c00);            // rounds to infinity
  EXPECT_EQ(cpu::float_to_half(0x1p-25f), 0x0000);            // half the smallest: to even
  EXPECT_EQ(cpu::float_to_half(0x1.8p-24f), 0x0002);          // a tie of subnormals
  EXPECT_EQ(cpu::float_to_bfloat(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(cpu::float_to_bfloat(1.0f + 0x1.8p-7f), 0x3f82);
  EXPECT_EQ(cpu::float_to_bfloat(std::numeric_limits<float>::max()), 0x7f80);
}

}  // namespace
}  // namespace anyprec::testing
