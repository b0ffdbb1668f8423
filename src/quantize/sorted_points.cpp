#include "src/quantize/sorted_points.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

namespace anyprec::quantize {
namespace {

/// Unsigned integers in the order of the floats (no NaN). Both zeros become one.
std::uint32_t ordered_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  const auto negative = static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31);
  return bits ^ (negative | 0x80000000u);
}

float ordered_value(std::uint32_t ordered) {
  const std::uint32_t positive =
      static_cast<std::uint32_t>(static_cast<std::int32_t>(ordered) >> 31);
  return std::bit_cast<float>(ordered ^ (~positive | 0x80000000u));
}

std::uint32_t key_of(std::uint64_t packed) { return static_cast<std::uint32_t>(packed >> 32); }

/// Stable counting sorts by digits of `kBits` of the key, least significant first.
template <int kBits>
void radix_sort(std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& swap) {
  constexpr int kPasses = (32 + kBits - 1) / kBits;
  constexpr std::uint32_t kMask = (1u << kBits) - 1;
  std::array<std::array<std::uint32_t, kMask + 1>, kPasses> counts{};
  for (const std::uint64_t packed : keys) {
    for (int pass = 0; pass < kPasses; ++pass) {
      ++counts[pass][(key_of(packed) >> (pass * kBits)) & kMask];
    }
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = 32 + pass * kBits;
    auto& offsets = counts[pass];
    if (offsets[(keys[0] >> shift) & kMask] == keys.size()) continue;  // all digits equal
    std::uint32_t sum = 0;
    for (std::uint32_t& offset : offsets) sum += std::exchange(offset, sum);
    for (const std::uint64_t packed : keys) swap[offsets[(packed >> shift) & kMask]++] = packed;
    keys.swap(swap);
  }
}

/// Sorts columns that share a weight by (sensitivity, column).
void sort_ties(const float* sensitivities, std::uint64_t* begin, std::uint64_t* end) {
  const std::uint64_t key = *begin & 0xffffffff00000000u;
  for (std::uint64_t* packed = begin; packed != end; ++packed) {
    const auto column = static_cast<std::uint32_t>(*packed);
    *packed = std::uint64_t{ordered_bits(sensitivities[column])} << 32 | column;
  }
  std::sort(begin, end);
  for (std::uint64_t* packed = begin; packed != end; ++packed) {
    *packed = key | (*packed & 0xffffffffu);
  }
}

}  // namespace

void PointSorter::sort_keys(std::int64_t n) {
  swap_.resize(static_cast<std::size_t>(n));
  if (n < 128) {
    std::sort(keys_.begin(), keys_.end());
  } else if (n < 4096) {
    radix_sort<8>(keys_, swap_);
  } else {
    radix_sort<11>(keys_, swap_);
  }
}

void PointSorter::sort(const float* weights, const float* sensitivities, std::int64_t n,
                       SortedPoints& points) {
  const auto count = static_cast<std::size_t>(n);
  keys_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    keys_[i] = std::uint64_t{ordered_bits(weights[i])} << 32 | i;
  }
  sort_keys(n);

  points.order.resize(count);
  points.first.resize(count + 1);
  points.value.resize(count);
  points.mass.resize(count);
  points.sensitivity.resize(count);
  std::size_t m = 0;
  for (std::size_t begin = 0; begin < count;) {
    const std::uint32_t key = key_of(keys_[begin]);
    std::size_t end = begin + 1;
    while (end < count && key_of(keys_[end]) == key) ++end;
    if (end - begin > 1 && sensitivities != nullptr)
      sort_ties(sensitivities, &keys_[begin], &keys_[0] + end);
    double sum = sensitivities == nullptr ? static_cast<double>(end - begin) : 0.0;
    for (std::size_t i = begin; i < end; ++i) {
      const auto column = static_cast<std::uint32_t>(keys_[i]);
      points.order[i] = column;
      if (sensitivities != nullptr) sum += static_cast<double>(sensitivities[column]);
    }
    points.first[m] = static_cast<std::uint32_t>(begin);
    points.value[m] = static_cast<double>(ordered_value(key));
    points.sensitivity[m] = sum;
    ++m;
    begin = end;
  }
  points.first[m] = static_cast<std::uint32_t>(count);
  points.first.resize(m + 1);
  points.value.resize(m);
  points.mass.resize(m);
  points.sensitivity.resize(m);

  // Summed in sorted order: a permutation of the columns changes no bit of the mean.
  std::array<double, 4> partial{};
  for (std::size_t i = 0; i < m; ++i) partial[i % 4] += points.sensitivity[i];
  const double total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
  const double scale = total > 0.0 ? static_cast<double>(n) / total : 0.0;
  const double floor = total > 0.0 ? kMassFloor : 1.0;
  for (std::size_t i = 0; i < m; ++i) {
    const double columns = static_cast<double>(points.first[i + 1] - points.first[i]);
    points.mass[i] = points.sensitivity[i] * scale + columns * floor;
  }
}

}  // namespace anyprec::quantize
