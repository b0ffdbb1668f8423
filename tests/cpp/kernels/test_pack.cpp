#include <gtest/gtest.h>

#include <random>

#include "anyprec/linear.h"
#include "anyprec/planes.h"

namespace anyprec {
namespace {

bool canonical_bit(const std::uint8_t* row, std::int64_t k) { return (row[k / 8] >> (k % 8)) & 1; }

/// linear.h: bit j ^ (p % 4) of byte i of a unit of plane p belongs to column 32 j + i of its 256.
bool packed_bit(const std::uint8_t* row, std::int64_t plane, std::int64_t k) {
  return (row[k / 256 * 32 + k % 32] >> (k % 256 / 32 ^ plane % 4)) & 1;
}

class PackPlanes : public ::testing::TestWithParam<std::int64_t> {
 protected:
  const std::int64_t k = GetParam();
  static constexpr std::int64_t kRows = 5;
  const std::int64_t rows = 8 * kRows;  // of 8 planes
  std::vector<std::uint8_t> canonical = std::vector<std::uint8_t>(rows * plane_row_bytes(k));
  std::vector<std::uint8_t> packed =
      std::vector<std::uint8_t>(8 * packed_plane_bytes(kRows, k), 255);

  const std::uint8_t* packed_row(std::int64_t plane, std::int64_t row) const {
    return packed.data() + plane * packed_plane_bytes(kRows, k) + row * packed_row_bytes(k);
  }

  void SetUp() override {
    std::mt19937 random(7);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < k; ++c)
        if (random() & 1) canonical[r * plane_row_bytes(k) + c / 8] |= 1 << (c % 8);
    cpu::pack_planes(canonical.data(), 8, kRows, k, packed.data());
  }
};

TEST_P(PackPlanes, PutsEveryColumnWhereTheLayoutSays) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint8_t* from = canonical.data() + r * plane_row_bytes(k);
    const std::uint8_t* to = packed_row(r / kRows, r % kRows);
    for (std::int64_t c = 0; c < k; ++c)
      ASSERT_EQ(canonical_bit(from, c), packed_bit(to, r / kRows, c))
          << "row " << r << " column " << c;
    for (std::int64_t c = k; c < packed_row_bytes(k) * 8; ++c)
      ASSERT_FALSE(packed_bit(to, r / kRows, c)) << "row " << r << " padding " << c;
  }
}

TEST_P(PackPlanes, PadsWithRowsOfZeros) {
  for (std::int64_t plane = 0; plane < 8; ++plane)
    for (std::int64_t row = kRows; row < packed_rows(kRows); ++row)
      for (std::int64_t i = 0; i < packed_row_bytes(k); ++i)
        ASSERT_EQ(packed_row(plane, row)[i], 0) << "plane " << plane << " row " << row;
}

TEST_P(PackPlanes, UnpacksToTheSameBytes) {
  std::vector<std::uint8_t> back(canonical.size(), 255);
  cpu::unpack_planes(packed.data(), 8, kRows, k, back.data());
  EXPECT_EQ(back, canonical);
}

INSTANTIATE_TEST_SUITE_P(Columns, PackPlanes,
                         ::testing::Values(1, 7, 8, 31, 32, 33, 255, 256, 257, 576, 1000, 1536));

}  // namespace
}  // namespace anyprec
