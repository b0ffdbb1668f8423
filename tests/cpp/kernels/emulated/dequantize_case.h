#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cuda/dequantize_values.cuh"
#include "tests/cpp/kernels/emulated/weights.h"

namespace anyprec::testing::emulated {

template <typename T>
inline constexpr ScalarType kScalarType = std::is_same_v<T, float>    ? ScalarType::kFloat32
                                          : std::is_same_v<T, __half> ? ScalarType::kFloat16
                                                                      : ScalarType::kBFloat16;

/// Rows of W that become numbers.
struct RowRange {
  std::int64_t begin, end;
  std::int64_t offset = 0;  ///< of the output, elements off alignment
};

/// W and the output, NaN until it is written, in an emulated block's global memory.
template <typename T>
class DequantizeCase {
 public:
  DequantizeCase(const QuantizedCase& of, const RowRange& range)
      : c_(of),
        range_(range),
        planes_(packed_planes(c_)),
        lut_(c_.lut),
        alpha_(c_.alpha),
        out_(1, range.offset + values(), range.offset + values(), kScalarType<T>) {
    args.planes = planes_.data();
    args.plane_stride = packed_plane_bytes(c_.n, c_.k);
    args.lut = lut_.data();
    args.alpha = alpha_.data();
    args.out = static_cast<T*>(out_.data()) + range_.offset;
    args.columns = c_.k;
    args.row_begin = range_.begin;
    args.row_end = range_.end;
    args.out_features = c_.n;
    args.units = static_cast<int>(cuda::unit_count(c_.k));
    args.group_size = static_cast<int>(c_.form.group_size);
    args.groups = static_cast<int>(c_.form.groups(c_.k));
    args.vector = reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0 && c_.k % 8 == 0;
    args.form = cuda::TableForm(c_.form, c_.precision);
  }

  unsigned tiles() const {
    return static_cast<unsigned>(cuda::tile_count(range_.end) - range_.begin / cuda::kTileRows);
  }

  /// Against the reference.
  void check() {
    const std::vector<double> expected = reference::dequantize(c_.canonical_weights());
    const bool exact = args.form.signs == 0 && kScalarType<T> != ScalarType::kBFloat16;
    for (std::int64_t i = 0; i < values(); ++i) {
      const double found = out_.get(0, range_.offset + i);
      const double want = expected[range_.begin * c_.k + i];
      if (found == want) continue;  // infinities too
      ASSERT_FALSE(exact) << c_.name() << " at " << i << ": " << found << ", wanted " << want;
      ASSERT_NEAR(found, want, std::abs(want) * 1.01 * rounding(kScalarType<T>) + 4e-7)
          << c_.name() << " at " << i;
    }
    for (std::int64_t i = 0; i < range_.offset; ++i) EXPECT_TRUE(std::isnan(out_.get(0, i)));
    EXPECT_TRUE(out_.surroundings_untouched()) << c_.name();
  }

  cuda::dequantize_device::DequantizeArgs args{};

 private:
  std::int64_t values() const { return (range_.end - range_.begin) * c_.k; }

  const QuantizedCase c_;
  const RowRange range_;
  const Aligned<std::uint8_t> planes_;
  const Aligned<std::uint16_t> lut_, alpha_;
  Matrix out_;
};

}  // namespace anyprec::testing::emulated
