#include "kernels/cuda/decoder.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vectors.cuh"

/// One warp for each head of queries, keys and values of a row. What does not come from the kernel
/// before is read while that one still runs. The next kernel starts when this one has seen the end
/// of all before it: attention may then read, before it waits, what earlier calls wrote.
namespace anyprec::cuda {
namespace {

constexpr int kWarps = 4;
/// Pairs of elements that a lane turns; heads have at most 256 elements.
constexpr int kPairs = 256 / 2 / 32;

template <ScalarType kType>
__global__ void __launch_bounds__(32 * kWarps) rotary_kernel(const decoder::RotaryToCache rotary) {
  const int lane = threadIdx.x % 32;
  const int kv_heads = rotary.cache.heads;
  const int heads = rotary.query_heads + 2 * kv_heads;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const std::int64_t row = index / heads;
  const bool inside = row < rotary.rows;
  int head = static_cast<int>(index % heads);
  const int size = rotary.cache.head_size;
  constexpr int kBytes = scalar_bytes(kType);
  const char* const from = static_cast<const char*>(rotary.qkv) + index * size * kBytes;

  const bool is_query = head < rotary.query_heads;
  const bool is_value = head >= rotary.query_heads + kv_heads;
  const std::int64_t slot = inside ? rotary.slots[row] : -1;
  const int half = is_value ? 0 : rotary.rotary / 2;
  const std::int64_t angles = inside ? static_cast<std::int64_t>(rotary.positions[row]) * half : 0;
  float cosine[kPairs], sine[kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    cosine[p] = inside && i < half ? rotary.cos[angles + i] : 0.0f;
    sine[p] = inside && i < half ? rotary.sin[angles + i] : 0.0f;
  }
  ptx::wait_for_predecessors();
  ptx::launch_dependents();
  if (!inside || (!is_query && slot < 0)) return;
  char* to;
  const void* norm = nullptr;
  if (is_query) {
    to = static_cast<char*>(rotary.q) + (row * rotary.query_heads + head) * size * kBytes;
    norm = rotary.q_norm;
  } else {
    head -= rotary.query_heads + (is_value ? kv_heads : 0);
    to = static_cast<char*>(is_value ? rotary.value_cache : rotary.key_cache) +
         (slot * kv_heads + head) * size * kBytes;
    if (!is_value) norm = rotary.k_norm;
  }

  float scale = 1.0f;
  if (norm != nullptr) {
    float squares = 0.0f;
    for (int i = lane; i < size; i += 32) {
      const float v = load_scalar(from, kType, i);
      squares = fmaf(v, v, squares);
    }
    scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(size) + rotary.eps);
  }
  const auto element = [&](int i) {
    const float v = load_scalar(from, kType, i);
    return norm == nullptr ? v : v * scale * (load_scalar(norm, kType, i) + rotary.offset);
  };
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int i = lane + 32 * p;
    if (i >= half) break;
    const float a = element(i);
    const float b = element(i + half);
    store_scalar(to, kType, i, a * cosine[p] - b * sine[p]);
    store_scalar(to, kType, i + half, b * cosine[p] + a * sine[p]);
  }
  for (int i = 2 * half + lane; i < size; i += 32) store_scalar(to, kType, i, element(i));
}

}  // namespace

cudaError_t rotary_to_cache(const decoder::RotaryToCache& rotary, cudaStream_t stream) {
  if (rotary.rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  const std::int64_t warps = rotary.rows * (rotary.query_heads + 2 * rotary.cache.heads);
  const dim3 grid(static_cast<unsigned>((warps + kWarps - 1) / kWarps));
  return with_type(rotary.type, [&](auto type) {
    return launch(rotary_kernel<type()>, device, grid, 32 * kWarps, 0, stream, rotary);
  });
}

}  // namespace anyprec::cuda
