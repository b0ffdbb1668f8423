#include <algorithm>
#include <cmath>
#include <string>

#include "anyprec/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/planes_out.cuh"
#include "kernels/cuda/vectors.cuh"

/// Attention of single rows, split over keys (Flash-Decoding). A block has a part of the keys of
/// one row for some query heads that share them; a second kernel adds the parts up in their order.
///
/// The grid depends on shapes alone: parts are of equal length, counted from what is in the cache,
/// and blocks beyond the last part end at once. The number of parts does not depend on the batch,
/// so a sequence gives the same bytes in any.
namespace anyprec::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
/// Keys that a group of lanes has in flight.
constexpr int kUnroll = 4;
/// The least keys of a part: what a block has in flight with heads of 128 elements.
constexpr int kPartKeys = 64;

constexpr int kMaxParts = 64;

int part_count(const decoder::Attention& attention) {
  const std::int64_t room =
      static_cast<std::int64_t>(attention.max_blocks) * attention.cache.block_size;
  if (!is_decoding(attention)) return 1;
  // About two blocks a multiprocessor of a large GPU for a single sequence.
  const int most = std::clamp(256 / attention.cache.heads, 8, kMaxParts);
  return static_cast<int>(std::clamp<std::int64_t>((room + kPartKeys - 1) / kPartKeys, 1, most));
}

/// Keys of each part of `count`, of which there are `parts` at most.
__device__ __forceinline__ int part_keys(int count, int parts) {
  const int each = (count + parts - 1) / parts;
  return max(kPartKeys, (each + kPartKeys - 1) / kPartKeys * kPartKeys);
}

/// Sums of a part, unnormalized: [M, Hq, parts, head_size], and after them the largest score and
/// the sum of powers of each, [M, Hq, parts].
struct Parts {
  float* sums;
  float2* totals;
  int count;
};

/// Lanes that share a key, 8 elements each.
constexpr int lanes_of(int head_size) { return head_size <= 64 ? 8 : head_size <= 128 ? 16 : 32; }

/// The running softmax of one query head.
template <int kHeads>
struct State {
  float largest[kHeads];
  float total[kHeads];
  float sums[kHeads][kVector];
};

/// Adds `from` to `to`, both with their own largest scores.
__device__ __forceinline__ void merge(float& largest, float& total, float (&sums)[kVector],
                                      float other_largest, float other_total,
                                      const float (&other)[kVector]) {
  const float most = fmaxf(largest, other_largest);
  const float mine = largest == -INFINITY ? 0.0f : exp2f(largest - most);
  const float others = other_largest == -INFINITY ? 0.0f : exp2f(other_largest - most);
  largest = most;
  total = total * mine + other_total * others;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[i] = sums[i] * mine + other[i] * others;
}

template <ScalarType kType, int kHeadSize, int kHeads>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const decoder::Attention attention, const Parts parts) {
  constexpr int kLanes = lanes_of(kHeadSize);
  constexpr int kGroups = 32 / kLanes;  // of lanes in a warp
  constexpr int kBytes = scalar_bytes(kType);
  __shared__ float shared_sums[kWarps][kHeads][kHeadSize];
  __shared__ float2 shared_totals[kWarps][kHeads];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();

  const int part = static_cast<int>(blockIdx.x);
  const int heads_each = attention.query_heads / attention.cache.heads;
  const int head_blocks = (heads_each + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.y) / head_blocks;
  const int first_head = static_cast<int>(blockIdx.y) % head_blocks * kHeads;  // of kv_head's
  const std::int64_t row = blockIdx.z;

  const KeyRange keys = keys_of(attention, row);
  const int each = part_keys(keys.end - keys.begin, parts.count);
  const int begin = keys.begin + part * each;
  const int end = min(keys.end, begin + each);
  if (begin >= end) return;

  const int warp = threadIdx.x / 32;
  const int group = threadIdx.x % 32 / kLanes;
  const int element = threadIdx.x % kLanes * kVector;
  const bool active = element < kHeadSize;  // heads of 96 leave lanes over

  const std::int64_t query_head = kv_head * heads_each + first_head;
  float q[kHeads][kVector];
  State<kHeads> state;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    state.largest[h] = -INFINITY;
    state.total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) q[h][i] = state.sums[h][i] = 0.0f;
    if (active && first_head + h < heads_each) {
      const std::int64_t at = (row * attention.query_heads + query_head + h) * kHeadSize + element;
      Vector<kType>::load(static_cast<const char*>(attention.q) + at * kBytes).to_floats(q[h]);
    }
  }

  // Group g of warp w takes keys w * kGroups + g + i * kWarps * kGroups.
  constexpr int kStep = kWarps * kGroups;
  for (int base = begin + warp * kGroups + group; base - group < end; base += kUnroll * kStep) {
    Vector<kType> raw_keys[kUnroll], raw_values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int position = base + u * kStep;
      if (active && position < end) {
        const std::int64_t at =
            (cache_offset(attention, keys.sequence, position, kv_head) + element) * kBytes;
        raw_keys[u] = Vector<kType>::load(static_cast<const char*>(attention.key_cache) + at);
        raw_values[u] = Vector<kType>::load(static_cast<const char*>(attention.value_cache) + at);
      } else {
        raw_keys[u] = raw_values[u] = {};
      }
    }
    float scores[kHeads][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float key[kVector];
      raw_keys[u].to_floats(key);
      const bool seen = base + u * kStep < end;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < kVector; ++i) product = fmaf(q[h][i], key[i], product);
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) {
          product += __shfl_xor_sync(~0u, product, step);
        }
        scores[h][u] = seen ? scored(attention, product) : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float most = state.largest[h];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) most = fmaxf(most, scores[h][u]);
      // A group may have seen no key yet.
      const float reference = most == -INFINITY ? 0.0f : most;
      const float correction = exp2f(state.largest[h] - reference);
      state.largest[h] = most;
      state.total[h] *= correction;
