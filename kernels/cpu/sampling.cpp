#include "kernels/sampling.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/decoder.h"
#include "kernels/cpu/float_types.h"

namespace anyprec::cpu {
namespace {

using sampling::key_of;

/// The largest key such that the amounts of tokens with it or a larger one sum to `wanted`, found
/// digit by digit. amount(token): 0 where a token does not count.
template <class Amount>
std::uint32_t threshold(const std::uint32_t* keys, std::int64_t count, std::uint64_t wanted,
                        const Amount& amount) {
  constexpr int kDigitBits = 8;
  std::uint32_t prefix = 0;
  std::uint64_t above = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    std::array<std::uint64_t, 1 << kDigitBits> sums{};
    const std::uint32_t known = shift + kDigitBits == 32 ? 0u : ~0u << (shift + kDigitBits);
    for (std::int64_t i = 0; i < count; ++i) {
      if ((keys[i] & known) == prefix) sums[(keys[i] >> shift) & 255u] += amount(i);
    }
    int digit = 255;
    while (digit > 0 && above + sums[static_cast<std::size_t>(digit)] < wanted) {
      above += sums[static_cast<std::size_t>(digit--)];
    }
    prefix |= static_cast<std::uint32_t>(digit) << shift;
  }
  return prefix;
}

/// Working memory of a row that is drawn.
struct Scratch {
  std::vector<std::uint32_t> keys;
  std::vector<std::uint64_t> weights;
};

/// The first of the largest logits. Two passes without branches, but for the way out.
std::int64_t best_token(const float* logits, std::int64_t count) {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, key_of(logits[i]));
  std::int64_t best = 0;
  while (key_of(logits[best]) != most) ++best;
  return best;
}

/// The row's logits in fp32, with the penalty: its own where they are that already.
const float* adjusted_logits(const decoder::Sampling& s, std::int64_t row) {
  const std::int64_t count = s.vocabulary;
  const float penalty = s.repetition_penalty[row];
  if (penalty == 1.0f && s.type == ScalarType::kFloat32) {
    return static_cast<const float*>(s.logits) + row * count;
  }
  float* const logits = s.adjusted + row * count;
  load_floats(s.logits, row * count, count, s.type, logits);
  if (penalty == 1.0f) return logits;
  for (std::int64_t i = 0; i < s.history_length; ++i) {
    const std::int64_t token = s.history[row * s.history_length + i];
    if (token < 0 || token >= count) continue;
    float logit;  // from its origin: a token that comes twice is penalized once
    load_floats(s.logits, row * count + token, 1, s.type, &logit);
    logits[token] = sampling::penalized(logit, penalty);
  }
  return logits;
}

std::int64_t sample_row(const decoder::Sampling& s, std::int64_t row, Scratch& scratch) {
  const std::int64_t count = s.vocabulary;
  const float* const logits = adjusted_logits(s, row);
  const std::int64_t best = best_token(logits, count);
  const float temperature = s.temperature[row];
  if (!(temperature > 0.0f)) return best;

  scratch.keys.resize(static_cast<std::size_t>(count));
  scratch.weights.resize(static_cast<std::size_t>(count));
  std::uint32_t* const keys = scratch.keys.data();
  std::uint64_t* const weights = scratch.weights.data();
  for (std::int64_t i = 0; i < count; ++i) keys[i] = key_of(logits[i]);
  std::uint32_t least = 0;
  if (s.top_k[row] > 0 && s.top_k[row] < count) {
    least = threshold(keys, count, static_cast<std::uint64_t>(s.top_k[row]),
                      [](std::int64_t) { return std::uint64_t{1}; });
  }
  const float scale = sampling::exponent_scale(temperature);
  const float largest = logits[best];
  // Sets the weights of tokens that do not count to 0; returns the sum of the others.
  const auto keep = [&](const auto& counts) {
    std::uint64_t sum = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      if (!counts(i)) weights[i] = 0;
      sum += weights[i];
    }
    return sum;
  };
  for (std::int64_t i = 0; i < count; ++i) {
    weights[i] = keys[i] >= least ? sampling::weight_of(logits[i], largest, scale) : 0;
  }
  if (s.top_p[row] < 1.0f) {
    const std::uint64_t total = keep([](std::int64_t) { return true; });
    least = threshold(keys, count, sampling::wanted_weight(s.top_p[row], total),
                      [&](std::int64_t i) { return weights[i]; });
  }
  const std::uint64_t least_weight = sampling::least_weight(s.min_p[row]);
  const std::uint64_t total =
      keep([&](std::int64_t i) { return keys[i] >= least && weights[i] >= least_weight; });
  std::uint64_t rest = sampling::below(sampling::philox(static_cast<std::uint64_t>(s.seed[row]),
                                                        static_cast<std::uint64_t>(s.step[row])),
                                       total);
  for (std::int64_t i = 0; i < count; ++i) {
    if (rest < weights[i]) return i;
    rest -= weights[i];
  }
  return best;
}

}  // namespace

void sample(const decoder::Sampling& sampling, const Executor& executor) {
  executor.parallel_for(sampling.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    Scratch scratch;
    for (std::int64_t row = begin; row < end; ++row) {
      sampling.tokens[row] = sample_row(sampling, row, scratch);
    }
  });
}

}  // namespace anyprec::cpu
