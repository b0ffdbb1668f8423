#include "src/quantize/validate.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <mutex>

#include "anyprec/codebook.h"
#include "anyprec/error.h"

namespace anyprec::quantize {
namespace {

/// The bits of |value|. NaN and infinity are at least kInfinityBits, whatever the compiler assumes
/// about floating point, and the comparison of integers vectorizes.
std::uint32_t magnitude_bits(float value) {
  return std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
}
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

bool is_bad_weight(float value) { return magnitude_bits(value) >= kInfinityBits; }

/// Negative zero is a zero.
bool is_bad_sensitivity(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return bits >= kInfinityBits && bits != 0x80000000u;
}

/// Whether any of n values is bad: without an early exit, so that the loop vectorizes.
template <typename IsBad>
bool any_bad(const float* values, std::int64_t n, IsBad is_bad) {
  unsigned found = 0;
  for (std::int64_t i = 0; i < n; ++i) found |= is_bad(values[i]) ? 1u : 0u;
  return found != 0;
}

/// Row-major index of the first bad value, or -1.
template <typename IsBad>
std::int64_t first_bad(const float* values, std::int64_t rows, std::int64_t columns,
                       const Executor& executor, IsBad is_bad) {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::int64_t first = kNone;
  std::mutex mutex;
  const std::int64_t grain = std::max<std::int64_t>(1, (std::int64_t{1} << 18) / columns);
  executor.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* line = values + row * columns;
      if (!any_bad(line, columns, is_bad)) continue;
      const std::int64_t column = std::find_if(line, line + columns, is_bad) - line;
      const std::lock_guard lock(mutex);
      first = std::min(first, row * columns + column);
      return;
    }
  });
  return first == kNone ? -1 : first;
}

[[noreturn]] void throw_bad(const std::string& name, const char* what, float value,
                            std::int64_t index, std::int64_t columns, const char* wanted) {
  // As a stream would print it, but by none: a process may hold two C++ libraries, one of which
  // then has no locale.
  std::array<char, 32> digits{};
  if (!std::isnan(value)) {
    std::to_chars(digits.data(), digits.data() + digits.size() - 1, value,
                  std::chars_format::general, 6);
  }
  const std::string shown = std::isnan(value) ? "nan" : digits.data();
  throw InvalidArgument(name + ": " + what + " [" + std::to_string(index / columns) + ", " +
                        std::to_string(index % columns) + "] is " + shown + "; " + wanted);
}

void require(bool holds, const std::string& name, const char* what, std::int64_t found,
             const std::string& wanted) {
  if (holds) return;
  throw InvalidArgument(name + ": " + what + " is " + std::to_string(found) + "; wanted " + wanted);
}

std::string range(std::int64_t low, std::int64_t high) {
  return std::to_string(low) + " to " + std::to_string(high);
}

}  // namespace

void validate_options(const std::string& name, std::int64_t out_features, std::int64_t in_features,
                      const QuantizeOptions& options) {
  require(out_features >= 1, name, "out_features", out_features, "at least 1");
  constexpr std::int64_t kMaxColumns = std::numeric_limits<std::int32_t>::max();
  require(in_features >= 1 && in_features <= kMaxColumns, name, "in_features", in_features,
          range(1, kMaxColumns));

  const int lowest = options.lowest_precision;
  const int seed = options.seed_precision;
  const int parent = options.parent_precision;
  require(seed >= kMinPrecision && seed <= kMaxPrecision, name, "seed_precision", seed,
          range(kMinPrecision, kMaxPrecision));
  require(lowest >= kMinPrecision && lowest <= seed, name, "lowest_precision", lowest,
          range(kMinPrecision, seed) + " (the seed precision)");
  require(parent >= seed && parent <= kMaxPrecision, name, "parent_precision", parent,
          std::to_string(seed) + " (the seed precision) to " + std::to_string(kMaxPrecision));
  require(options.group_size >= 0 && options.group_size % 32 == 0, name, "group_size",
          options.group_size, "0 or a positive multiple of 32");
}

void validate_values(const std::string& name, const float* weights, const float* sensitivities,
                     std::int64_t out_features, std::int64_t in_features,
                     const Executor& executor) {
  const std::int64_t weight = first_bad(weights, out_features, in_features, executor,
                                        [](float value) { return is_bad_weight(value); });
  if (weight >= 0) throw_bad_weight(name, weights[weight], weight, in_features);
  if (sensitivities == nullptr) return;
  const std::int64_t sensitivity = first_bad(sensitivities, out_features, in_features, executor,
                                             [](float value) { return is_bad_sensitivity(value); });
  if (sensitivity >= 0) {
    throw_bad_sensitivity(name, sensitivities[sensitivity], sensitivity, in_features);
  }
}

void throw_bad_weight(const std::string& name, float value, std::int64_t index,
                      std::int64_t in_features) {
  throw_bad(name, "weight", value, index, in_features, "every weight must be finite");
}

void throw_bad_sensitivity(const std::string& name, float value, std::int64_t index,
                           std::int64_t in_features) {
  throw_bad(name, "sensitivity", value, index, in_features,
            "every sensitivity must be finite and not negative");
}

}  // namespace anyprec::quantize
