#include <cstdint>

#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/sampling.h"

/// A cluster of blocks a row, which search for its largest logit; the first one does all else.
/// Filters are thresholds on logits, found digit by digit from sums of integers,
/// which do not depend on an order: the same as kernels/cpu/sampling.cpp does.
namespace anyprec::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kCluster = 8;  ///< blocks of a row, where there are clusters
constexpr int kWarps = kThreads / 32;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

using Amount = unsigned long long;

struct Shared {
  Amount sums[kDigits];
  Amount warps[kWarps];
  std::uint64_t best[kWarps];
  float of_blocks[kCluster][2];  ///< in the first block: each one's best candidate (ptx::stored)
  Amount rest;
  std::uint32_t prefix;
  int token;
};

__device__ __forceinline__ Amount warp_add(Amount value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

/// The same in every thread. Every thread of the block calls it.
__device__ __forceinline__ Amount block_add(Amount value, Shared& shared) {
  value = warp_add(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = value;
  __syncthreads();
  Amount sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += shared.warps[w];
  return sum;
}

/// Calls body(token, logit) for the block's tokens, whole warps at a time (a token past the end has
/// the number `count`), with several loads under way.
template <class Body>
__device__ __forceinline__ void for_each_token(const float* logits, int count, const Body& body) {
  constexpr int kLoads = 8;
  for (int base = 0; base < count; base += kLoads * kThreads) {
    float values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int token = base + i * kThreads + static_cast<int>(threadIdx.x);
      values[i] = token < count ? logits[token] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      body(min(base + i * kThreads + static_cast<int>(threadIdx.x), count), values[i]);
    }
  }
}

/// A row with its penalties applied.
struct Row {
  const float* logits;
  int count;
  float largest;
  float scale;

  /// Of a token with this logit; 0 below a key.
  __device__ __forceinline__ std::uint64_t weight(float logit, std::uint32_t least) const {
    return sampling::key_of(logit) >= least ? sampling::weight_of(logit, largest, scale) : 0;
  }
};

/// The largest key such that the amounts of tokens with it or a larger one sum to `wanted`. amount:
/// of a logit, 0 where its token does not count.
template <class AmountOf>
__device__ __forceinline__ std::uint32_t threshold(const Row& row, Amount wanted, Shared& shared,
                                                   const AmountOf& amount) {
  std::uint32_t prefix = 0;
  Amount above = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();
    for (int i = threadIdx.x; i < kDigits; i += kThreads) shared.sums[i] = 0;
    __syncthreads();
    const std::uint32_t known = shift + kDigitBits == 32 ? 0u : ~0u << (shift + kDigitBits);
    for_each_token(row.logits, row.count, [&](int token, float logit) {
      const std::uint32_t key = sampling::key_of(logit);
      const bool counts = token < row.count && (key & known) == prefix;
      const unsigned lanes = __ballot_sync(~0u, counts);
      if (!counts) return;
      // Logits share their first digits: a warp adds up those of one digit before it writes.
      const std::uint32_t digit = key >> shift & (kDigits - 1);
      const unsigned peers = __match_any_sync(lanes, digit);
      const Amount value = amount(logit);  // at most 2^40
      const unsigned low = __reduce_add_sync(peers, static_cast<unsigned>(value & 0xfffffu));
      const unsigned high = __reduce_add_sync(peers, static_cast<unsigned>(value >> 20));
      if (static_cast<int>(threadIdx.x) % 32 == __ffs(static_cast<int>(peers)) - 1) {
        atomicAdd(&shared.sums[digit], (static_cast<Amount>(high) << 20) + low);
      }
    });
    __syncthreads();
    if (threadIdx.x < 32) {
      // A lane has eight digits, the largest first.
      constexpr int kEach = kDigits / 32;
      const int top = kDigits - 1 - static_cast<int>(threadIdx.x) * kEach;
      Amount mine = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) mine += shared.sums[top - i];
      Amount until = mine;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const Amount other = __shfl_up_sync(~0u, until, step);
        if (static_cast<int>(threadIdx.x) >= step) until += other;
      }
      const unsigned reached = __ballot_sync(~0u, above + until >= wanted);
      const int lane = reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31;
      if (static_cast<int>(threadIdx.x) == lane) {
        Amount before = above + until - mine;
        int digit = top;
        while (digit > top - kEach + 1 && before + shared.sums[digit] < wanted) {
          before += shared.sums[digit--];
        }
        shared.prefix = prefix | static_cast<std::uint32_t>(digit) << shift;
        shared.rest = before;
      }
    }
    __syncthreads();
    prefix = shared.prefix;
    above = shared.rest;
  }
  return prefix;
}

