#pragma once

#include "kernels/cpu/dense.h"
#include "kernels/cpu/float_vec.h"

/// The loop of dense.h, written once and compiled for each instruction set.
namespace anyprec::cpu {
namespace {

// How far ahead of themselves channels are fetched.
constexpr int kPrefetchChannels = 8;

// kRows rows of x from `row` on, kChannels channels from `n` on. Each pair has a sum of its own,
// made in the same order whatever kRows and kChannels are.
template <ScalarType kType, int kRows, int kChannels>
void dense_tile(const DenseProduct& product, std::int64_t row, std::int64_t n) {
  using Type = typename Elements<kType>::Type;
  const std::int64_t k = product.in_features;
  const Type* const weight = static_cast<const Type*>(product.weight) + n * k;
  const float* const x = product.x + row * k;
  Vec sums[kRows][kChannels] = {};
  for (std::int64_t i = 0; i < k; i += kLanes) {
    Vec activations[kRows];
    for (int r = 0; r < kRows; ++r) {
      activations[r] = load<ScalarType::kFloat32>(x + r * k, i, k - i);
    }
    for (int c = 0; c < kChannels; ++c) {
      const Vec w = load<kType>(weight + c * k, i, k - i);
      __builtin_prefetch(weight + (c + kPrefetchChannels) * k + i);
      for (int r = 0; r < kRows; ++r) sums[r][c] += activations[r] * w;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* const y = product.y + (row + r) * product.out_features + n;
    for (int c = 0; c < kChannels; ++c) {
      y[c] = sum_of(sums[r][c]) + (product.bias != nullptr ? product.bias[n + c] : 0.0f);
    }
  }
}

template <ScalarType kType, int kChannels>
void dense_rows(const DenseProduct& product, std::int64_t n) {
  std::int64_t row = 0;
  for (; row + 4 <= product.rows; row += 4) dense_tile<kType, 4, kChannels>(product, row, n);
  for (; row < product.rows; ++row) dense_tile<kType, 1, kChannels>(product, row, n);
}

template <ScalarType kType>
void dense_channels(const DenseProduct& product, std::int64_t begin, std::int64_t end) {
  std::int64_t n = begin;
  for (; n + 4 <= end; n += 4) dense_rows<kType, 4>(product, n);
  for (; n < end; ++n) dense_rows<kType, 1>(product, n);
}

void dense_kernel(const DenseProduct& product, std::int64_t begin, std::int64_t end) {
  if (product.weight_type == ScalarType::kBFloat16) {
    return dense_channels<ScalarType::kBFloat16>(product, begin, end);
  }
  dense_channels<ScalarType::kFloat16>(product, begin, end);
}

}  // namespace
}  // namespace anyprec::cpu
