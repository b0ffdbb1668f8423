#include <algorithm>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "kernels/cuda/device.h"
#include "kernels/cuda/scalars.cuh"
#include "kernels/cuda/tree.h"
#include "kernels/cuda/tree_row.h"

namespace anyprec::cuda {
namespace {

constexpr std::int64_t kBatchWeights = std::int64_t{1} << 24;
constexpr std::size_t kRowMemoryBytes = std::size_t{1} << 30;
constexpr int kThreads = 256;

struct DeviceBlock {
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    body(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  /// To a few units in the last place: an approximate reciprocal of 20 bits, and Newton's steps.
  static __device__ __forceinline__ double ratio(double x, double y) {
    double r;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(y));
    r = fma(fma(-y, r, 1.0), r, r);
    r = fma(fma(-y, r, 1.0), r, r);
    return x * r;
  }
};

__global__ void __launch_bounds__(kThreads)
    find_bad_kernel(const void* weights, ScalarType type, const float* sensitivities,
                    std::int64_t count, unsigned long long* found) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  unsigned long long weight = ~0ull;
  unsigned long long sensitivity = ~0ull;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const std::uint32_t bits = __float_as_uint(load_scalar(weights, type, i));
    if ((bits & 0x7fffffffu) >= kInfinity) weight = min(weight, static_cast<unsigned long long>(i));
    if (sensitivities == nullptr) continue;
    const std::uint32_t s = __float_as_uint(sensitivities[i]);
    if (s >= kInfinity && s != 0x80000000u) {
      sensitivity = min(sensitivity, static_cast<unsigned long long>(i));
    }
  }
  if (weight != ~0ull) atomicMin(found, weight);
  if (sensitivity != ~0ull) atomicMin(found + 1, sensitivity);
}

/// Rows [first_row, first_row + gridDim.x) of the matrix: keys, and columns within their groups.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const void* weights, ScalarType type, std::int64_t first_row, int columns,
                int group_size, std::uint32_t* keys, std::uint32_t* order) {
  const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * columns;
  const std::int64_t from = (first_row + blockIdx.x) * columns;
  for (int k = static_cast<int>(threadIdx.x); k < columns; k += kThreads) {
    keys[to + k] = tree::key_of(load_scalar(weights, type, from + k));
    order[to + k] = static_cast<std::uint32_t>(k % group_size);
  }
}

/// Where each of a batch's (row, group)s begins; they lie one after the other.
__global__ void __launch_bounds__(kThreads)
    offsets_kernel(int segments, int groups, int columns, int group_size, int* offsets) {
  const int s = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (s > segments) return;
  offsets[s] = s / groups * columns + s % groups * group_size;
}

/// How a batch's memory is laid out.
struct Plan {
  int batch_rows;
  int threads;      // of a block of the tree
  int blocks;       // in flight
  int fast_points;  // rows of up to so many points have their arrays in shared memory
  int shared_bytes;
  std::size_t row_bytes;  // of one block's RowMemory in the workspace
  std::size_t sort_bytes;
  // Offsets in the workspace.
  std::size_t keys[2], columns[2], offsets, sort, rows, end;
};

std::size_t padded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// A block's RowMemory in the workspace: its arrays' offsets.
struct RowLayout {
  std::size_t sensitivity, slow, value, first, trail, end;

  __host__ __device__ RowLayout(std::int64_t size, int fast_points, int seed) {
    const auto n = static_cast<std::size_t>(size);
    sensitivity = 0;
    slow = sensitivity + n * sizeof(double);
    value = slow + (size > fast_points ? (n + 1) * tree::kSeedBytesPerPoint + 4 : 0) / 8 * 8;
    first = value + n * sizeof(float);
    trail = first + (n + 1) * sizeof(int);
    end = trail + n * ((std::size_t{1} << seed) - 2) * sizeof(int);
    end = (end + 255) / 256 * 256;
  }
};

struct TreeArguments {
  const std::uint32_t* keys;     // of the batch, sorted
  const std::uint32_t* columns;  // of the batch
  const int* offsets;
  const float* sensitivities;  // of the batch, or null
  int segments;
  int size;  // of the largest
  int fast_points;
  std::int64_t first_segment;  // of the batch in the matrix
  std::int64_t first_weight;
  tree::Precisions precisions;
  TreeResult result;
  std::byte* memory;
  std::size_t row_bytes;
};

