#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vectors.cuh"

/// Attention of single rows, split over keys (Flash-Decoding). A block has a part of the keys of
/// one row for some query heads that share them; a second kernel adds the parts up in their order.
///
/// The grid depends on shapes alone: parts are of equal length, counted from what is in the cache,
/// and blocks beyond the last part have nothing to do. The number of parts does not depend on the
/// batch, so a sequence gives the same bytes in any.
///
/// Where caches are short and blocks can form clusters, a cluster has all parts of a row's heads
/// and adds them up through its blocks' shared memories: one launch, and nothing in the workspace.
namespace anyprec::cuda {
namespace decode_device {

/// Keys that a group of lanes has in flight.
inline constexpr int kUnroll = 2;

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

/// An element of a head's sum over some keys, with the largest score and the sum of powers of these
/// keys.
struct Sum {
  float largest;
  float total;
  float sum;
};

/// All of `count` sums over different keys, in their order. part(p): the p-th.
template <int kCount, class Part>
__device__ __forceinline__ Sum add_up(const Part& part) {
  Sum parts[kCount];
#pragma unroll
  for (int p = 0; p < kCount; ++p) parts[p] = part(p);
  Sum all{-INFINITY, 0.0f, 0.0f};
#pragma unroll
  for (int p = 0; p < kCount; ++p) all.largest = fmaxf(all.largest, parts[p].largest);
  const float reference = all.largest == -INFINITY ? 0.0f : all.largest;
#pragma unroll
  for (int p = 0; p < kCount; ++p) {
    const float factor = exp2f(parts[p].largest - reference);
    all.total = fmaf(parts[p].total, factor, all.total);
    all.sum = fmaf(parts[p].sum, factor, all.sum);
  }
  return all;
}

/// What the warps of a block have of a part.
template <int kHeadSize, int kHeads, int kWarps>
struct Shared {
  float sums[kWarps][kHeads][kHeadSize];
  float2 totals[kWarps][kHeads];

  /// Of all warps.
  __device__ __forceinline__ Sum element(int head, int d) const {
    return add_up<kWarps>(
        [&](int w) { return Sum{totals[w][head].x, totals[w][head].y, sums[w][head][d]}; });
  }
};

/// Which heads of which row a block works on.
struct Heads {
  std::int64_t row;
  int kv_head;
  int first;           ///< among those of kv_head
  int each;            ///< of kv_head
  std::int64_t query;  ///< the first in the row

  __device__ __forceinline__ Heads(const decoder::Attention& attention, int block_heads) {
    each = attention.query_heads / attention.cache.heads;
    const int head_blocks = (each + block_heads - 1) / block_heads;
    row = blockIdx.z;
    kv_head = static_cast<int>(blockIdx.y) / head_blocks;
    first = static_cast<int>(blockIdx.y) % head_blocks * block_heads;
    query = static_cast<std::int64_t>(kv_head) * each + first;
  }
};

/// A lane's place: its group of lanes takes a key together.
template <int kHeadSize>
struct Place {
  static constexpr int kLanes = lanes_of(kHeadSize);
  static constexpr int kGroups = 32 / kLanes;  // of lanes in a warp
  int warp = threadIdx.x / 32;
  int group = threadIdx.x % 32 / kLanes;
  int element = threadIdx.x % kLanes * kVector;
  bool active = element < kHeadSize;  // heads of 96 leave lanes over
};

/// Keys and values that a lane has in flight: of positions base + u * kStep.
template <ScalarType kType, int kHeadSize, int kStep>
struct InFlight {
  Vector<kType> keys[kUnroll], values[kUnroll];