#pragma unroll
      for (int i = 0; i < kVector; ++i) state.sums[h][i] *= correction;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        scores[h][u] = exp2f(scores[h][u] - reference);
        state.total[h] += scores[h][u];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float value[kVector];
      raw_values[u].to_floats(value);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          state.sums[h][i] = fmaf(scores[h][u], value[i], state.sums[h][i]);
        }
      }
    }
  }

  // Groups of the warp, then warps.
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) {
      float other[kVector];
      const float other_largest = __shfl_xor_sync(~0u, state.largest[h], step);
      const float other_total = __shfl_xor_sync(~0u, state.total[h], step);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        other[i] = __shfl_xor_sync(~0u, state.sums[h][i], step);
      }
      merge(state.largest[h], state.total[h], state.sums[h], other_largest, other_total, other);
    }
    if (group == 0) {
      if (active) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) shared_sums[warp][h][element + i] = state.sums[h][i];
      }
      if (element == 0) shared_totals[warp][h] = {state.largest[h], state.total[h]};
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kHeads * kHeadSize; i += kThreads) {
    const int h = i / kHeadSize;
    const int d = i % kHeadSize;
    if (first_head + h >= heads_each) break;
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, shared_totals[w][h].x);
    float total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(shared_totals[w][h].x - most);
      total = fmaf(shared_totals[w][h].y, factor, total);
      sum = fmaf(shared_sums[w][h][d], factor, sum);
    }
    const std::int64_t at = (row * attention.query_heads + query_head + h) * parts.count + part;
    parts.sums[at * kHeadSize + d] = sum;
    if (d == 0) parts.totals[at] = {most, total};
  }
}

constexpr int kAddThreads = 128;

/// Adds up the parts of one head of a row: element `d` of the result.
__device__ __forceinline__ float add_parts(const Parts& parts, std::int64_t head, int count,
                                           int head_size, int d) {
  const float2* const totals = parts.totals + head * parts.count;
  const float* const sums = parts.sums + head * parts.count * head_size + d;
  float most = -INFINITY;
  for (int p = 0; p < count; ++p) most = fmaxf(most, totals[p].x);
  float total = 0.0f, sum = 0.0f;
#pragma unroll 4
  for (int p = 0; p < count; ++p) {
    const float factor = exp2f(totals[p].x - most);
    total = fmaf(totals[p].y, factor, total);
    sum = fmaf(sums[static_cast<std::int64_t>(p) * head_size], factor, sum);
  }
  return total > 0.0f ? sum / total : 0.0f;
}

__device__ __forceinline__ int parts_of(const decoder::Attention& attention, const Parts& parts,
                                        std::int64_t row) {
  const KeyRange keys = keys_of(attention, row);
  const int count = keys.end - keys.begin;
  const int each = part_keys(count, parts.count);
  return (count + each - 1) / each;
}

