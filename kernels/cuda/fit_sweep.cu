#include <cstdint>

#include "kernels/cuda/fit_sweep.h"

namespace anyprec::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kRowsPerBlock = 4;
constexpr int kThreads = kLanes * kRowsPerBlock;
constexpr int kWidths = cpu::kSweepWidths;
constexpr int kColumns = cpu::kSweepColumns;
constexpr unsigned kAll = 0xffffffffu;

/// The smallest of numbers of at least 0, whose bits are in their order.
__device__ __forceinline__ float least_of(float number) {
#if __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_min_sync(kAll, __float_as_uint(number)));
#else
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    number = fminf(number, __shfl_xor_sync(kAll, number, offset));
  }
  return number;
#endif
}

/// A number of each of a block's columns, two a lane.
template <class T>
struct Columns {
  T low, high;

  /// That of column j, in all lanes.
  __device__ __forceinline__ T operator[](int j) const {
    return __shfl_sync(kAll, j < kLanes ? low : high, j % kLanes);
  }
  __device__ __forceinline__ void set(int j, int lane, T value) {
    if (lane == j % kLanes) (j < kLanes ? low : high) = value;
  }
  template <class From>
  static __device__ __forceinline__ Columns load(const From* from, int lane, int columns) {
    return {lane < columns ? static_cast<T>(from[lane]) : T{},
            lane + kLanes < columns ? static_cast<T>(from[lane + kLanes]) : T{}};
  }
  template <class To>
  __device__ __forceinline__ void store(To* to, int lane, int columns) const {
    if (lane < columns) to[lane] = static_cast<To>(low);
    if (lane + kLanes < columns) to[lane + kLanes] = static_cast<To>(high);
  }
};