/// The first token whose weight and those of all before it exceed `rest`, which is below the sum.
/// weight: of a logit.
template <class WeightOf>
__device__ __forceinline__ int pick(const float* logits, int count, Amount rest, Shared& shared,
                                    const WeightOf& weight) {
  // A warp has a run of tokens; the warp's run that `rest` falls into is divided among all threads.
  int begin = 0;
  {
    const int each = (count + kWarps - 1) / kWarps;
    const int warp = threadIdx.x / 32;
    const int first = min(count, warp * each), end = min(count, first + each);
    Amount sum = 0;
#pragma unroll 8
    for (int token = first + static_cast<int>(threadIdx.x) % 32; token < end; token += 32) {
      sum += weight(logits[token]);
    }
    sum = warp_add(sum);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared.warps[warp] = sum;
    __syncthreads();
    int run = 0;
    while (run < kWarps - 1 && rest >= shared.warps[run]) rest -= shared.warps[run++];
    begin = min(count, run * each);
    count = min(count, begin + each);
  }
  const int each = (count - begin + kThreads - 1) / kThreads;
  const int first = min(count, begin + static_cast<int>(threadIdx.x) * each);
  const int end = min(count, first + each);
  Amount sum = 0;
  for (int token = first; token < end; ++token) sum += weight(logits[token]);
  // Sums before each thread: in its warp, and of the warps before.
  Amount until = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Amount other = __shfl_up_sync(~0u, until, step);
    if (static_cast<int>(threadIdx.x) % 32 >= step) until += other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 31) shared.warps[threadIdx.x / 32] = until;
  __syncthreads();
  for (int w = 0; w < static_cast<int>(threadIdx.x) / 32; ++w) until += shared.warps[w];
  if (rest >= until - sum && rest < until) {
    Amount left = rest - (until - sum);
    int token = first;
    while (token < end - 1) {
      const Amount w = weight(logits[token]);
      if (left < w) break;
      left -= w;
      ++token;
    }
    shared.token = token;
  }
  __syncthreads();
  return shared.token;
}

/// Orders by key, and of one key the first token last: the largest is the one wanted.
__device__ __forceinline__ std::uint64_t candidate(std::uint32_t key, int token) {
  return static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint32_t>(~token);
}

__device__ __forceinline__ int token_of(std::uint64_t candidate) {
  return static_cast<int>(~static_cast<std::uint32_t>(candidate));
}

/// The largest candidate. Every thread of the block calls it with its own best one.
__device__ __forceinline__ std::uint64_t largest_of_block(std::uint64_t best, Shared& shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const std::uint64_t other = __shfl_xor_sync(~0u, static_cast<unsigned long long>(best), step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = best;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) best = shared.best[w] > best ? shared.best[w] : best;
  return best;
}

/// The largest of a cluster's blocks, in the first one. Every thread of the cluster calls it with
/// its block's. What they wrote before is seen there after it.
__device__ __forceinline__ std::uint64_t largest_of_cluster(std::uint64_t best, int rank,
                                                            Shared& shared) {
#if __CUDA_ARCH__ >= 900
  ptx::wait_for_cluster();  // the first block has begun
  if (threadIdx.x == 0) ptx::store_remote(ptx::shared_address(shared.of_blocks[rank]), 0, best);
  __syncwarp();
  ptx::meet_all_of_cluster();
  if (rank > 0) return best;
#pragma unroll
  for (int p = 0; p < kCluster; ++p) {
    const std::uint64_t other = ptx::stored(shared.of_blocks[p]);
    best = other > best ? other : best;
  }
#endif
  return best;
}

