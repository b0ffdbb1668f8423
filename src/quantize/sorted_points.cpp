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

/// Stable counting sorts by the kDigits highest digits of kBits of the key. Returns how many low
/// bits of the packed keys are left out.
template <int kBits, int kDigits>
int radix_sort(std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& swap) {
  constexpr int kShift = 64 - kBits * kDigits;
  constexpr std::uint32_t kMask = (1u << kBits) - 1;
  std::array<std::array<std::uint32_t, kMask + 1>, kDigits> counts{};
  for (const std::uint64_t packed : keys) {
    for (int digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][(packed >> (kShift + digit * kBits)) & kMask];
    }
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = kShift + digit * kBits;
    auto& offsets = counts[digit];
    std::uint32_t sum = 0;
    for (std::uint32_t& offset : offsets) sum += std::exchange(offset, sum);
    for (const std::uint64_t packed : keys) swap[offsets[(packed >> shift) & kMask]++] = packed;
    keys.swap(swap);
  }
  return kShift;
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

/// Finishes keys that are sorted but for their low `shift` bits: by (key, sensitivity, column).
void sort_runs(const float* sensitivities, int shift, std::vector<std::uint64_t>& keys) {
  const std::size_t n = keys.size();
  for (std::size_t i = 1; i < n; ++i) {
    if ((keys[i - 1] ^ keys[i]) >> shift != 0) continue;
    const std::size_t begin = i - 1;
    while (i < n && (keys[begin] ^ keys[i]) >> shift == 0) ++i;
    if (i - begin == 2) {
      const std::uint64_t a = keys[begin];
      const std::uint64_t b = keys[begin + 1];
      keys[begin] = std::min(a, b);
      keys[begin + 1] = std::max(a, b);
    } else {
      std::sort(keys.data() + begin, keys.data() + i);
    }
    if (sensitivities == nullptr) continue;
    for (std::size_t tie = begin; tie < i;) {
      std::size_t end = tie + 1;
      while (end < i && key_of(keys[tie]) == key_of(keys[end])) ++end;
      if (end - tie > 1) sort_ties(sensitivities, keys.data() + tie, keys.data() + end);
      tie = end;
    }
  }
}

}  // namespace

void PointSorter::sort_keys(const float* sensitivities) {
  swap_.resize(keys_.size());
  int shift = 0;
  if (keys_.size() < 128) {
    std::sort(keys_.begin(), keys_.end());
    shift = 32;
  } else if (keys_.size() < 4096) {
    shift = radix_sort<10, 2>(keys_, swap_);
  } else {
    shift = radix_sort<11, 2>(keys_, swap_);
  }
  sort_runs(sensitivities, shift, keys_);
}

void PointSorter::sort(const float* weights, const float* sensitivities, std::int64_t n,
                       SortedPoints& points) {
  const auto count = static_cast<std::size_t>(n);
  keys_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    keys_[i] = std::uint64_t{ordered_bits(weights[i])} << 32 | i;
  }
  sort_keys(sensitivities);

  points.order.resize(count);
  points.first.resize(count + 1);
  points.value.resize(count);
  points.mass.resize(count);
  points.sensitivity.resize(count);
  std::size_t m = 0;  // of the point at hand
  std::uint32_t first = 0;
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto column = static_cast<std::uint32_t>(keys_[i]);
    const double sensitivity = sensitivities == nullptr ? 1.0 : sensitivities[column];
    const bool begins = i == 0 || key_of(keys_[i]) != key_of(keys_[i - 1]);
    m += begins && i > 0 ? 1 : 0;
    first = begins ? static_cast<std::uint32_t>(i) : first;
    sum = begins ? sensitivity : sum + sensitivity;
    points.order[i] = column;
    points.first[m] = first;
    points.value[m] = static_cast<double>(ordered_value(key_of(keys_[i])));
    points.sensitivity[m] = sum;
  }
  ++m;
  points.first[m] = static_cast<std::uint32_t>(count);
  points.first.resize(m + 1);
  points.value.resize(m);
  points.mass.resize(m);
  points.sensitivity.resize(m);

  // Summed in sorted order: a permutation of the columns changes no bit of the mean.
  std::array<double, 4> partial{};
  std::size_t i = 0;
  for (; i + 4 <= m; i += 4) {
    for (std::size_t c = 0; c < 4; ++c) partial[c] += points.sensitivity[i + c];
  }
  for (; i < m; ++i) partial[0] += points.sensitivity[i];
  const double total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
  const double scale = total > 0.0 ? static_cast<double>(n) / total : 0.0;
  const double floor = total > 0.0 ? kMassFloor : 1.0;
  for (i = 0; i < m; ++i) {
    const auto columns = static_cast<std::int32_t>(points.first[i + 1] - points.first[i]);
    points.mass[i] = points.sensitivity[i] * scale + static_cast<double>(columns) * floor;
  }
}

}  // namespace anyprec::quantize
