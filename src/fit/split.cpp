#include "src/fit/split.h"

#include <ATen/ATen.h>

namespace anyprec::fit {
namespace {

/// How many weights each of `count` slots has: int64 [n, count].
at::Tensor slot_sizes(const at::Tensor& slots, std::int64_t count) {
  return at::zeros({slots.size(0), count}, slots.options())
      .scatter_add_(1, slots, at::ones_like(slots));
}

at::Tensor with_zero_first(const at::Tensor& sums) { return at::constant_pad_nd(sums, {1, 0}); }

}  // namespace

std::vector<at::Tensor> slot_means(const Rows& rows, const Metric& metric, int precision) {
  const at::Tensor mass = metric.diagonal.expand_as(rows.weight).contiguous();
  const auto by_slot = [&](const at::Tensor& numbers) {
    // Merged from the widest precision down: the children of code c are c and c + 2^b.
    std::vector<at::Tensor> sums(precision + 1);
    sums[precision] = sum_by_slot(numbers, rows, metric, precision).to(at::kDouble);
    for (int b = precision; b > 0; --b) {
      const std::vector<at::Tensor> halves = sums[b].chunk(2, 2);
      sums[b - 1] = halves[0] + halves[1];
    }
    return sums;
  };
  const std::vector<at::Tensor> masses = by_slot(mass), moments = by_slot(mass * rows.weight);
  std::vector<at::Tensor> means;
  at::Tensor whole = at::zeros_like(moments[0]);
  for (int b = 0; b <= precision; ++b) {
    const at::Tensor mean = at::where(masses[b] > 0.0, moments[b] / masses[b], whole);
    whole = at::cat({mean, mean}, 2);
    means.push_back(mean.to(at::kFloat));
  }
  return means;
}

at::Tensor split(const Rows& rows, const Metric& metric, int precision) {
  const std::int64_t k = rows.weight.size(1);
  const std::int64_t count = metric.codebooks << precision;
  const at::Tensor slots = slots_of(rows.codes, metric, precision);
  // By slot, and by value inside of a slot. Values are about the slot's mean, against cancellation.
  const at::Tensor by_value = at::argsort(rows.weight, /*stable=*/true, 1, false);
  const at::Tensor by_slot = at::argsort(slots.gather(1, by_value), /*stable=*/true, 1, false);
  const at::Tensor order = by_value.gather(1, by_slot);
  const at::Tensor slot = slots.gather(1, order);
  const at::Tensor means = slot_means(rows, metric, precision).back().flatten(1);
  const at::Tensor value = (rows.weight.gather(1, order) - means.gather(1, slot)).to(at::kDouble);
  const at::Tensor mass = metric.diagonal.to(at::kDouble).expand_as(value).gather(1, order);
  const at::Tensor masses = with_zero_first(mass.cumsum(1));
  const at::Tensor moments = with_zero_first((mass * value).cumsum(1));
  const at::Tensor size = slot_sizes(slots, count);
  const at::Tensor end = size.cumsum(1), begin = end - size;
  const auto total = [&](const at::Tensor& sums) {
    return (sums.gather(1, end) - sums.gather(1, begin)).gather(1, slot);
  };
  const auto left_of = [&](const at::Tensor& sums) {
    return sums.slice(1, 1) - sums.gather(1, begin).gather(1, slot);
  };
  const at::Tensor left_mass = left_of(masses), left_moment = left_of(moments);
  const at::Tensor right_mass = total(masses) - left_mass;
  const at::Tensor right_moment = total(moments) - left_moment;
  const at::Tensor place = at::arange(k, slot.options()).expand_as(slot);
  const at::Tensor last = place == end.gather(1, slot) - 1;
  const at::Tensor right =
      at::where(last, at::zeros_like(mass), right_moment.square() / right_mass.clamp_min(1e-300));
  const at::Tensor score = left_moment.square() / left_mass.clamp_min(1e-300) + right;
  const at::Tensor best = at::full({rows.count(), count}, -1.0, score.options())
                              .scatter_reduce_(1, slot, score, "amax");
  // The leftmost of the best cuts: the place of the last weight of the left half.
  const at::Tensor candidate =
      at::where(score >= best.gather(1, slot), place, at::full_like(place, k));
  const at::Tensor cut = at::full({rows.count(), count}, k, place.options())
                             .scatter_reduce_(1, slot, candidate, "amin");
  const at::Tensor bit = (place > cut.gather(1, slot)).to(at::kByte) * (1 << precision);
  return at::bitwise_or(rows.codes, at::empty_like(rows.codes).scatter_(1, order, bit));
}

}  // namespace anyprec::fit
