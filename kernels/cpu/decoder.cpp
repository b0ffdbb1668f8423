#include "kernels/cpu/decoder.h"

#include <algorithm>
#include <string>
#include <vector>

#include "anyprec/error.h"

namespace anyprec::cpu {
namespace {

/// Elements that are worth a thread of their own.
constexpr std::int64_t kGrainElements = 16384;
/// Rows of queries that share keys and values once they are in fp32.
constexpr std::int64_t kQueryRows = 16;
/// Keys of a part where a sequence has one row, so that all threads have work: a multiple of 16.
constexpr std::int64_t kPartKeys = 256;

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

namespace {

/// The runs of a sequence's rows, for each head of the cache; those of a single row in parts.
void append_parts(const decoder::Attention& attention, int sequence,
                  std::vector<AttentionPart>& parts) {
  const std::int64_t rows_end = attention.sequence_start[sequence + 1];
  const std::int64_t rows = rows_end - attention.sequence_start[sequence];
  const std::int64_t shift = attention.lengths[sequence] - rows_end;
  for (std::int64_t begin = rows_end - rows; begin < rows_end; begin += kQueryRows) {
    const std::int64_t end = std::min(begin + kQueryRows, rows_end);
    std::int64_t first = 0;
    if (attention.window > 0) {
      first = std::max<std::int64_t>(0, begin + shift - attention.window + 1);
    }
    const std::int64_t last = end + shift;
    const std::int64_t each = rows == 1 ? kPartKeys : last;
    for (int head = 0; head < attention.cache.heads; ++head) {
      for (std::int64_t key = first; key < last; key += each) {
        parts.push_back({sequence, head, begin, end, key, std::min(key + each, last), nullptr});
      }
    }
  }
}

bool same_queries(const AttentionPart& a, const AttentionPart& b) {
  return a.sequence == b.sequence && a.head == b.head && a.begin == b.begin;
}

/// Rows that belong to no sequence.
void clear_others(const decoder::Attention& attention) {
  const std::int64_t row_bytes = static_cast<std::int64_t>(attention.query_heads) *
                                 attention.cache.head_size * scalar_bytes(attention.type);
  char* const y = static_cast<char*>(attention.y);
  std::fill(y, y + attention.sequence_start[0] * row_bytes, '\0');
  std::fill(y + attention.sequence_start[attention.sequences] * row_bytes,
            y + attention.rows * row_bytes, '\0');
}

}  // namespace

void attention(const decoder::Attention& attention, const Executor& executor, Isa isa) {
  std::vector<AttentionPart> parts;
  for (int b = 0; b < attention.sequences; ++b) {
    check_sequence(attention, b);
    append_parts(attention, b, parts);
  }
  clear_others(attention);

  const int group = attention.query_heads / attention.cache.heads;
  const int size = attention.cache.head_size;
  const auto count = static_cast<std::int64_t>(parts.size());
  // Where the run of parts with the queries of part i ends.
  const auto run_end = [&](std::int64_t i) {
    std::int64_t end = i + 1;
    while (end < count && same_queries(parts[i], parts[end])) ++end;
    return end;
  };
  std::int64_t work = 0, state_floats = 0;
  for (std::int64_t i = 0; i < count; i = run_end(i)) {
    if (run_end(i) > i + 1) {
      state_floats += (run_end(i) - i) * attention_state_floats(group, size);
    }
  }
  std::vector<float> states(static_cast<std::size_t>(state_floats));
  float* state = states.data();
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t end = run_end(i);
    const bool shared = end > i + 1;
    for (; i < end; ++i) {
      const AttentionPart& part = parts[i];
      work += (part.end - part.begin) * group * (part.end_key - part.first_key) * size;
      if (!shared) continue;
      parts[i].state = state;
      state += attention_state_floats(group, size);
    }
  }
  const DecoderKernels& kernels = decoder_kernels(isa);
  // A few keys (some 5 microseconds of work) are not worth waking threads. Later rows see more
  // keys: first and last parts take turns, so that any run of parts is about as much work.
  executor.parallel_for(
      count, work < 3 * kGrainElements ? count : 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          kernels.attention(attention, parts[i % 2 == 0 ? i / 2 : count - 1 - i / 2]);
        }
      });
  for (std::int64_t i = 0; i < count; i = run_end(i)) {
    if (parts[i].state != nullptr) {
      kernels.add_parts(attention, &parts[i], static_cast<int>(run_end(i) - i));
    }
  }
}

}  // namespace anyprec::cpu