/// One warp a row. A lane holds the state of two columns, and looks at the codes lane, lane + 32,
/// ... of `Codes` times 32; with one codebook a row, its values stay in registers. Widths: at most.
template <int Widths, int Codes, bool OneCodebook, bool NewestBit>
__global__ void __launch_bounds__(kThreads) sweep_kernel(const cpu::SweepBlock block) {
  __shared__ float coupling[kColumns][kColumns];
  const int columns = block.columns;
  for (int at = static_cast<int>(threadIdx.x); at < kColumns * kColumns; at += kThreads) {
    const int i = at / kColumns, j = at % kColumns;
    coupling[i][j] =
        i < columns && j < columns ? block.coupling[i * block.coupling_stride + j] : 0.0f;
  }
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock +
                           static_cast<int>(threadIdx.x) / kLanes;
  if (row >= block.rows) return;
  const int half = 1 << (block.precisions[block.widths - 1] - 1);
  const bool feedback = block.inverse_diagonal == nullptr;
  const float* tables[Widths];
  float weights[Widths], target[Widths], reference[Widths];
  float values[Widths][Codes];
  Columns<float> state[Widths], steps[Widths];
#pragma unroll
  for (int w = 0; w < Widths; ++w) {
    if (w >= block.widths) continue;
    const int b = block.precisions[w];
    tables[w] = block.tables[w] + row * block.codebooks * cpu::padded_entries(b);
    weights[w] = block.weights[w * block.rows + row];
    state[w] =
        Columns<float>::load(block.state + (w * block.rows + row) * block.stride, lane, columns);
    steps[w] = {0.0f, 0.0f};
    if constexpr (OneCodebook && !NewestBit) {
#pragma unroll
      for (int i = 0; i < Codes; ++i) {
        values[w][i] = tables[w][(i * kLanes + lane) & ((1 << b) - 1)];
      }
    }
  }
  std::uint8_t* const to_codes = block.codes + row * block.stride;
  auto codes = Columns<int>::load(to_codes, lane, columns);
  const auto groups =
      OneCodebook ? Columns<int>{0, 0} : Columns<int>::load(block.groups, lane, columns);
  const auto inverse = feedback ? Columns<float>{0.0f, 0.0f}
                                : Columns<float>::load(block.inverse_diagonal, lane, columns);

  for (int j = 0; j < columns; ++j) {
    const int old = codes[j];
    const std::int64_t group = OneCodebook ? 0 : groups[j];
    const float by = inverse[j];
    const auto value_of = [&](int w, int code) {
      const int b = block.precisions[w];
      return tables[w][group * cpu::padded_entries(b) + (code & ((1 << b) - 1))];
    };
#pragma unroll
    for (int w = 0; w < Widths; ++w) {
      if (w >= block.widths) continue;
      const float moved = state[w][j];
      reference[w] = feedback ? moved : value_of(w, old);
      target[w] = feedback ? moved : reference[w] + moved * by;
    }
    int code = 0;
    if constexpr (NewestBit) {
      const int low = old & (half - 1);
      const float to_low = target[0] - value_of(0, low);
      const float to_high = target[0] - value_of(0, low + half);
      code = to_high * to_high < to_low * to_low ? low + half : low;
    } else {
      float best = __int_as_float(0x7f800000);  // infinity
#pragma unroll
      for (int i = 0; i < Codes; ++i) {
        const int candidate = i * kLanes + lane;
        if (candidate >= 2 * half) continue;
        float cost = 0.0f;
#pragma unroll
        for (int w = 0; w < Widths; ++w) {
          if (w >= block.widths) continue;
          const float distance = target[w] - (OneCodebook ? values[w][i] : value_of(w, candidate));
          cost += weights[w] * distance * distance;
        }
        if (cost < best) {
          best = cost;
          code = candidate;
        }
      }
      // Of equal costs the smallest code.
      const float least = least_of(best);
      const unsigned mine = best == least ? static_cast<unsigned>(code) : 0xffffu;
#if __CUDA_ARCH__ >= 800
      code = static_cast<int>(__reduce_min_sync(kAll, mine));
#else
      unsigned first = mine;
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        first = min(first, __shfl_xor_sync(kAll, first, offset));
      }
      code = static_cast<int>(first);
#endif
    }
    codes.set(j, lane, code);
    const float to_low = coupling[j][lane], to_high = coupling[j][lane + kLanes];
#pragma unroll
    for (int w = 0; w < Widths; ++w) {
      if (w >= block.widths) continue;
      const float step = reference[w] - value_of(w, code);
      steps[w].set(j, lane, step);
      state[w].low += step * to_low;
      state[w].high += step * to_high;
    }
  }
  codes.store(to_codes, lane, columns);
#pragma unroll
  for (int w = 0; w < Widths; ++w) {
    if (w >= block.widths) continue;
    steps[w].store(block.steps + (w * block.rows + row) * block.step_stride, lane, columns);
  }
}

template <int Widths, int Codes>
cudaError_t launch(const cpu::SweepBlock& block, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((block.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  if (block.codebooks == 1) {
    sweep_kernel<Widths, Codes, true, false><<<blocks, kThreads, 0, stream>>>(block);
  } else {
    sweep_kernel<Widths, Codes, false, false><<<blocks, kThreads, 0, stream>>>(block);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t fit_sweep(const cpu::SweepBlock& block, cudaStream_t stream) {
  if (block.rows <= 0 || block.columns <= 0) return cudaSuccess;
  if (block.newest_bit_only) {
    const auto blocks = static_cast<unsigned>((block.rows + kRowsPerBlock - 1) / kRowsPerBlock);
    sweep_kernel<1, 1, false, true><<<blocks, kThreads, 0, stream>>>(block);
    return cudaGetLastError();
  }
  switch (block.precisions[block.widths - 1]) {
    case 8:
      return launch<kWidths, 8>(block, stream);
    case 7:
      return launch<kWidths - 1, 4>(block, stream);
    case 6:
      return launch<kWidths - 2, 2>(block, stream);
    default:
      return launch<kWidths - 3, 1>(block, stream);
  }
}

}  // namespace anyprec::cuda
