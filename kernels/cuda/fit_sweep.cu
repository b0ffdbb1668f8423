#include <cstdint>
#include <type_traits>

#include "kernels/cuda/fit_sweep.h"

namespace anyprec::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kRowsPerBlock = 4;
constexpr int kThreads = kLanes * kRowsPerBlock;
constexpr int kWidths = cpu::kSweepWidths;
constexpr int kColumns = cpu::kSweepColumns;
constexpr unsigned kAll = 0xffffffffu;

/// The smallest of a warp's numbers.
__device__ __forceinline__ unsigned least_of(unsigned number) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kAll, number);
#else
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    number = min(number, __shfl_xor_sync(kAll, number, offset));
  }
  return number;
#endif
}

/// Which of a lane's two columns.
using Low = std::false_type;
using High = std::true_type;

/// A number of each of a block's columns, two a lane.
template <class T>
struct Columns {
  T low, high;

  template <class Which>
  __device__ __forceinline__ T& own(Which) {
    return Which::value ? high : low;
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

template <class T>
__device__ __forceinline__ T from_lane(T value, int lane) {
  return __shfl_sync(kAll, value, lane);
}

/// What steps of a block's columns do to the columns after them: by rows, zeros around.
class Coupling {
 public:
  __device__ __forceinline__ void load(const cpu::SweepBlock& block) {
    for (int at = static_cast<int>(threadIdx.x); at < kColumns * kColumns; at += kThreads) {
      const int i = at / kColumns, j = at % kColumns;
      to_[i][j] = i < block.columns && j < block.columns
                      ? block.coupling[i * block.coupling_stride + j]
                      : 0.0f;
    }
  }
  __device__ __forceinline__ float operator()(int column, int lane, Low) const {
    return to_[column][lane];
  }
  __device__ __forceinline__ float operator()(int column, int lane, High) const {
    return to_[column][lane + kLanes];
  }

 private:
  float to_[kColumns][kColumns];
};

/// turn(column, the lane that has it, which of its two it is) for a block's columns.
template <class Turn>
__device__ __forceinline__ void each_column(int columns, const Turn& turn) {
  for (int j = 0; j < min(columns, kLanes); ++j) turn(j, j, Low{});
  for (int j = kLanes; j < columns; ++j) turn(j, j - kLanes, High{});
}

__device__ __forceinline__ std::int64_t this_row() {
  return static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock +
         static_cast<int>(threadIdx.x) / kLanes;
}

/// Of a multiprocessor, which wait for each other's shuffles: with 64 registers a thread.
template <int Codes, bool OneCodebook>
constexpr int kLeastBlocks = OneCodebook && Codes <= 2 ? 8 : 1;

/// One warp a row. A lane holds the state of two columns, and looks at the codes lane, lane + 32,
/// ... of `Codes` times 32; with one codebook a row, its values stay in registers. Widths: at most.
template <int Widths, int Codes, bool OneCodebook>
__global__ void __launch_bounds__(kThreads, (kLeastBlocks<Codes, OneCodebook>))
    sweep_kernel(const cpu::SweepBlock block) {
  __shared__ Coupling coupling;
  coupling.load(block);
  __syncthreads();
  const int columns = block.columns;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t row = this_row();
  if (row >= block.rows) return;
  const int codes_in_all = 1 << block.precisions[block.widths - 1];
  const bool feedback = block.inverse_diagonal == nullptr;
  std::uint8_t* const to_codes = block.codes + row * block.stride;
  auto codes = Columns<int>::load(to_codes, lane, columns);
  auto groups = OneCodebook ? Columns<int>{0, 0} : Columns<int>::load(block.groups, lane, columns);
  auto inverse = feedback ? Columns<float>{1.0f, 1.0f}
                          : Columns<float>::load(block.inverse_diagonal, lane, columns);
  // Widths that there are not have no weight in the cost; without branches for them the others'
  // shuffles overlap.
  const float* tables[Widths];
  float weights[Widths], values[Widths][Codes];
  // Before a column's turn what its target is counted from; afterwards its step.
  Columns<float> state[Widths], steps[Widths];
#pragma unroll
  for (int w = 0; w < Widths; ++w) {
    const int given = w < block.widths ? w : 0;
    tables[w] =
        block.tables[given] + row * block.codebooks * cpu::padded_entries(block.precisions[given]);
    weights[w] = w < block.widths ? block.weights[w * block.rows + row] : 0.0f;
    state[w] = Columns<float>::load(block.state + (given * block.rows + row) * block.stride, lane,
                                    columns);
  }
  const auto value_of = [&](int w, int group, int code) {
    const int b = block.precisions[w < block.widths ? w : 0];
    return tables[w][static_cast<std::int64_t>(group) * cpu::padded_entries(b) +
                     (code & ((1 << b) - 1))];
  };
#pragma unroll
  for (int w = 0; w < Widths; ++w) {
    steps[w] = feedback ? Columns<float>{0.0f, 0.0f}
                        : Columns<float>{value_of(w, groups.low, codes.low),
                                         value_of(w, groups.high, codes.high)};
    if constexpr (OneCodebook) {
#pragma unroll
      for (int i = 0; i < Codes; ++i) values[w][i] = value_of(w, 0, i * kLanes + lane);
    }
  }

  each_column(columns, [&](int j, int owner, auto which) {
    const int group = OneCodebook ? 0 : from_lane(groups.own(which), owner);
    float target[Widths], reference[Widths];
#pragma unroll
    for (int w = 0; w < Widths; ++w) {
      const float from = steps[w].own(which);
      target[w] = from_lane(from + state[w].own(which) * inverse.own(which), owner);
      reference[w] = feedback ? target[w] : from_lane(from, owner);
    }
    int code = 0;
    float best = __int_as_float(0x7f800000);  // infinity
#pragma unroll
    for (int i = 0; i < Codes; ++i) {
      const int candidate = i * kLanes + lane;
      if (candidate >= codes_in_all) continue;
      float cost = 0.0f;
#pragma unroll
      for (int w = 0; w < Widths; ++w) {
        const float distance =
            target[w] - (OneCodebook ? values[w][i] : value_of(w, group, candidate));
        cost += weights[w] * distance * distance;
      }
      if (cost < best) {
        best = cost;
        code = candidate;
      }
    }
    // Bits of costs, which are at least 0, are in their order. Of equal costs the smallest code.
    const float least = __uint_as_float(least_of(__float_as_uint(best)));
    code = static_cast<int>(least_of(best == least ? static_cast<unsigned>(code) : 0xffffu));
    if (lane == owner) codes.own(which) = code;
#pragma unroll
    for (int w = 0; w < Widths; ++w) {
      float value;
      if constexpr (OneCodebook && Codes <= 2) {
        value = from_lane(code < kLanes ? values[w][0] : values[w][Codes - 1], code % kLanes);
      } else {
        value = value_of(w, group, code);
      }
      const float step = reference[w] - value;
      if (lane == owner) steps[w].own(which) = step;
      if constexpr (!which) state[w].low += step * coupling(j, lane, Low{});
      state[w].high += step * coupling(j, lane, High{});
    }
  });
  codes.store(to_codes, lane, columns);
#pragma unroll
  for (int w = 0; w < Widths; ++w) {
    if (w >= block.widths) continue;
    steps[w].store(block.steps + (w * block.rows + row) * block.step_stride, lane, columns);
  }
}

/// One warp a row, one width, only the newest bit free: the lane that has a column decides.
__global__ void __launch_bounds__(kThreads) newest_bit_kernel(const cpu::SweepBlock block) {
  __shared__ Coupling coupling;
  coupling.load(block);
  __syncthreads();
  const int columns = block.columns;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t row = this_row();
  if (row >= block.rows) return;
  const int half = 1 << (block.precisions[0] - 1);
  const int entries = cpu::padded_entries(block.precisions[0]);
  const float* const table = block.tables[0] + row * block.codebooks * entries;
  std::uint8_t* const to_codes = block.codes + row * block.stride;
  auto codes = Columns<int>::load(to_codes, lane, columns);
  const auto groups = Columns<int>::load(block.groups, lane, columns);
  auto inverse = Columns<float>::load(block.inverse_diagonal, lane, columns);
  auto state = Columns<float>::load(block.state + row * block.stride, lane, columns);
  const auto value_of = [&](int group, int code) {
    return table[static_cast<std::int64_t>(group) * entries + code];
  };
  const auto both = [&](int bit) {
    return Columns<float>{value_of(groups.low, (codes.low & (half - 1)) + bit),
                          value_of(groups.high, (codes.high & (half - 1)) + bit)};
  };
  auto without = both(0), with = both(half);
  Columns<float> steps{0.0f, 0.0f};
  each_column(columns, [&](int j, int owner, auto which) {
    const int old = codes.own(which);
    const float reference = (old & half) != 0 ? with.own(which) : without.own(which);
    const float target = reference + state.own(which) * inverse.own(which);
    const float to_low = target - without.own(which), to_high = target - with.own(which);
    const bool set = to_high * to_high < to_low * to_low;
    const float step = reference - (set ? with.own(which) : without.own(which));
    if (lane == owner) {
      steps.own(which) = step;
      codes.own(which) = (old & (half - 1)) + (set ? half : 0);
    }
    const float taken = from_lane(step, owner);
    if constexpr (!which) state.low += taken * coupling(j, lane, Low{});
    state.high += taken * coupling(j, lane, High{});
  });
  codes.store(to_codes, lane, columns);
  steps.store(block.steps + row * block.step_stride, lane, columns);
}

cudaError_t launch(void (*kernel)(cpu::SweepBlock), const cpu::SweepBlock& block,
                   cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((block.rows + kRowsPerBlock - 1) / kRowsPerBlock);
  kernel<<<blocks, kThreads, 0, stream>>>(block);
  return cudaGetLastError();
}

template <int Widths, int Codes>
cudaError_t sweep(const cpu::SweepBlock& block, cudaStream_t stream) {
  return launch(
      block.codebooks == 1 ? sweep_kernel<Widths, Codes, true> : sweep_kernel<Widths, Codes, false>,
      block, stream);
}

}  // namespace

cudaError_t fit_sweep(const cpu::SweepBlock& block, cudaStream_t stream) {
  if (block.rows <= 0 || block.columns <= 0) return cudaSuccess;
  if (block.newest_bit_only) return launch(newest_bit_kernel, block, stream);
  switch (block.precisions[block.widths - 1]) {
    case 8:
      return sweep<kWidths, 8>(block, stream);
    case 7:
      return sweep<kWidths - 1, 4>(block, stream);
    case 6:
      return sweep<kWidths - 2, 2>(block, stream);
    default:
      return sweep<kWidths - 3, 1>(block, stream);
  }
}

}  // namespace anyprec::cuda