__global__ void __launch_bounds__(tree::kMaxThreads, 2) tree_kernel(const TreeArguments a) {
  extern __shared__ __align__(16) std::byte shared[];
  auto& state = *reinterpret_cast<tree::BlockState*>(shared);
  const RowLayout layout(a.size, a.fast_points, a.precisions.seed);
  std::byte* const own = a.memory + blockIdx.x * a.row_bytes;
  tree::RowMemory memory{};
  memory.points.value = reinterpret_cast<float*>(own + layout.value);
  memory.points.sensitivity = reinterpret_cast<double*>(own + layout.sensitivity);
  memory.points.first = reinterpret_cast<int*>(own + layout.first);
  memory.fast = shared + sizeof(tree::BlockState);
  memory.fast_points = a.fast_points;
  memory.slow = own + layout.slow;
  memory.trail = reinterpret_cast<int*>(own + layout.trail);
  const int precisions = a.precisions.parent - a.precisions.lowest + 1;
  for (int s = static_cast<int>(blockIdx.x); s < a.segments; s += static_cast<int>(gridDim.x)) {
    const int begin = a.offsets[s];
    const tree::SortedRow row{
        .keys = a.keys + begin,
        .columns = a.columns + begin,
        .sensitivities = a.sensitivities == nullptr ? nullptr : a.sensitivities + begin,
        .size = a.offsets[s + 1] - begin};
    const std::int64_t segment = a.first_segment + s;
    tree::RowResult result{};
    result.codes = a.result.codes + a.first_weight + begin;
    for (int b = a.precisions.lowest; b <= a.precisions.parent; ++b) {
      result.luts[b - 2] = a.result.luts[b - 2] + (segment << b);
    }
    result.errors = a.result.errors + segment * precisions;
    tree::quantize_row(DeviceBlock{}, state, memory, row, a.precisions, result);
  }
}

int threads_for(std::int64_t size) {
  return size <= 256 ? 64 : size <= 1024 ? 128 : size <= 2048 ? 256 : tree::kMaxThreads;
}

/// Bits of a float's key below those that weights of the type differ in.
int unused_bits(ScalarType type) {
  switch (type) {
    case ScalarType::kBFloat16:
      return 16;
    case ScalarType::kFloat16:
      return 13;
    default:
      return 0;
  }
}

cudaError_t sort_rows(void* workspace, std::size_t& bytes, cub::DoubleBuffer<std::uint32_t>& keys,
                      cub::DoubleBuffer<std::uint32_t>& columns, std::int64_t weights,
                      std::int64_t segments, const int* offsets, ScalarType type,
                      cudaStream_t stream) {
  return cub::DeviceSegmentedRadixSort::SortPairs(
      workspace, bytes, keys, columns, static_cast<int>(weights), static_cast<int>(segments),
      offsets, offsets + 1, unused_bits(type), 32, stream);
}

cudaError_t make_plan(const TreeInput& input, Plan& plan) {
  Device device{};
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  const auto* const kernel = reinterpret_cast<const void*>(tree_kernel);
  if (const cudaError_t status = allow_all_shared_memory(kernel, device); status != cudaSuccess) {
    return status;
  }
  const std::int64_t size = input.group_size();
  plan.batch_rows = static_cast<int>(
      std::min(input.rows, std::max<std::int64_t>(1, kBatchWeights / input.columns)));
  plan.threads = threads_for(size);
  constexpr auto kState = static_cast<int>(sizeof(tree::BlockState));
  // A row of bfloat16 has 2000 distinct values or so, whatever its length: room for two blocks on a
  // multiprocessor, each of which sets a kilobyte aside.
  const int blocks = input.type == ScalarType::kBFloat16 ? 2 : 1;
  const int shared = (device.block_shared_bytes + 1024) / blocks - 1024;
  plan.fast_points = static_cast<int>(
      std::min<std::int64_t>(size, (shared - kState) / tree::kSeedBytesPerPoint - 1));
  plan.shared_bytes = kState + static_cast<int>(tree::fast_bytes(plan.fast_points));
  int resident = 0;
  const cudaError_t asked = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &resident, tree_kernel, plan.threads, static_cast<std::size_t>(plan.shared_bytes));
  if (asked != cudaSuccess) return asked;
  const std::int64_t segments = plan.batch_rows * input.groups();
  plan.row_bytes = RowLayout(size, plan.fast_points, input.options.seed_precision).end;
  const auto fitting = static_cast<std::int64_t>(kRowMemoryBytes / plan.row_bytes);
  plan.blocks = static_cast<int>(std::max<std::int64_t>(
      1, std::min({segments, std::int64_t{resident} * device.multiprocessors, fitting})));

  const std::int64_t weights = plan.batch_rows * input.columns;
  cub::DoubleBuffer<std::uint32_t> keys;
  cub::DoubleBuffer<std::uint32_t> columns;
  plan.sort_bytes = 0;
  const cudaError_t sorted = sort_rows(nullptr, plan.sort_bytes, keys, columns, weights, segments,
                                       nullptr, input.type, nullptr);
  if (sorted != cudaSuccess) return sorted;
  std::size_t end = 0;
  const auto take = [&](std::size_t bytes) {
    const std::size_t at = end;
    end += padded(bytes);
    return at;
  };
  const std::size_t word_bytes = static_cast<std::size_t>(weights) * sizeof(std::uint32_t);
  for (std::size_t& at : plan.keys) at = take(word_bytes);
  for (std::size_t& at : plan.columns) at = take(word_bytes);
  plan.offsets = take(static_cast<std::size_t>(segments + 1) * sizeof(int));
  plan.sort = take(plan.sort_bytes);
  plan.rows = take(static_cast<std::size_t>(plan.blocks) * plan.row_bytes);
  plan.end = end;
  return cudaSuccess;
}

