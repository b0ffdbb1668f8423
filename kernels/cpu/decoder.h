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

/// Loops over a part of the work, one set of them for each instruction set (decoder_simd.h).
struct DecoderKernels {
  /// Rows [begin, end).
  void (*rms_norm)(const decoder::RmsNorm& norm, std::int64_t begin, std::int64_t end);
  void (*gated)(const decoder::Gated& gated, std::int64_t begin, std::int64_t end);
  void (*rotary_to_cache)(const decoder::RotaryToCache& rotary, std::int64_t begin,
                          std::int64_t end);
  /// Rows [begin, end) of one sequence, for the queries of one head of the cache.
  void (*attention)(const decoder::Attention& attention, int sequence, int head, std::int64_t begin,
                    std::int64_t end);
};

/// Those of an instruction set that the machine has.
const DecoderKernels& decoder_kernels(Isa isa);

const DecoderKernels& decoder_kernels_scalar();
#ifdef ANYPREC_CPU_X86
const DecoderKernels& decoder_kernels_avx2();
const DecoderKernels& decoder_kernels_avx512();
#endif

}  // namespace anyprec::cpu
