#include "anyprec/planes.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace anyprec {
namespace {

TEST(Planes, PlaneZeroIsTheMostSignificantBitAndColumnZeroTheLowestBitOfAByte) {
  const std::vector<std::uint8_t> codes{4, 0, 1};  // 100, 000, 001
  std::vector<std::uint8_t> planes(3);
  codes_to_planes(codes.data(), 1, 3, 3, planes.data());
  EXPECT_EQ(planes, (std::vector<std::uint8_t>{0b001, 0b000, 0b100}));
}

TEST(Planes, TheFirstPlanesAreTheTopBitsOfTheCodes) {
  std::mt19937 rng(1);
  for (const std::int64_t k : {1, 7, 8, 9, 300}) {
    for (int parent = 2; parent <= 8; ++parent) {
      const std::int64_t n = 5;
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * k));
      for (auto& code : codes) code = static_cast<std::uint8_t>(rng() % (1u << parent));
      std::vector<std::uint8_t> planes(static_cast<std::size_t>(parent * n * plane_row_bytes(k)));
      codes_to_planes(codes.data(), n, k, parent, planes.data());
      for (int b = 1; b <= parent; ++b) {
        std::vector<std::uint8_t> top(codes.size());
        planes_to_codes(planes.data(), n * plane_row_bytes(k), n, k, b, top.data());
        for (std::size_t i = 0; i < codes.size(); ++i) ASSERT_EQ(top[i], codes[i] >> (parent - b));
      }
    }
  }
}

}  // namespace
}  // namespace anyprec