/// Rows [first_row, first_row + rows).
cudaError_t build_batch(const TreeInput& input, const TreeResult& result, const Plan& plan,
                        std::byte* workspace, std::int64_t first_row, int rows,
                        cudaStream_t stream) {
  const std::int64_t groups = input.groups();
  const std::int64_t segments = rows * groups;
  const auto words = [&](std::size_t at) {
    return reinterpret_cast<std::uint32_t*>(workspace + at);
  };
  auto* const offsets = reinterpret_cast<int*>(workspace + plan.offsets);
  const int columns = static_cast<int>(input.columns);
  const int group_size = static_cast<int>(input.group_size());
  keys_kernel<<<rows, kThreads, 0, stream>>>(input.weights, input.type, first_row, columns,
                                             group_size, words(plan.keys[0]),
                                             words(plan.columns[0]));
  offsets_kernel<<<static_cast<unsigned>((segments + kThreads) / kThreads), kThreads, 0, stream>>>(
      static_cast<int>(segments), static_cast<int>(groups), columns, group_size, offsets);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  cub::DoubleBuffer<std::uint32_t> keys(words(plan.keys[0]), words(plan.keys[1]));
  cub::DoubleBuffer<std::uint32_t> order(words(plan.columns[0]), words(plan.columns[1]));
  std::size_t sort_bytes = plan.sort_bytes;
  const cudaError_t sorted = sort_rows(workspace + plan.sort, sort_bytes, keys, order,
                                       rows * input.columns, segments, offsets, input.type, stream);
  if (sorted != cudaSuccess) return sorted;

  const std::int64_t first_weight = first_row * input.columns;
  const TreeArguments arguments{
      .keys = keys.Current(),
      .columns = order.Current(),
      .offsets = offsets,
      .sensitivities =
          input.sensitivities == nullptr ? nullptr : input.sensitivities + first_weight,
      .segments = static_cast<int>(segments),
      .size = group_size,
      .fast_points = plan.fast_points,
      .first_segment = first_row * groups,
      .first_weight = first_weight,
      .precisions = {input.options.lowest_precision, input.options.seed_precision,
                     input.options.parent_precision},
      .result = result,
      .memory = workspace + plan.rows,
      .row_bytes = plan.row_bytes};
  tree_kernel<<<std::min(plan.blocks, static_cast<int>(segments)), plan.threads,
                static_cast<std::size_t>(plan.shared_bytes), stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace

cudaError_t find_bad_values(const TreeInput& input, std::uint64_t* found, cudaStream_t stream) {
  static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
  const cudaError_t status = cudaMemsetAsync(found, 0xff, 2 * sizeof(std::uint64_t), stream);
  const std::int64_t count = input.rows * input.columns;
  if (status != cudaSuccess || count == 0) return status;
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>((count + kThreads - 1) / kThreads, 2048));
  find_bad_kernel<<<blocks, kThreads, 0, stream>>>(input.weights, input.type, input.sensitivities,
                                                   count,
                                                   reinterpret_cast<unsigned long long*>(found));
  return cudaGetLastError();
}

cudaError_t tree_workspace_bytes(const TreeInput& input, std::size_t& bytes) {
  Plan plan{};
  const cudaError_t status = make_plan(input, plan);
  bytes = plan.end;
  return status;
}

cudaError_t build_tree(const TreeInput& input, const TreeResult& result, void* workspace,
                       cudaStream_t stream) {
  Plan plan{};
  if (const cudaError_t status = make_plan(input, plan); status != cudaSuccess) return status;
  for (std::int64_t row = 0; row < input.rows; row += plan.batch_rows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(plan.batch_rows, input.rows - row));
    const cudaError_t status =
        build_batch(input, result, plan, static_cast<std::byte*>(workspace), row, rows, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace anyprec::cuda
