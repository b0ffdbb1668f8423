#include "src/fit/sweep.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "src/fit/conjugate_gradients.h"
#include "src/fit/device.h"

namespace anyprec::fit {
namespace {

constexpr std::int64_t kColumns = cpu::kSweepColumns;
// Columns whose steps reach the columns behind them in one product: the fewer of these, the less
// often all of the state is read and written.
constexpr std::int64_t kPanel = 512;

at::Tensor padded(const at::Tensor& values) {
  const std::int64_t entries = values.size(2);
  if (entries >= cpu::kTableLanes) return values.contiguous();
  return values.repeat({1, 1, cpu::kTableLanes / entries});
}

/// Weights of the cost that sum to one in every row.
at::Tensor shares(const std::vector<at::Tensor>& weights) {
  const at::Tensor all = at::stack(weights);
  return (all / all.sum(0, true).clamp_min(1e-300)).to(at::kFloat).contiguous();
}

/// H (w - q) of a sweep's codes.
at::Tensor pull(const Rows& rows, const Metric& metric, Codebooks codebooks) {
  std::vector<Codebook*> all;
  for (auto& [precision, codebook] : codebooks) all.push_back(&codebook);
  return errors_of(rows, metric, all).pulled;
}

}  // namespace

at::Tensor sweep(Sweep kind, const Rows& rows, const Metric& metric, const Codebooks& codebooks,
                 const std::vector<at::Tensor>& weights, const at::Tensor& pulled) {
  const std::int64_t n = rows.count(), k = rows.weight.size(1);
  const auto widths = static_cast<std::int64_t>(codebooks.size());
  const bool feedback = kind == Sweep::kErrorFeedback;
  const at::Tensor& coupling = feedback ? metric.feedback : metric.hessian;
  at::Tensor state;
  if (feedback) {
    state = rows.weight.expand({widths, n, k}).clone(at::MemoryFormat::Contiguous);
  } else {
    state = pulled.defined() ? pulled.clone() : pull(rows, metric, codebooks);
  }
  const at::Tensor codes = rows.codes.clone();
  const std::int64_t panel = std::min(kPanel, k);
  const at::Tensor steps = at::empty({widths, n, panel}, state.options());
  const at::Tensor cost_weights = shares(weights);

  cpu::SweepBlock block{};
  block.widths = static_cast<int>(widths);
  block.rows = n;
  block.stride = block.coupling_stride = k;
  block.step_stride = panel;
  block.codebooks = static_cast<int>(metric.codebooks);
  block.newest_bit_only = kind == Sweep::kNewestBit;
  block.weights = cost_weights.const_data_ptr<float>();
  std::vector<at::Tensor> tables;
  for (const auto& [precision, codebook] : codebooks) {
    const auto w = tables.size();
    tables.push_back(padded(codebook.values()));
    block.precisions[w] = precision;
    block.tables[w] = tables.back().const_data_ptr<float>();
  }

  const at::Tensor flat = state.view({widths * n, k});
  const at::Tensor flat_steps = steps.view({widths * n, panel});
  // The steps of columns [begin, end), which are at `at` of the panel, reach columns [end, until).
  const auto spread = [&](std::int64_t at, std::int64_t begin, std::int64_t end,
                          std::int64_t until) {
    if (end == until) return;
    product(flat_steps.narrow(1, at, end - begin),
            coupling.narrow(0, begin, end - begin).narrow(1, end, until - end), Accuracy::kFast,
            flat.narrow(1, end, until - end), /*add=*/true);
  };
  for (std::int64_t first = 0; first < k; first += panel) {
    const std::int64_t last = std::min(k, first + panel);
    for (std::int64_t begin = first; begin < last; begin += kColumns) {
      const std::int64_t end = std::min(last, begin + kColumns);
      block.state = state.const_data_ptr<float>() + begin;
      block.steps = steps.mutable_data_ptr<float>() + (begin - first);
      block.codes = codes.mutable_data_ptr<std::uint8_t>() + begin;
      block.coupling = coupling.const_data_ptr<float>() + begin * k + begin;
      block.inverse_diagonal =
          feedback ? nullptr : metric.inverse_diagonal.const_data_ptr<float>() + begin;
      block.groups = metric.groups.const_data_ptr<std::int32_t>() + begin;
      block.columns = static_cast<int>(end - begin);
      run_sweep(block, state.device());
      spread(begin - first, begin, end, last);
    }
    spread(0, first, last, k);
  }
  return codes;
}

}  // namespace anyprec::fit
