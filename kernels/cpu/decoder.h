#pragma once

#include <cstdint>

#include "anyprec/linear.h"
#include "anyprec/parallel.h"
#include "kernels/decoder.h"

/// What a decoder computes between its linear layers, on the CPU. The same bytes on any number of
/// threads; they may differ between instruction sets.
namespace anyprec::cpu {

void rms_norm(const decoder::RmsNorm& norm, const Executor& executor, Isa isa = selected_isa());
void gated(const decoder::Gated& gated, const Executor& executor, Isa isa = selected_isa());
void rotary_to_cache(const decoder::RotaryToCache& rotary, const Executor& executor,
                     Isa isa = selected_isa());
/// Throws InvalidArgument where a table or a length points out of the cache.
void attention(const decoder::Attention& attention, const Executor& executor,
               Isa isa = selected_isa());
void sample(const decoder::Sampling& sampling, const Executor& executor);

/// The queries of rows [begin, end) of one sequence for one head of the cache, and the keys
/// [first_key, end_key) of those that they see.
struct AttentionPart {
  int sequence;
  int head;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t first_key;
  std::int64_t end_key;
  /// Null: all keys are here, and y is written. Else what add_parts takes: for each query the
  /// largest score, the sum of powers, and the sums, attention_state_floats in all.
  float* state;
};
constexpr std::int64_t attention_state_floats(std::int64_t queries, int head_size) {
  return queries * ((head_size + 15) / 16 * 16 + 2);
}

/// Loops over a part of the work, one set of them for each instruction set (decoder_simd.h).
struct DecoderKernels {
  /// Rows [begin, end).
  void (*rms_norm)(const decoder::RmsNorm& norm, std::int64_t begin, std::int64_t end);
  void (*gated)(const decoder::Gated& gated, std::int64_t begin, std::int64_t end);
  void (*rotary_to_cache)(const decoder::RotaryToCache& rotary, std::int64_t begin,
                          std::int64_t end);
  void (*attention)(const decoder::Attention& attention, const AttentionPart& part);
  /// Writes y from `count` parts of the same queries.
  void (*add_parts)(const decoder::Attention& attention, const AttentionPart* parts, int count);
};

/// Those of an instruction set that the machine has.
const DecoderKernels& decoder_kernels(Isa isa);

const DecoderKernels& decoder_kernels_scalar();
#ifdef ANYPREC_CPU_X86
const DecoderKernels& decoder_kernels_avx2();
const DecoderKernels& decoder_kernels_avx512();
#endif

}  // namespace anyprec::cpu