  /// Those of positions [first, end); others keep what they have.
  __device__ __forceinline__ void load(const decoder::Attention& attention,
                                       const Place<kHeadSize>& place, int sequence, int kv_head,
                                       int base, int first, int end) {
    constexpr int kBytes = scalar_bytes(kType);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int position = base + u * kStep;
      if (!place.active || position < first || position >= end) continue;
      const std::int64_t at =
          (cache_offset(attention, sequence, position, kv_head) + place.element) * kBytes;
      keys[u] = Vector<kType>::load(static_cast<const char*>(attention.key_cache) + at);
      values[u] = Vector<kType>::load(static_cast<const char*>(attention.value_cache) + at);
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) keys[u] = values[u] = {};
  }
};

/// Attention of the heads to positions [begin, end), into shared. Waits for the kernels before;
/// what earlier calls left in the cache it begins to read before that.
template <ScalarType kType, int kHeadSize, int kHeads, int kWarps>
__device__ __forceinline__ void attend(const decoder::Attention& attention, const Heads& heads,
                                       const KeyRange& keys, int begin, int end,
                                       Shared<kHeadSize, kHeads, kWarps>& shared) {
  constexpr int kLanes = Place<kHeadSize>::kLanes;
  constexpr int kGroups = Place<kHeadSize>::kGroups;
  constexpr int kBytes = scalar_bytes(kType);
  constexpr int kStep = kWarps * kGroups;
  const Place<kHeadSize> place;
  const int warp = place.warp;
  const int group = place.group;
  const int element = place.element;
  const bool active = place.active;

  // Group g of warp w takes keys w * kGroups + g + i * kWarps * kGroups.
  const int first_base = begin + warp * kGroups + group;
  InFlight<kType, kHeadSize, kStep> raw;
  raw.clear();
  raw.load(attention, place, keys.sequence, heads.kv_head, first_base, begin, min(end, keys.fresh));
  ptx::wait_for_predecessors();

  float q[kHeads][kVector];
  State<kHeads> state;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    state.largest[h] = -INFINITY;
    state.total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) q[h][i] = state.sums[h][i] = 0.0f;
    if (active && heads.first + h < heads.each) {
      const std::int64_t at =
          (heads.row * attention.query_heads + heads.query + h) * kHeadSize + element;
      Vector<kType>::load(static_cast<const char*>(attention.q) + at * kBytes).to_floats(q[h]);
    }
  }

  for (int base = first_base; base - group < end; base += kUnroll * kStep) {
    if (base != first_base) raw.clear();
    raw.load(attention, place, keys.sequence, heads.kv_head, base,
             base == first_base ? max(begin, keys.fresh) : begin, end);
    float scores[kHeads][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float key[kVector];
      raw.keys[u].to_floats(key);
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
      raw.values[u].to_floats(value);
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
        for (int i = 0; i < kVector; ++i) shared.sums[warp][h][element + i] = state.sums[h][i];
      }
      if (element == 0) shared.totals[warp][h] = {state.largest[h], state.total[h]};
    }
  }
  __syncthreads();
}

/// Warps of a block: as many as static shared memory has room for.
constexpr int warps_for(int elements) { return elements > 1024 ? 4 : elements > 512 ? 8 : 16; }
template <int kHeadSize, int kHeads>
constexpr int kWarpsOf = warps_for(kHeads * kHeadSize);

template <ScalarType kType, int kHeadSize, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<kHeadSize, kHeads>)
    decode_kernel(const decoder::Attention attention, const Parts parts) {
  constexpr int kWarps = kWarpsOf<kHeadSize, kHeads>;
  __shared__ Shared<kHeadSize, kHeads, kWarps> shared;
  ptx::launch_dependents();
  const Heads heads(attention, kHeads);
  const int part = static_cast<int>(blockIdx.x);
  const KeyRange keys(attention, heads.row);
  const int each = part_keys(keys.end - keys.begin, parts.count);
  const int begin = keys.begin + part * each;
  const int end = min(keys.end, begin + each);
  if (begin >= end) {
    ptx::wait_for_predecessors();  // no grid may end before those before it
    return;
  }
  attend<kType, kHeadSize, kHeads, kWarps>(attention, heads, keys, begin, end, shared);
  for (int i = threadIdx.x; i < kHeads * kHeadSize; i += 32 * kWarps) {
    const int h = i / kHeadSize;
    const int d = i % kHeadSize;
    if (heads.first + h >= heads.each) break;
    const std::int64_t at =
        (heads.row * attention.query_heads + heads.query + h) * parts.count + part;
    const Sum sum = shared.element(h, d);
    parts.sums[at * kHeadSize + d] = sum.sum;
    if (d == 0) parts.totals[at] = {sum.largest, sum.total};
  }
}

/// Sums that a block of a cluster adds up: its share of the elements, of all parts. A share is of
/// one head.
template <int kShare>
struct Inbox {
  float sums[kClusterParts][kShare];
  float largest[kClusterParts];
  float totals[kClusterParts];
};

