#include <cstdint>

#include "kernels/cuda/fit_sweep.h"

namespace anyprec::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kRowsPerBlock = 4;
constexpr int kWidths = cpu::kSweepWidths;
constexpr unsigned kAll = 0xffffffffu;

/// One warp a row. A lane holds the state of columns `lane` and `lane + 32`, and looks at the codes
/// lane, lane + 32, ... of `Codes` times 32.
template <int Codes>
__global__ void __launch_bounds__(kLanes* kRowsPerBlock) sweep_kernel(const cpu::SweepBlock block) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock +
                           static_cast<int>(threadIdx.x) / kLanes;
  if (row >= block.rows) return;
  const int parent = block.precisions[block.widths - 1];
  const float* tables[kWidths];
  float weights[kWidths], low[kWidths], high[kWidths], target[kWidths], reference[kWidths];
#pragma unroll
  for (int w = 0; w < kWidths; ++w) {
    if (w >= block.widths) continue;
    tables[w] = block.tables[w] + row * block.codebooks * cpu::padded_entries(block.precisions[w]);
    weights[w] = block.weights[w * block.rows + row];
    const float* from = block.state + (w * block.rows + row) * block.stride;
    low[w] = lane < block.columns ? from[lane] : 0.0f;
    high[w] = lane + kLanes < block.columns ? from[lane + kLanes] : 0.0f;
  }
  std::uint8_t* codes = block.codes + row * block.stride;

  for (int j = 0; j < block.columns; ++j) {
    const int old = codes[j];
    const std::int64_t group = block.groups[j];
#pragma unroll
    for (int w = 0; w < kWidths; ++w) {
      if (w >= block.widths) continue;
      const float state = __shfl_sync(kAll, j < kLanes ? low[w] : high[w], j % kLanes);
      if (block.inverse_diagonal == nullptr) {
        reference[w] = target[w] = state;
      } else {
        const int b = block.precisions[w];
        reference[w] = tables[w][group * cpu::padded_entries(b) + (old & ((1 << b) - 1))];
        target[w] = reference[w] + state * block.inverse_diagonal[j];
      }
    }
    float best = __int_as_float(0x7f800000);  // infinity
    int code = 0;
#pragma unroll
    for (int i = 0; i < Codes; ++i) {
      const int candidate = i * kLanes + lane;
      const int half = 1 << (parent - 1);
      if (candidate >= 2 * half) continue;
      if (block.newest_bit_only && ((candidate ^ old) & (half - 1)) != 0) continue;
      float cost = 0.0f;
#pragma unroll
      for (int w = 0; w < kWidths; ++w) {
        if (w >= block.widths) continue;
        const int b = block.precisions[w];
        const float distance =
            target[w] - tables[w][group * cpu::padded_entries(b) + (candidate & ((1 << b) - 1))];
        cost += weights[w] * distance * distance;
      }
      if (cost < best) {
        best = cost;
        code = candidate;
      }
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAll, best, offset);
      const int other_code = __shfl_xor_sync(kAll, code, offset);
      if (other < best || (other == best && other_code < code)) {
        best = other;
        code = other_code;
      }
    }
    __syncwarp();  // all lanes have read the old code
    if (lane == 0) codes[j] = static_cast<std::uint8_t>(code);
    const float* coupling = block.coupling + j * cpu::kSweepColumns;
    const float to_low = coupling[lane], to_high = coupling[lane + kLanes];
#pragma unroll
    for (int w = 0; w < kWidths; ++w) {
      if (w >= block.widths) continue;
      const int b = block.precisions[w];
      const float step =
          reference[w] - tables[w][group * cpu::padded_entries(b) + (code & ((1 << b) - 1))];
      if (lane == 0) block.steps[(w * block.rows + row) * cpu::kSweepColumns + j] = step;
      low[w] += step * to_low;
      high[w] += step * to_high;
    }
  }
}

}  // namespace

cudaError_t fit_sweep(const cpu::SweepBlock& block, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((block.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  constexpr int kThreads = kLanes * kRowsPerBlock;
  switch (block.precisions[block.widths - 1]) {
    case 8:
      sweep_kernel<8><<<blocks, kThreads, 0, stream>>>(block);
      break;
    case 7:
      sweep_kernel<4><<<blocks, kThreads, 0, stream>>>(block);
      break;
    case 6:
      sweep_kernel<2><<<blocks, kThreads, 0, stream>>>(block);
      break;
    default:
      sweep_kernel<1><<<blocks, kThreads, 0, stream>>>(block);
  }
  return cudaGetLastError();
}

}  // namespace anyprec::cuda
