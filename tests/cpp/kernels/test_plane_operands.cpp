// Bits of planes as operands of fp16 tensor cores (kernels/cuda/plane_operands.h), by emulating the
// lanes of a warp.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/plane_operands.h"
#include "kernels/reference/linear.h"

namespace anyprec::testing {
namespace {

double low_half(std::uint32_t pair) {
  return reference::half_value(static_cast<std::uint16_t>(pair & 0xffffu));
}
double high_half(std::uint32_t pair) {
  return reference::half_value(static_cast<std::uint16_t>(pair >> 16));
}

TEST(PlaneOperands, StepsOfTheMmaGiveTheSumsOfAHalfUnit) {
  std::mt19937 random(1);
  std::vector<std::uint32_t> record(cuda::kRecordBytes / 4);  // [lane][word]
  for (auto& word : record) word = static_cast<std::uint32_t>(random());
  std::vector<double> x(cuda::kUnitColumns);
  std::normal_distribution<double> normal;
  for (auto& value : x) value = normal(random);

  for (int half = 0; half < 2; ++half) {
    double found[cuda::kTileRows] = {};
    for (int s = 0; s < cuda::kSteps; ++s) {
      double a[cuda::kTileRows][16], b[16];  // mma.m16n8k16, one column of x
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const std::uint32_t top = cuda::shifted_word(record[lane * 4 + half * 2], s / 2);
        const std::uint32_t low = cuda::shifted_word(record[lane * 4 + half * 2 + 1], s / 2);
        for (int i = 0; i < 2; ++i) {  // the registers of columns 2 t + 8 i and the next
          const int c = 2 * s + i, k = 2 * t + 8 * i;
          a[g][k] = low_half(cuda::plane_operand(top, c));
          a[g][k + 1] = high_half(cuda::plane_operand(top, c));
          a[g + 8][k] = low_half(cuda::plane_operand(low, c));
          a[g + 8][k + 1] = high_half(cuda::plane_operand(low, c));
          const int column = half * cuda::kHalfColumns + 32 * t + c;
          b[k] = x[column] * low_half(cuda::activation_factor(c));
          b[k + 1] = x[column + 16] * high_half(cuda::activation_factor(c));
        }
      }
      for (int row = 0; row < cuda::kTileRows; ++row)
        for (int k = 0; k < 16; ++k) found[row] += a[row][k] * b[k];
    }
    for (int row = 0; row < cuda::kTileRows; ++row) {
      double expected = 0;
      for (int i = 0; i < cuda::kHalfColumns; ++i) {
        const int column = half * cuda::kHalfColumns + i;
        if (record[cuda::word_of(row, column)] >> (column % 32) & 1) expected += x[column];
      }
      EXPECT_NEAR(found[row] * cuda::kOperandUnit, expected, 1e-12) << row << ", half " << half;
    }
  }
}

TEST(PlaneOperands, ABitIsANormalNumber) {
  for (int c = 0; c < 16; ++c) {
    const double value = low_half(cuda::operand_mask(c));
    EXPECT_GE(value, 0x1p-14);
    EXPECT_EQ(value, high_half(cuda::operand_mask(c)));
    EXPECT_EQ(value * low_half(cuda::activation_factor(c)) * cuda::kOperandUnit, 1.0);
  }
}

TEST(PlaneOperands, SegmentsFindTheirGroups) {
  for (const int size : {1, 2, 3, 4, 5, 7, 8, 100, 127, 128, 1000, 32767, 32768}) {
    const auto group_of = cuda::GroupOfSegment::of_size(size);
    for (int segment = 0; segment <= 32768; ++segment)
      ASSERT_EQ(group_of(segment), segment / size) << size;
  }
}

}  // namespace
}  // namespace anyprec::testing
