#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "anyprec/engine.h"

namespace anyprec::engine {

struct Sequence;

/// Throws InvalidArgument where a number is outside its range.
void check_sampling(const Sampling& sampling);

/// The next token of each sequence, int64 [B], drawn on the device from its row of logits [B,
/// vocabulary]. The random number of a token depends on the sequence's seed and the token's
/// position alone.
at::Tensor sample_tokens(const at::Tensor& logits, const std::vector<Sequence*>& sequences);

}  // namespace anyprec::engine
