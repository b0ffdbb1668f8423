#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "src/fit/checks.h"
#include "src/fit/chunks.h"
#include "src/fit/conjugate_gradients.h"
#include "src/fit/fit_rows.h"
#include "src/ops/errors.h"

namespace anyprec::fit {
namespace {

// What the rows that a GPU has at once take, about (python/anyprec/calibration_plan.py reckons with
// it); and what each of their weights does, in full tables and hybrids of five precisions.
constexpr std::int64_t kDeviceBytes = std::int64_t{4} << 30;
constexpr std::int64_t kDeviceBytesOfWeight = 150;

using Result = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor>;

struct Arguments {
  const at::Tensor& weight;
  const at::Tensor& codes;  ///< [starts, N, K]
  const at::Tensor& hessian;
};

void check_tensors(const Arguments& a, int parent) {
  const at::Tensor& w = a.weight;
  check_weight(w);
  TORCH_CHECK_TYPE(a.codes.scalar_type() == at::kByte, "codes: found dtype ", a.codes.scalar_type(),
                   ", wanted uint8");
  TORCH_CHECK_VALUE(
      a.codes.dim() == 3 && a.codes.size(0) > 0 && a.codes.sizes().slice(1) == w.sizes(),
      "codes: found shape ", a.codes.sizes(), ", wanted ", w.sizes(),
      " like weight, or several of them");
  TORCH_CHECK_TYPE(a.hessian.scalar_type() == at::kFloat, "hessian: found dtype ",
                   a.hessian.scalar_type(), ", wanted float32");
  TORCH_CHECK_VALUE(
      a.hessian.dim() == 2 && a.hessian.size(0) == w.size(1) && a.hessian.size(1) == w.size(1),
      "hessian: found shape ", a.hessian.sizes(), ", wanted [", w.size(1), ", ", w.size(1), "]");
  for (const auto& [name, tensor] :
       {std::pair{"codes", a.codes}, std::pair{"hessian", a.hessian}}) {
    TORCH_CHECK_VALUE(tensor.device() == w.device(), name, " is on ", tensor.device(),
                      ", weight on ", w.device());
  }
  TORCH_CHECK_VALUE(w.isfinite().all().item<bool>(), "weight: found NaN or infinity");
  TORCH_CHECK_VALUE(a.hessian.isfinite().all().item<bool>(), "hessian: found NaN or infinity");
  const int largest = a.codes.max().item<std::uint8_t>();
  TORCH_CHECK_VALUE(largest < (1 << parent), "codes: found ", largest, ", wanted less than ",
                    1 << parent, " at parent precision ", parent);
}

Plan check_plan(std::int64_t lut_bits, std::string_view cell_groups, std::int64_t group_size,
                at::IntArrayRef precisions, std::int64_t seed_precision, at::ArrayRef<double> taus,
                std::int64_t rounds, std::int64_t child_sweeps) {
  Plan plan;
  check_precisions(precisions);
  plan.precisions.assign(precisions.begin(), precisions.end());
  TORCH_CHECK_VALUE(seed_precision >= precisions.front() && seed_precision <= precisions.back(),
                    "seed_precision: found ", seed_precision, ", wanted ", precisions.front(),
                    " to ", precisions.back());
  TORCH_CHECK_VALUE(taus.size() == precisions.size(), "taus: found ", taus.size(),
                    " numbers, wanted one for each of the ", precisions.size(), " precisions");
  for (std::size_t i = 0; i < taus.size(); ++i) {
    TORCH_CHECK_VALUE(std::isfinite(taus[i]) && taus[i] >= 0.0, "taus[", i, "]: found ", taus[i],
                      ", wanted a finite number of at least 0");
    if (taus[i] > 0.0) plan.taus.emplace(plan.precisions[i], taus[i]);
  }
  for (const auto& [name, count] :
       {std::pair{"rounds", rounds}, std::pair{"child_sweeps", child_sweeps}}) {
    TORCH_CHECK_VALUE(count >= 0 && count <= 1000, name, ": found ", count, ", wanted 0 to 1000");
  }
  TORCH_CHECK_VALUE(rounds == 0 || !plan.taus.empty(),
                    "taus: found zeros only, wanted a positive one where rounds is ", rounds);
  plan.rounds = static_cast<int>(rounds);
  plan.child_sweeps = static_cast<int>(child_sweeps);
  TORCH_CHECK_VALUE(lut_bits >= 0 && lut_bits <= kMaxPrecision, "lut_bits: found ", lut_bits,
                    ", wanted 0 to 8");
  ops::as_value_error([&] {
    plan.form.lut_bits = static_cast<int>(lut_bits);
    plan.form.cell_groups = parse_cell_groups(cell_groups);
    plan.form.group_size = group_size;
    plan.form.validate();
  });
  return plan;
}

/// libtorch's factorizations split their sums by threads: one thread makes the metric.
Metric metric_of(const at::Tensor& hessian, const Plan& plan) {
  Metric metric;
  // Two chunks, as a single one would not be a parallel region.
  for_chunks(hessian.is_cpu(), hessian.is_cpu() ? 2 : 1, 1, [&](std::int64_t i, std::int64_t) {
    if (i == 0) metric = make_metric(hessian, plan.form.group_size, plan.descends());
  });
  return metric;
}

/// About what a row of a chunk takes on a GPU.
std::int64_t row_bytes(const Metric& metric, const Plan& plan) {
  const std::int64_t k = metric.hessian.size(0);
  if (plan.form.lut_bits > 0 && metric.codebooks == 1) return kDeviceBytesOfWeight * k;
  // By groups (refit_by_groups.h): three copies of the design, and normal matrices.
  const std::int64_t slots = std::min<std::int64_t>(metric.codebooks << plan.parent(), 256);
  const std::int64_t each = plan.form.lut_entries(plan.parent()) +
                            plan.form.sign_planes(plan.parent()) * plan.form.classes();
  return (128 + 16 * std::min<std::int64_t>(each, 16)) * k + 40 * slots * slots;
}

/// A GPU's rows go in as few chunks as there must be, alike in size: a sweep has a warp for each
/// row of a chunk, and few of them leave it idle.
std::int64_t chunk_rows(const Metric& metric, const Plan& plan, std::int64_t rows) {
  if (metric.hessian.is_cpu()) return kThreadRows;
  const std::int64_t bytes = rows * row_bytes(metric, plan);
  const std::int64_t chunks = std::max<std::int64_t>(1, (bytes + kDeviceBytes - 1) / kDeviceBytes);
  return (rows + chunks - 1) / chunks;
}

Result fit(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& hessian,
           std::int64_t lut_bits, std::string_view cell_groups, std::int64_t group_size,
           at::IntArrayRef precisions, std::int64_t seed_precision, at::ArrayRef<double> taus,
           std::int64_t rounds, std::int64_t child_sweeps) {
  const Plan plan = check_plan(lut_bits, cell_groups, group_size, precisions, seed_precision, taus,
                               rounds, child_sweeps);
  const at::Tensor starts = codes.dim() == 2 ? codes.unsqueeze(0) : codes;
  check_tensors({weight, starts, hessian}, plan.parent());
  TORCH_CHECK_VALUE(starts.size(0) == 1 || plan.descends(), "codes: found ", starts.size(0),
                    " to begin with, wanted one where there is no descent");
  const c10::DeviceGuard device(weight.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Metric metric = metric_of(hessian, plan);
  const std::int64_t n = weight.size(0), k = weight.size(1);
  const at::Tensor reversal = bit_reversal(plan.parent(), weight.device()).to(at::kByte);

  at::Tensor fitted = at::empty({n, k}, codes.options());
  std::vector<at::Tensor> luts, alphas;
  for (const int b : plan.precisions) {
    const auto options = weight.options();
    luts.push_back(at::empty({n, metric.codebooks, plan.form.lut_entries(b)}, options));
    alphas.push_back(
        at::empty({n, metric.codebooks, plan.form.sign_planes(b), plan.form.classes()}, options));
  }
  const auto widths = static_cast<std::int64_t>(plan.precisions.size());
  at::Tensor energies = at::zeros({widths, n}, weight.options().dtype(at::kDouble));
  const auto fit_chunk = [&](std::int64_t begin, std::int64_t count) {
    const auto in_order = [&](const at::Tensor& matrix) {
      return matrix.narrow(0, begin, count).index_select(1, metric.order);
    };
    const auto reversed = [&](const at::Tensor& numbers) {
      return reversal.index_select(0, numbers.flatten().to(at::kLong)).view_as(numbers);
    };
    std::vector<at::Tensor> others;
    for (std::int64_t i = 1; i < starts.size(0); ++i) {
      others.push_back(reversed(in_order(starts[i])));
    }
    Rows rows{in_order(weight), reversed(in_order(starts[0]))};
    Codebooks codebooks = fit_rows(rows, others, metric, plan);
    fitted.narrow(0, begin, count).index_copy_(1, metric.order, reversed(rows.codes));
    std::vector<Codebook*> all;
    for (std::int64_t i = 0; i < widths; ++i) {
      Codebook& codebook = codebooks.at(plan.precisions[i]);
      luts[i].narrow(0, begin, count).copy_(codebook.basis.table(codebook.coefficients));
      alphas[i].narrow(0, begin, count).copy_(codebook.basis.alphas(codebook.coefficients));
      codebook.coefficients = codebook.coefficients.to(at::kHalf).to(at::kFloat);
      all.push_back(&codebook);
    }
    errors_of(rows, metric, all);
    for (std::int64_t i = 0; i < widths; ++i) {
      energies[i].narrow(0, begin, count).copy_(all[i]->energies);
    }
  };
  for_chunks(weight.is_cpu(), n, chunk_rows(metric, plan, n), fit_chunk);
  return {fitted, luts, alphas, energies.sum(1) * metric.scale};
}

}  // namespace
}  // namespace anyprec::fit

TORCH_LIBRARY_IMPL(anyprec, CPU, m) { m.impl("fit", &anyprec::fit::fit); }
#ifdef ANYPREC_FIT_ON_CUDA
TORCH_LIBRARY_IMPL(anyprec, CUDA, m) { m.impl("fit", &anyprec::fit::fit); }
#endif
