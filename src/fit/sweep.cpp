#include "src/fit/sweep.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/cpu/fit_sweep.h"
#ifdef ANYPREC_FIT_ON_CUDA
#include "src/fit/sweep_cuda.h"
#endif

namespace anyprec::fit {
namespace {

void sweep_block(const cpu::SweepBlock& block, const at::Device& device) {
#ifdef ANYPREC_FIT_ON_CUDA
  if (device.is_cuda()) return sweep_on_gpu(block);
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(device.is_cpu(), "fit: found tensors on ", device,
                              ", and this build has a kernel for the CPU only");
  cpu::fit_kernels().sweep(block);
}

constexpr std::int64_t kColumns = cpu::kSweepColumns;

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

}  // namespace

at::Tensor sweep(Sweep kind, const Rows& rows, const Metric& metric, const Codebooks& codebooks,
                 const std::vector<at::Tensor>& weights) {
  const std::int64_t n = rows.count(), k = rows.weight.size(1);
  const auto widths = static_cast<std::int64_t>(codebooks.size());
  const bool feedback = kind == Sweep::kErrorFeedback;
  const at::Tensor& coupling = feedback ? metric.feedback : metric.hessian;
  cpu::SweepBlock block{};
  block.widths = static_cast<int>(widths);
  block.rows = n;
  block.stride = k;
  block.codebooks = static_cast<int>(metric.codebooks);
  block.newest_bit_only = kind == Sweep::kNewestBit;

  at::Tensor state = at::empty({widths, n, k}, rows.weight.options());
  std::vector<at::Tensor> tables;
  for (const auto& [precision, codebook] : codebooks) {
    const auto w = static_cast<std::int64_t>(tables.size());
    const at::Tensor values = codebook.values();
    tables.push_back(padded(values));
    block.precisions[w] = precision;
    block.tables[w] = tables.back().const_data_ptr<float>();
    if (feedback) {
      state[w].copy_(rows.weight);
    } else {
      const at::Tensor error =
          rows.weight - gather_values(values, slots_of(rows.codes, metric, precision));
      at::Tensor to = state[w];
      at::matmul_out(to, error, metric.hessian);
    }
  }
  const at::Tensor cost_weights = shares(weights);
  const at::Tensor codes = rows.codes.clone();
  at::Tensor steps = at::empty({widths, n, kColumns}, state.options());
  at::Tensor square = at::zeros({kColumns, kColumns}, state.options());
  block.weights = cost_weights.const_data_ptr<float>();
  block.steps = steps.mutable_data_ptr<float>();
  block.coupling = square.const_data_ptr<float>();
  const at::Tensor flat = state.view({widths * n, k});
  for (std::int64_t begin = 0; begin < k; begin += kColumns) {
    const std::int64_t columns = std::min(kColumns, k - begin), end = begin + columns;
    if (columns < kColumns) square.zero_();
    square.narrow(0, 0, columns)
        .narrow(1, 0, columns)
        .copy_(coupling.narrow(0, begin, columns).narrow(1, begin, columns));
    block.state = state.mutable_data_ptr<float>() + begin;
    block.codes = codes.mutable_data_ptr<std::uint8_t>() + begin;
    block.inverse_diagonal =
        feedback ? nullptr : metric.inverse_diagonal.const_data_ptr<float>() + begin;
    block.groups = metric.groups.const_data_ptr<std::int32_t>() + begin;
    block.columns = static_cast<int>(columns);
    sweep_block(block, state.device());
    if (end == k) break;
    flat.narrow(1, end, k - end)
        .addmm_(steps.view({widths * n, kColumns}).narrow(1, 0, columns),
                coupling.narrow(0, begin, columns).narrow(1, end, k - end));
  }
  return codes;
}

}  // namespace anyprec::fit
