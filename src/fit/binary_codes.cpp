// Codes that binary coding begins with: torch.ops.anyprec.binary_codes.
//
// A group's values at precision b are offset + sum of alpha_i s_i over its first b planes, with
// scales of each precision's own. Descent moves codes only as far as the scales that they stand for
// let it, so it matters what it begins with:
//
// "range": the bits of a uniform code of 2^P levels over the middle part of the group's range. A
// wide part serves wide precisions, a narrow one narrow precisions; each group takes the part with
// the least sum over precisions b of 2^-(b - lowest) E_b / (the least E_b of all parts), E_b being
// the error by least squares. No weight is beyond the reach of the lower planes then, as the few
// large ones are where planes follow the bulk of the weights.
//
// "greedy": each plane is the sign of what the planes above it leave, its scale the mean magnitude:
// the published start (AnyBCQ; Network Sketching, arXiv 1706.02021).

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <string_view>
#include <vector>

#include "anyprec/codebook.h"
#include "src/fit/checks.h"
#include "src/fit/chunks.h"
#include "src/fit/full_precision.h"

namespace anyprec::fit {
namespace {

// Parts of a range that are tried.
constexpr double kParts[] = {1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4};
// Wider precisions than this count for nothing in the choice.
constexpr int kWidestJudged = 6;
constexpr double kRidge = 1e-6;  // of the mean diagonal
constexpr double kTiny = 1e-30;
// What the rows that a GPU has at once take, about.
constexpr std::int64_t kDeviceBytes = std::int64_t{1} << 30;

/// Rows in groups: weight [n, G, S] and curvature [G, S]. A short last group is padded by columns
/// of no curvature, with a weight of its own.
struct Groups {
  at::Tensor weight;
  at::Tensor curvature;
};

Groups grouped(const at::Tensor& weight, const at::Tensor& curvature, std::int64_t group_size) {
  const std::int64_t n = weight.size(0), k = weight.size(1);
  const std::int64_t size = group_size == 0 ? k : std::min(group_size, k);
  const std::int64_t padding = (size - k % size) % size;
  const at::Tensor last = weight.narrow(1, k - 1, 1).expand({n, padding});
  return {at::cat({weight, last}, 1).view({n, -1, size}),
          at::constant_pad_nd(curvature, {0, padding}).view({-1, size})};
}

/// +1 or -1 by each of the first `planes` bits of codes, after a column of ones: [..., planes + 1].
at::Tensor signs_of(const at::Tensor& codes, int precision, int planes) {
  std::vector<at::Tensor> columns{at::ones_like(codes, codes.options().dtype(at::kFloat))};
  for (int i = 0; i < planes; ++i) {
    const at::Tensor bit = at::bitwise_and(codes, 1 << (precision - 1 - i)).gt(0);
    columns.push_back(bit.to(at::kFloat).mul_(2.0).sub_(1.0));
  }
  return at::stack(columns, -1);
}

/// The error of each group by least squares with its first 0 .. planes planes: fp64
/// [n, G, planes + 1]. Planes of narrower precisions are the first ones of wider precisions, so one
/// Cholesky factor has those of all of them: E_b = x D x - sum over i <= b of z_i^2, L z = S D x.
at::Tensor errors_of(const Groups& groups, const at::Tensor& codes, int precision, int planes) {
  const at::Tensor signs = signs_of(codes, precision, planes);
  const at::Tensor weighted = (signs * groups.curvature.unsqueeze(-1)).mT();
  at::Tensor normal = at::matmul(weighted, signs).to(at::kDouble);
  const at::Tensor right = at::matmul(weighted, groups.weight.unsqueeze(-1)).to(at::kDouble);
  const at::Tensor diagonal = normal.diagonal(0, -2, -1);
  diagonal.add_(diagonal.mean(-1, true) * kRidge + kTiny);
  const at::Tensor factor = std::get<0>(at::linalg_cholesky_ex(normal));
  const at::Tensor z = at::linalg_solve_triangular(factor, right, /*upper=*/false).squeeze(-1);
  const at::Tensor whole = (groups.weight.square() * groups.curvature).sum(-1, true, at::kDouble);
  // A prefix sum in a fixed order on every device.
  const at::Tensor prefixes = at::ones({planes + 1, planes + 1}, z.options()).triu();
  return at::nan_to_num(whole - at::matmul(z.square(), prefixes), 0.0).clamp_min(0.0);
}

at::Tensor range_codes(const Groups& groups, at::IntArrayRef precisions) {
  const auto parent = static_cast<int>(precisions.back());
  const int lowest = static_cast<int>(precisions.front());
  const int widest = std::max(lowest, std::min(parent, kWidestJudged));
  const auto [low, high] = at::aminmax(groups.weight, 2, true);
  const at::Tensor middle = (low + high) * 0.5, half = (high - low) * 0.5;
  const Groups centred{groups.weight - middle, groups.curvature};
  std::vector<at::Tensor> codes, errors;
  for (const double part : kParts) {
    const at::Tensor reach = half * part;
    const at::Tensor step = (reach * (2.0 / (1 << parent))).clamp_min(kTiny);
    codes.push_back(
        ((centred.weight + reach) / step).floor_().clamp_(0.0, (1 << parent) - 1).to(at::kByte));
    errors.push_back(errors_of(centred, codes.back(), parent, widest));
  }
  const at::Tensor all = at::stack(errors);  // [parts, n, G, widest + 1]
  const at::Tensor least = all.amin(0).clamp_min(kTiny);
  at::Tensor cost = at::zeros_like(all.select(3, 0));
  for (const std::int64_t b : precisions) {
    if (b > widest) break;
    cost.add_(all.select(3, b) / least.select(2, b), 1.0 / (1 << (b - lowest)));
  }
  const at::Tensor best = cost.argmin(0, true).unsqueeze(3);  // [1, n, G, 1]
  const at::Tensor stacked = at::stack(codes);
  return stacked.gather(0, best.expand_as(stacked.narrow(0, 0, 1))).squeeze(0);
}

at::Tensor greedy_codes(const Groups& groups, int parent) {
  const at::Tensor mass = groups.curvature.sum(1, true).clamp_min(kTiny);  // [G, 1]
  const auto mean = [&](const at::Tensor& numbers) {
    return (numbers * groups.curvature).sum(2, true) / mass;
  };
  at::Tensor left = groups.weight - mean(groups.weight);
  at::Tensor codes = at::zeros(left.sizes(), left.options().dtype(at::kByte));
  for (int i = 0; i < parent; ++i) {
    const at::Tensor positive = left > 0.0;
    const at::Tensor scale = mean(left.abs());
    codes.add_(positive.to(at::kByte), 1 << (parent - 1 - i));
    left = left - at::where(positive, scale, -scale);
  }
  return codes;
}

void check(const at::Tensor& weight, const at::Tensor& curvature, std::int64_t group_size,
           at::IntArrayRef precisions, std::string_view start) {
  check_weight(weight);
  TORCH_CHECK_TYPE(curvature.scalar_type() == at::kFloat, "curvature: found dtype ",
                   curvature.scalar_type(), ", wanted float32");
  TORCH_CHECK_VALUE(curvature.dim() == 1 && curvature.size(0) == weight.size(1),
                    "curvature: found shape ", curvature.sizes(), ", wanted [", weight.size(1),
                    "]");
  TORCH_CHECK_VALUE(curvature.device() == weight.device(), "curvature is on ", curvature.device(),
                    ", weight on ", weight.device());
  TORCH_CHECK_VALUE(weight.isfinite().all().item<bool>(), "weight: found NaN or infinity");
  TORCH_CHECK_VALUE(curvature.isfinite().all().item<bool>() && curvature.min().item<float>() >= 0,
                    "curvature: found NaN, infinity or a negative number, wanted numbers of at "
                    "least 0");
  TORCH_CHECK_VALUE(group_size >= 0 && group_size % 32 == 0, "group_size: found ", group_size,
                    ", wanted 0 (the whole row) or a positive multiple of 32");
  check_precisions(precisions);
  TORCH_CHECK_VALUE(start == "range" || start == "greedy", "start: found \"", start,
                    "\", wanted range or greedy");
}

at::Tensor binary_codes(const at::Tensor& weight, const at::Tensor& curvature,
                        std::int64_t group_size, at::IntArrayRef precisions,
                        std::string_view start) {
  check(weight, curvature, group_size, precisions, start);
  const c10::DeviceGuard device(weight.device());
  const FullPrecision full_precision(weight);
  const std::int64_t n = weight.size(0), k = weight.size(1);
  at::Tensor codes = at::empty({n, k}, weight.options().dtype(at::kByte));
  const std::int64_t chunk =
      weight.is_cpu() ? kThreadRows : std::max<std::int64_t>(1, kDeviceBytes / (128 * k));
  for_chunks(weight.is_cpu(), n, chunk, [&](std::int64_t begin, std::int64_t count) {
    const Groups groups = grouped(weight.narrow(0, begin, count), curvature, group_size);
    const at::Tensor found = start == "greedy"
                                 ? greedy_codes(groups, static_cast<int>(precisions.back()))
                                 : range_codes(groups, precisions);
    codes.narrow(0, begin, count).copy_(found.view({count, -1}).narrow(1, 0, k));
  });
  return codes;
}

}  // namespace
}  // namespace anyprec::fit

TORCH_LIBRARY_IMPL(anyprec, CPU, m) { m.impl("binary_codes", &anyprec::fit::binary_codes); }
#ifdef ANYPREC_FIT_ON_CUDA
TORCH_LIBRARY_IMPL(anyprec, CUDA, m) { m.impl("binary_codes", &anyprec::fit::binary_codes); }
#endif
