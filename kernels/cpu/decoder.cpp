#include "kernels/cpu/decoder.h"

#include <algorithm>
#include <string>

#include "anyprec/error.h"

namespace anyprec::cpu {
namespace {

/// Elements that are worth a thread of their own.
constexpr std::int64_t kGrainElements = 16384;
/// Rows of queries that share keys and values once they are in fp32.
constexpr std::int64_t kQueryRows = 16;

std::int64_t grain(std::int64_t columns) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, columns));
}

std::string number(std::int64_t value) { return std::to_string(value); }

void check_sequence(const decoder::Attention& attention, int sequence) {
  const std::int64_t begin = attention.sequence_start[sequence];
  const std::int64_t end = attention.sequence_start[sequence + 1];
  const auto name = [&](const char* what) {
    return "attention: " + std::string(what) + "[" + number(sequence) + "]";
  };
  if (begin < 0 || end < begin || end > attention.rows) {
    throw InvalidArgument(name("sequence_start") + ": found rows " + number(begin) + " to " +
                          number(end) + " of " + number(attention.rows));
  }
  const std::int64_t length = attention.lengths[sequence];
  const std::int64_t room =
      static_cast<std::int64_t>(attention.max_blocks) * attention.cache.block_size;
  if (length < end - begin || length > room) {
    throw InvalidArgument(name("lengths") + ": found " + number(length) + ", wanted " +
                          number(end - begin) + " (its queries) to " + number(room) +
                          " (its block table)");
  }
  if (begin == end) return;
  const std::int32_t* const blocks =
      attention.block_table + static_cast<std::int64_t>(sequence) * attention.max_blocks;
  for (std::int64_t i = 0; i * attention.cache.block_size < length; ++i) {
    if (blocks[i] < 0 || blocks[i] >= attention.cache.blocks) {
      throw InvalidArgument(name("block_table") + ": found block " + number(blocks[i]) + " of " +
                            number(attention.cache.blocks));
    }
  }
}

std::int64_t scalar_bytes(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

}  // namespace

const DecoderKernels& decoder_kernels([[maybe_unused]] Isa isa) {
#ifdef ANYPREC_CPU_X86
  switch (isa) {
    case Isa::kScalar:
      return decoder_kernels_scalar();
    case Isa::kAvx2:
      return decoder_kernels_avx2();
    case Isa::kAvx512:
    case Isa::kAvx512Vbmi:
      return decoder_kernels_avx512();
  }
#endif
  return decoder_kernels_scalar();
}

void rms_norm(const decoder::RmsNorm& norm, const Executor& executor, Isa isa) {
  const auto kernel = decoder_kernels(isa).rms_norm;
  executor.parallel_for(norm.rows, grain(norm.columns),
                        [&](std::int64_t begin, std::int64_t end) { kernel(norm, begin, end); });
}

void gated(const decoder::Gated& gated, const Executor& executor, Isa isa) {
  const auto kernel = decoder_kernels(isa).gated;
  executor.parallel_for(gated.rows, grain(2 * gated.columns),
                        [&](std::int64_t begin, std::int64_t end) { kernel(gated, begin, end); });
}

void rotary_to_cache(const decoder::RotaryToCache& rotary, const Executor& executor, Isa isa) {
  const auto kernel = decoder_kernels(isa).rotary_to_cache;
  const std::int64_t heads = rotary.query_heads + 2 * rotary.cache.heads;
  for (std::int64_t row = 0; row < rotary.rows; ++row) {
    if (rotary.slots[row] >= rotary.cache.blocks * rotary.cache.block_size) {
      throw InvalidArgument("rotary_to_cache: slots[" + number(row) + "]: found " +
                            number(rotary.slots[row]) + " of " +
                            number(rotary.cache.blocks * rotary.cache.block_size));
    }
    if (rotary.positions[row] < 0 || rotary.positions[row] >= rotary.table_rows) {
      throw InvalidArgument("rotary_to_cache: positions[" + number(row) + "]: found " +
                            number(rotary.positions[row]) + ", wanted 0 to " +
                            number(rotary.table_rows - 1));
    }
  }
  executor.parallel_for(rotary.rows, grain(heads * rotary.cache.head_size),
                        [&](std::int64_t begin, std::int64_t end) { kernel(rotary, begin, end); });
}

void attention(const decoder::Attention& attention, const Executor& executor, Isa isa) {
  const int heads = attention.cache.heads;
  std::int64_t rows_of_none = attention.rows;
  // Work items: runs of a sequence's rows, for each head of the cache.
  std::int64_t runs = 0, keys = 0;
  for (int b = 0; b < attention.sequences; ++b) {
    check_sequence(attention, b);
    const std::int64_t rows = attention.sequence_start[b + 1] - attention.sequence_start[b];
    runs += (rows + kQueryRows - 1) / kQueryRows;
    keys += rows * attention.lengths[b];
    rows_of_none -= rows;
  }
  if (rows_of_none > 0) {
    const std::int64_t row_bytes = static_cast<std::int64_t>(attention.query_heads) *
                                   attention.cache.head_size * scalar_bytes(attention.type);
    const std::int64_t first = attention.sequence_start[0];
    const std::int64_t end = attention.sequence_start[attention.sequences];
    char* const y = static_cast<char*>(attention.y);
    std::fill(y, y + first * row_bytes, '\0');
    std::fill(y + end * row_bytes, y + attention.rows * row_bytes, '\0');
  }
  if (runs == 0) return;
  const auto kernel = decoder_kernels(isa).attention;
  // A few keys (some 20 microseconds of work) are not worth waking threads.
  const std::int64_t work = keys * attention.query_heads * attention.cache.head_size;
  const std::int64_t items = runs * heads;
  executor.parallel_for(
      items, work < 12 * kGrainElements ? items : 1, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t run = 0;
        for (int b = 0; b < attention.sequences; ++b) {
          for (std::int64_t row = attention.sequence_start[b];
               row < attention.sequence_start[b + 1]; row += kQueryRows, ++run) {
            for (int head = 0; head < heads; ++head) {
              const std::int64_t item = run * heads + head;
              if (item < begin || item >= end) continue;
              kernel(attention, b, head, row,
                     std::min<std::int64_t>(row + kQueryRows, attention.sequence_start[b + 1]));
            }
          }
        }
      });
}

}  // namespace anyprec::cpu
