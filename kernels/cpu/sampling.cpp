#include "kernels/sampling.h"

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

std::int64_t sample_row(const decoder::Sampling& s, std::int64_t row, std::uint32_t* keys) {
  const std::int64_t count = s.vocabulary;
  float* const logits = s.adjusted + row * count;
  load_floats(s.logits, row * count, count, s.type, logits);
  const float penalty = s.repetition_penalty[row];
  if (penalty != 1.0f) {
    for (std::int64_t i = 0; i < s.history_length; ++i) {
      const std::int64_t token = s.history[row * s.history_length + i];
      if (token < 0 || token >= count) continue;
      float logit;  // from its origin: a token that comes twice is penalized once
      load_floats(s.logits, row * count + token, 1, s.type, &logit);
      logits[token] = sampling::penalized(logit, penalty);
    }
  }
  std::int64_t best = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    keys[i] = key_of(logits[i]);
    if (keys[i] > keys[best]) best = i;
  }
  const float temperature = s.temperature[row];
  if (!(temperature > 0.0f)) return best;

  std::uint32_t least = 0;
  if (s.top_k[row] > 0 && s.top_k[row] < count) {
    least = threshold(keys, count, static_cast<std::uint64_t>(s.top_k[row]),
                      [](std::int64_t) { return std::uint64_t{1}; });
  }
  const float scale = sampling::exponent_scale(temperature);
  const auto weight = [&](std::int64_t i) {
    return keys[i] >= least ? sampling::weight_of(logits[i], logits[best], scale) : 0;
  };
  if (s.top_p[row] < 1.0f) {
    std::uint64_t total = 0;
    for (std::int64_t i = 0; i < count; ++i) total += weight(i);
    least = threshold(keys, count, sampling::wanted_weight(s.top_p[row], total), weight);
  }
  const std::uint64_t least_weight = sampling::least_weight(s.min_p[row]);
  const auto kept = [&](std::int64_t i) {
    const std::uint64_t w = weight(i);
    return w >= least_weight ? w : 0;
  };
  std::uint64_t total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += kept(i);
  std::uint64_t rest = sampling::below(sampling::philox(static_cast<std::uint64_t>(s.seed[row]),
                                                        static_cast<std::uint64_t>(s.step[row])),
                                       total);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t w = kept(i);
    if (rest < w) return i;
    rest -= w;
  }
  return best;
}

}  // namespace

void sample(const decoder::Sampling& sampling, const Executor& executor) {
  executor.parallel_for(sampling.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint32_t> keys(static_cast<std::size_t>(sampling.vocabulary));
    for (std::int64_t row = begin; row < end; ++row) {
      sampling.tokens[row] = sample_row(sampling, row, keys.data());
    }
  });
}

}  // namespace anyprec::cpu
