#include "kernels/cpu/fit_refit.h"

#include <vector>

#include "kernels/cpu/fit_refit_row.h"

namespace anyprec::cpu {
namespace {

struct OneLane {
  static constexpr int kLanes = 1;
  static int lane() { return 0; }
  static double sum(double number) { return number; }
  static void sync() {}
  using Moved = float;
  static float unit(float) { return 1.0f; }
};

template <class Body>
void each_row(const RefitRows& rows, const Body& body) {
  for (int w = rows.first; w < rows.widths; ++w) {
    std::vector<float> scratch(refit_scratch(rows.width[w].precision, OneLane::kLanes));
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      RefitRow<OneLane> one(OneLane{}, rows, w, row, scratch.data());
      body(one);
    }
  }
}

void error(const RefitRows& rows) {
  each_row(rows, [&](RefitRow<OneLane>& row) {
    row.error([&](std::int64_t at, float error) { rows.error[at] = error; });
  });
}

void begin(const RefitRows& rows, float ridge_share, float least_ridge) {
  each_row(rows, [&](RefitRow<OneLane>& row) { row.begin(ridge_share, least_ridge); });
}

void step(const RefitRows& rows, bool last) {
  each_row(rows, [&](RefitRow<OneLane>& row) { row.step(last); });
}

}  // namespace

const RefitKernels& refit_kernels() {
  static constexpr RefitKernels kKernels{error, begin, step};
  return kKernels;
}

}  // namespace anyprec::cpu
