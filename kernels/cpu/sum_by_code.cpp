#include "anyprec/sum_by_code.h"

#include <algorithm>
#include <array>
#include <string>

#include "anyprec/error.h"
#include "kernels/cpu/float_types.h"

namespace anyprec {

void CodeSums::validate() const {
  if (precision < kMinPrecision || precision > kMaxPrecision) {
    throw InvalidArgument("precision: found " + std::to_string(precision) + ", wanted 2 to 8");
  }
  if (group_size < 0 || group_size % 32 != 0) {
    throw InvalidArgument("group_size: found " + std::to_string(group_size) +
                          ", wanted 0 (the whole row) or a positive multiple of 32");
  }
}

namespace cpu {
namespace {

constexpr std::int64_t kChunk = 512;  // elements made fp32 at a time

}  // namespace

void sum_by_code(const CodeSums& sums, std::int64_t row_begin, std::int64_t row_end, float* out) {
  sums.validate();
  const std::int64_t columns = sums.columns;
  const std::int64_t groups = sums.groups();
  const std::int64_t width = sums.group_size == 0 ? columns : sums.group_size;
  const std::int64_t entries = std::int64_t{1} << sums.precision;
  const unsigned mask = (1u << sums.precision) - 1;
  std::array<float, kChunk> values;
  std::array<double, 1 << kMaxPrecision> bins;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      std::fill_n(bins.begin(), entries, 0.0);
      const std::int64_t end = std::min(columns, (group + 1) * width);
      for (std::int64_t begin = group * width; begin < end; begin += kChunk) {
        const std::int64_t count = std::min(kChunk, end - begin);
        load_floats(sums.values, row * columns + begin, count, sums.type, values.data());
        const std::uint8_t* const codes = sums.codes + row * columns + begin;
        for (std::int64_t i = 0; i < count; ++i)
          bins[codes[i] & mask] += static_cast<double>(values[i]);
      }
      float* const to = out + ((row - row_begin) * groups + group) * entries;
      for (std::int64_t c = 0; c < entries; ++c) to[c] = static_cast<float>(bins[c]);
    }
  }
}

}  // namespace cpu
}  // namespace anyprec