/// kBlocks: of a row, 1 or kCluster.
template <ScalarType kType, int kBlocks>
__global__ void __launch_bounds__(kThreads) sample_kernel(const decoder::Sampling s, bool wide) {
  __shared__ Shared shared;
  ptx::launch_dependents();
#if __CUDA_ARCH__ >= 900
  if constexpr (kBlocks > 1) ptx::arrive_at_cluster();
#endif
  ptx::wait_for_predecessors();
  const std::int64_t index = blockIdx.x / kBlocks;
  const int rank = static_cast<int>(blockIdx.x) % kBlocks;
  const int count = static_cast<int>(s.vocabulary);
  const std::int64_t at = index * s.vocabulary;
  const void* const from = static_cast<const char*>(s.logits) + at * scalar_bytes(kType);
  float* const logits = s.adjusted + at;
  const float penalty = s.repetition_penalty[index];
  const float temperature = s.temperature[index];
  const bool greedy = !(temperature > 0.0f);

  // The first of a thread's largest; NaN has the key 0.
  std::uint32_t largest = 0;
  const int begin = (rank * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  int token_of_it = begin;
#pragma unroll 4
  for (int first = begin; first < count; first += kBlocks * kThreads * kVector) {
    float v[kVector];
    load_vector<kType>(from, first, count, wide, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const std::uint32_t key = sampling::key_of(v[i]);
      if (key <= largest || first + i >= count) continue;
      largest = key;
      token_of_it = first + i;
    }
    if (!greedy || penalty != 1.0f) {
      store_vector<ScalarType::kFloat32>(logits, first, count, wide, v);
    }
  }
  std::uint64_t best = token_of_it < count ? candidate(largest, token_of_it) : 0;
  best = largest_of_block(best, shared);  // all of the block's logits are written when it returns
  if constexpr (kBlocks > 1) best = largest_of_cluster(best, rank, shared);
  if (rank > 0) return;
  if (penalty != 1.0f) {
    for (std::int64_t i = threadIdx.x; i < s.history_length; i += kThreads) {
      const std::int64_t token = s.history[index * s.history_length + i];
      if (token < 0 || token >= count) continue;
      // From its origin: a token that comes twice is penalized once.
      logits[token] = sampling::penalized(load_scalar(from, kType, token), penalty);
    }
    __syncthreads();
    best = 0;
    for_each_token(logits, count, [&](int token, float logit) {
      if (token == count) return;
      const std::uint64_t other = candidate(sampling::key_of(logit), token);
      best = other > best ? other : best;
    });
    best = largest_of_block(best, shared);
  }
  const int first = token_of(best);
  if (greedy) {
    if (threadIdx.x == 0) s.tokens[index] = first;
    return;
  }

  const Row row{logits, count, logits[first], sampling::exponent_scale(temperature)};
  std::uint32_t least = 0;
  const int top_k = s.top_k[index];
  if (top_k > 0 && top_k < count) {
    least = threshold(row, static_cast<Amount>(top_k), shared, [](float) { return Amount{1}; });
  }
  const float top_p = s.top_p[index];
  if (top_p < 1.0f) {
    const std::uint32_t of_top_k = least;
    const auto weight = [&](float logit) {
      return static_cast<Amount>(row.weight(logit, of_top_k));
    };
    Amount sum = 0;
    for_each_token(logits, count,
                   [&](int token, float logit) { sum += token < count ? weight(logit) : 0; });
    least = threshold(row, sampling::wanted_weight(top_p, block_add(sum, shared)), shared, weight);
  }
  const std::uint64_t least_weight = sampling::least_weight(s.min_p[index]);
  const auto kept = [&](float logit) {
    const std::uint64_t weight = row.weight(logit, least);
    return static_cast<Amount>(weight >= least_weight ? weight : 0);
  };
  Amount sum = 0;
  for_each_token(logits, count,
                 [&](int token, float logit) { sum += token < count ? kept(logit) : 0; });
  const Amount total = block_add(sum, shared);
  const Amount rest = sampling::below(sampling::philox(static_cast<std::uint64_t>(s.seed[index]),
                                                       static_cast<std::uint64_t>(s.step[index])),
                                      total);
  // No weights where no logit is a number.
  const int token = total > 0 ? pick(logits, count, rest, shared, kept) : first;
  if (threadIdx.x == 0) s.tokens[index] = token;
}

}  // namespace

cudaError_t sample(const decoder::Sampling& sampling, cudaStream_t stream) {
  if (sampling.rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  const bool wide = sampling.vocabulary % kVector == 0 && is_aligned(sampling.logits) &&
                    is_aligned(sampling.adjusted);
  return with_type(sampling.type, [&](auto type) {
    const auto run = [&](auto kernel, int blocks) {
      return launch_clusters(kernel, device, dim3(static_cast<unsigned>(sampling.rows * blocks)),
                             blocks, kThreads, 0, stream, sampling, wide);
    };
    // Clusters came with compute capability 9.0.
    return device.major == 9 ? run(sample_kernel<type(), kCluster>, kCluster)
                             : run(sample_kernel<type(), 1>, 1);
  });
}

}  // namespace anyprec::cuda