template <ScalarType kType>
__global__ void __launch_bounds__(kAddThreads)
    add_parts_kernel(const decoder::Attention attention, const Parts parts) {
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const int size = attention.cache.head_size;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  const std::int64_t head = index / size;  // of all rows
  const std::int64_t row = head / attention.query_heads;
  if (row >= attention.rows) return;
  const int count = parts_of(attention, parts, row);
  store_scalar(attention.y, kType, index,
               add_parts(parts, head, count, size, static_cast<int>(index % size)));
}

constexpr int kPlanesThreads = 1024;

/// One block a row.
template <ScalarType kType>
__global__ void __launch_bounds__(kPlanesThreads)
    add_parts_planes_kernel(const decoder::Attention attention, const Parts parts,
                            const PlanesOut out) {
  extern __shared__ __align__(16) char shared_row[];
  __shared__ std::uint32_t scratch[2 * kPlanesThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const int size = attention.cache.head_size;
  const int columns = attention.query_heads * size;
  const std::int64_t row = blockIdx.x;
  const int count = parts_of(attention, parts, row);
  for (int i = threadIdx.x; i < columns; i += kPlanesThreads) {
    const float value =
        add_parts(parts, row * attention.query_heads + i / size, count, size, i % size);
    store_scalar(attention.y, kType, row * columns + i, value);
    store_scalar(shared_row, kType, i, value);
  }
  __syncthreads();
  put_planes<kPlanesThreads>(out, row, shared_row, kType, columns, scratch);
}

template <ScalarType kType, int kHeadSize>
cudaError_t decode(const decoder::Attention& attention, const Parts& parts, const Device& device,
                   cudaStream_t stream) {
  const int heads_each = attention.query_heads / attention.cache.heads;
  const auto run = [&](auto heads) {
    const int head_blocks = (heads_each + heads() - 1) / heads();
    const dim3 grid(static_cast<unsigned>(parts.count),
                    static_cast<unsigned>(attention.cache.heads * head_blocks),
                    static_cast<unsigned>(attention.rows));
    return launch(decode_kernel<kType, kHeadSize, heads()>, device, grid, kThreads, 0, stream,
                  attention, parts);
  };
  if (heads_each == 1) return run(std::integral_constant<int, 1>{});
  if (heads_each <= 4) return run(std::integral_constant<int, 4>{});
  return run(std::integral_constant<int, 8>{});
}

std::int64_t head_parts(const decoder::Attention& attention) {
  return attention.rows * attention.query_heads * part_count(attention);
}

}  // namespace

std::size_t attention_decode_bytes(const decoder::Attention& attention) {
  return static_cast<std::size_t>(head_parts(attention) * (attention.cache.head_size + 2)) *
         sizeof(float);
}

cudaError_t attention_decode(const decoder::Attention& attention, const PlanesOut& planes,
                             void* workspace, const Device& device, cudaStream_t stream) {
  float* const sums = static_cast<float*>(workspace);
  const Parts parts{
      sums, reinterpret_cast<float2*>(sums + head_parts(attention) * attention.cache.head_size),
      part_count(attention)};
  // A grid has at most 65535 rows.
  if (attention.rows > 65535) {
    throw InvalidArgument("attention: " + std::to_string(attention.rows) +
                          " rows of this type at once, wanted at most 65535");
  }
  return with_type(attention.type, [&](auto type) {
    constexpr ScalarType kType = type();
    cudaError_t status = cudaErrorInvalidValue;
    switch (attention.cache.head_size) {
      case 64:
        status = decode<kType, 64>(attention, parts, device, stream);
        break;
      case 96:
        status = decode<kType, 96>(attention, parts, device, stream);
        break;
      case 128:
        status = decode<kType, 128>(attention, parts, device, stream);
        break;
      case 256:
        status = decode<kType, 256>(attention, parts, device, stream);
        break;
      default:
        break;
    }
    if (status != cudaSuccess) return status;
    const std::int64_t columns =
        static_cast<std::int64_t>(attention.query_heads) * attention.cache.head_size;
    if (planes.planes == nullptr) {
      const std::int64_t blocks = (attention.rows * columns + kAddThreads - 1) / kAddThreads;
      return launch(add_parts_kernel<kType>, device, dim3(static_cast<unsigned>(blocks)),
                    kAddThreads, 0, stream, attention, parts);
    }
    return launch(add_parts_planes_kernel<kType>, device,
                  dim3(static_cast<unsigned>(attention.rows)), kPlanesThreads,
                  static_cast<int>(columns * scalar_bytes(kType)), stream, attention, parts,
                  planes);
  });
}

}  // namespace anyprec::cuda
