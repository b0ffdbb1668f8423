#include "src/fit/conjugate_gradients.h"

#include <ATen/ATen.h>

#include "src/fit/device.h"

namespace anyprec::fit {
namespace {

/// The kernels' view of codebooks, with what they need of memory.
class Solver {
 public:
  Solver(const Rows& rows, const Metric& metric, const std::vector<Codebook*>& codebooks)
      : metric_(metric), codebooks_(codebooks), device_(rows.weight.device()) {
    TORCH_INTERNAL_ASSERT(!codebooks.empty() && codebooks.size() <= cpu::kRefitWidths);
    view_ = view_of(rows, metric);
    view_.widths = static_cast<int>(codebooks.size());
    const std::vector<std::int64_t> shape{view_.widths, view_.rows, view_.columns};
    pulled_ = at::empty(shape, rows.weight.options());
    const bool on_cpu = device_.is_cpu();
    moved_ = at::empty(shape, rows.weight.options().dtype(on_cpu ? at::kFloat : at::kHalf));
    view_.pulled = pulled_.mutable_data_ptr<float>();
    view_.moved = moved_.mutable_data_ptr();
    view_.error = on_cpu ? moved_.mutable_data_ptr<float>() : nullptr;
    for (std::size_t w = 0; w < codebooks.size(); ++w) add(view_.width[w], *codebooks[w]);
  }

  const at::Tensor& pulled() const { return pulled_; }

  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& vectors : vectors_) gradients.push_back(vectors[0]);
    return gradients;
  }

  void begin() {
    run_error_product(view_, metric_.hessian, metric_.split, moved_, pulled_);
    run_refit_begin(view_, kRidge, kLeastRidge, device_);
  }

  void solve(int steps) {
    const at::Tensor product_of = at::empty_like(pulled_);
    view_.product = product_of.const_data_ptr<float>();
    for (int step = 0; step < steps; ++step) {
      // As many steps as there are unknowns solve a system, and precisions are rising.
      while (view_.first < view_.widths && unknowns(view_.first) <= step) ++view_.first;
      if (view_.first == view_.widths) break;
      const auto left = [&](const at::Tensor& matrices) {
        return matrices.slice(0, view_.first).flatten(0, 1);
      };
      step_product(left(moved_), metric_.hessian, metric_.split, left(product_of));
      run_refit_step(view_, step + 1 == steps, device_);
    }
  }

 private:
  static constexpr int kVectors = 5;

  std::int64_t unknowns(int width) const {
    return std::int64_t{view_.codebooks} * view_.width[width].unknowns;
  }

  void add(cpu::RefitWidth& width, Codebook& codebook) {
    const Basis& basis = codebook.basis;
    const std::int64_t n = view_.rows, unknowns = view_.codebooks * basis.coefficients();
    codebook.coefficients = codebook.coefficients.clone(at::MemoryFormat::Contiguous);
    codebook.energies = at::empty({n}, codebook.coefficients.options().dtype(at::kDouble));
    const at::Tensor vectors =
        at::empty({kVectors, n, view_.codebooks, basis.coefficients()}, pulled_.options());
    const at::Tensor by_row = at::empty({2, n}, pulled_.options());
    vectors_.push_back(vectors);
    by_row_.push_back(by_row);
    auto* const numbers = vectors.mutable_data_ptr<float>();
    width.precision = basis.precision();
    width.unknowns = static_cast<int>(basis.coefficients());
    width.basis = basis.is_identity() ? nullptr : basis.matrix().const_data_ptr<float>();
    width.coefficients = codebook.coefficients.mutable_data_ptr<float>();
    width.energies = codebook.energies.mutable_data_ptr<double>();
    float** const places[kVectors] = {&width.gradient, &width.left, &width.direction, &width.scale,
                                      &width.turned};
    for (int i = 0; i < kVectors; ++i) *places[i] = numbers + i * n * unknowns;
    width.ridge = by_row.mutable_data_ptr<float>();
    width.unit = width.ridge + n;
  }

  const Metric& metric_;
  const std::vector<Codebook*>& codebooks_;
  at::Device device_;
  cpu::RefitRows view_{};
  at::Tensor pulled_, moved_;
  std::vector<at::Tensor> vectors_, by_row_;
};

}  // namespace

at::Tensor refit_by_gradients(const Rows& rows, const Metric& metric,
                              const std::vector<Codebook*>& codebooks, int steps) {
  Solver solver(rows, metric, codebooks);
  solver.begin();
  solver.solve(steps);
  return solver.pulled();
}

Errors errors_of(const Rows& rows, const Metric& metric, const std::vector<Codebook*>& codebooks) {
  Solver solver(rows, metric, codebooks);
  solver.begin();
  return {.pulled = solver.pulled(), .gradients = solver.gradients()};
}

}  // namespace anyprec::fit
