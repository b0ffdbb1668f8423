#include "src/fit/refit.h"

#include <ATen/ATen.h>

#include <vector>

#include "src/fit/conjugate_gradients.h"
#include "src/fit/device.h"
#include "src/fit/least_squares.h"
#include "src/fit/refit_by_groups.h"
#include "src/fit/segment_sums.h"

namespace anyprec::fit {
namespace {

constexpr std::int64_t kDirectUnknowns = 64;
constexpr std::int64_t kDirectSlots = 256;
struct Steps {
  int tables;
  int planes;  ///< coefficients of signed planes overlap: more steps to part them
  int groups;  ///< of codebooks that go by groups
};

Steps steps_of(Effort effort) {
  switch (effort) {
    case Effort::kRough:
      return {.tables = 2, .planes = 18, .groups = 6};
    case Effort::kFinal:
      return {.tables = 8, .planes = 36, .groups = 12};
    default:
      return {.tables = 12, .planes = 36, .groups = 12};
  }
}

bool is_direct(const Basis& basis, const Metric& metric) {
  return metric.hessian.is_cpu() && metric.codebooks * basis.coefficients() <= kDirectUnknowns &&
         metric.codebooks * basis.values() <= kDirectSlots;
}

/// From precision b + 1 to b: the children of code c are c and c + 2^b.
at::Tensor merge(const at::Tensor& normal) {
  const std::int64_t n = normal.size(0), groups = normal.size(1), half = normal.size(2) / 2;
  return normal.reshape({n, groups, 2, half, groups, 2, half}).sum({2, 5});
}

}  // namespace

at::Tensor refit(const Rows& rows, const Metric& metric, Codebooks& codebooks, Effort effort) {
  const Steps steps = steps_of(effort);
  std::vector<Codebook*> by_groups, directly, by_gradients;
  for (auto& [precision, codebook] : codebooks) {
    auto& way = is_by_groups(codebook.basis, metric) ? by_groups
                : is_direct(codebook.basis, metric)  ? directly
                                                     : by_gradients;
    way.push_back(&codebook);
  }
  refit_by_groups(rows, metric, by_groups, steps.groups);
  if (!directly.empty()) {
    const std::vector<at::Tensor> gradients = errors_of(rows, metric, directly).gradients;
    at::Tensor normal = segment_sums(rows, metric, directly.back()->basis.precision());
    for (std::size_t i = directly.size(); i-- > 0;) {
      while (normal.size(2) > directly[i]->basis.values()) normal = merge(normal);
      Codebook& codebook = *directly[i];
      solve_directly(codebook, gradients[i], codebook.basis.project_normal(normal));
    }
  }
  if (by_gradients.empty()) return {};
  const bool has_planes = !by_gradients.back()->basis.is_identity();
  const at::Tensor pulled =
      refit_by_gradients(rows, metric, by_gradients, has_planes ? steps.planes : steps.tables);
  return by_gradients.size() == codebooks.size() ? pulled : at::Tensor();
}

}  // namespace anyprec::fit