template <ScalarType kType, int kHeadSize, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<kHeadSize, kHeads>)
    decode_cluster_kernel(const decoder::Attention attention) {
#if __CUDA_ARCH__ >= 900
  constexpr int kWarps = kWarpsOf<kHeadSize, kHeads>;
  constexpr int kShare = kHeads * kHeadSize / kClusterParts;
  static_assert(kHeadSize % kShare == 0);
  __shared__ Shared<kHeadSize, kHeads, kWarps> shared;
  __shared__ Inbox<kShare> inbox;
  ptx::launch_dependents();
  ptx::arrive_at_cluster();  // that this block has begun, and others may write into its inbox
  const Heads heads(attention, kHeads);
  const int part = static_cast<int>(blockIdx.x);  // and the block's rank in its cluster
  const KeyRange keys(attention, heads.row);
  const int each = part_keys(keys.end - keys.begin, kClusterParts);
  const int begin = min(keys.end, keys.begin + part * each);
  const int end = min(keys.end, begin + each);
  attend<kType, kHeadSize, kHeads, kWarps>(attention, heads, keys, begin, end, shared);

  // To each block its share of the elements.
  ptx::wait_for_cluster();
  for (int i = threadIdx.x; i < kHeads * kHeadSize; i += 32 * kWarps) {
    const Sum sum = shared.element(i / kHeadSize, i % kHeadSize);
    const int owner = i / kShare;
    ptx::store_remote(ptx::shared_address(&inbox.sums[part][i % kShare]), owner, sum.sum);
    if (i % kShare == 0) {
      ptx::store_remote(ptx::shared_address(&inbox.largest[part]), owner, sum.largest);
      ptx::store_remote(ptx::shared_address(&inbox.totals[part]), owner, sum.total);
    }
  }
  ptx::meet_all_of_cluster();
  const int h = part * kShare / kHeadSize;
  if (heads.first + h >= heads.each) return;
  for (int i = threadIdx.x; i < kShare; i += 32 * kWarps) {
    const Sum sum = add_up<kClusterParts>(
        [&](int p) { return Sum{inbox.largest[p], inbox.totals[p], inbox.sums[p][i]}; });
    store_scalar(attention.y, kType,
                 (heads.row * attention.query_heads + heads.query) * kHeadSize + part * kShare + i,
                 sum.total > 0.0f ? sum.sum / sum.total : 0.0f);
  }
#endif
}

/// parts: null where a cluster adds them up.
template <ScalarType kType, int kHeadSize>
cudaError_t decode(const decoder::Attention& attention, const Parts* parts, const Device& device,
                   cudaStream_t stream) {
  const int heads_each = attention.query_heads / attention.cache.heads;
  const auto run = [&](auto heads) {
    constexpr int kHeads = heads();
    constexpr int kThreads = 32 * kWarpsOf<kHeadSize, kHeads>;
    const int head_blocks = (heads_each + kHeads - 1) / kHeads;
    const dim3 grid(static_cast<unsigned>(parts != nullptr ? parts->count : kClusterParts),
                    static_cast<unsigned>(attention.cache.heads * head_blocks),
                    static_cast<unsigned>(attention.rows));
    if (parts == nullptr) {
      return launch_clusters(decode_cluster_kernel<kType, kHeadSize, kHeads>, device, grid,
                             kClusterParts, kThreads, 0, stream, attention);
    }
    return launch(decode_kernel<kType, kHeadSize, kHeads>, device, grid, kThreads, 0, stream,
                  attention, *parts);
  };
  if (heads_each == 1) return run(std::integral_constant<int, 1>{});
  if (heads_each <= 4) return run(std::integral_constant<int, 4>{});
  return run(std::integral_constant<int, 8>{});
}

}  // namespace decode_device

template <ScalarType kType>
cudaError_t decode_parts(const decoder::Attention& attention, const Parts* parts,
                         const Device& device, cudaStream_t stream) {
  switch (attention.cache.head_size) {
    case 64:
      return decode_device::decode<kType, 64>(attention, parts, device, stream);
    case 96:
      return decode_device::decode<kType, 96>(attention, parts, device, stream);
    case 128:
      return decode_device::decode<kType, 128>(attention, parts, device, stream);
    default:
      return decode_device::decode<kType, 256>(attention, parts, device, stream);
  }
}

}  // namespace anyprec::cuda
