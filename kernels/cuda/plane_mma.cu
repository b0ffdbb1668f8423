#include <algorithm>
#include <cstdint>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/plane_mma.h"
#include "kernels/cuda/plane_mma_args.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/table_mma.h"

namespace anyprec::cuda {
namespace {

constexpr std::int64_t kMostColumns = std::int64_t{1} << 20;  // GroupOfSegment

PlaneMmaKernel kernel_for(const Input& input, const Weights& weights) {
  return at_precision(weights.precision, [&](auto precision) {
    return plane_mma_kernel<precision()>(input.rows, plane_mma_parts(weights));
  });
}

/// Segments of a group; one group has them all.
int group_segments(const Weights& weights) {
  const std::int64_t columns = weights.form.groups(weights.in_features) == 1
                                   ? unit_count(weights.in_features) * kUnitColumns
                                   : weights.form.group_size;
  return static_cast<int>(columns / kSegmentColumns);
}

}  // namespace

int plane_mma_parts(const Weights& weights) {
  const int segments = group_segments(weights);
  return segments % 4 == 0 ? 1 : (segments % 2 == 0 ? 2 : 4);
}

bool plane_mma_serves(const Input& input, std::span<const Product> products, const Device& device) {
  if (products.empty() || input.rows < 1 || input.type == ScalarType::kFloat32) return false;
  const Weights& first = products.front().weights;
  if (first.form.lut_bits != 0 || first.form.classes() != 1) return false;
  if (first.in_features < 1 || first.in_features > kMostColumns) return false;
  if (input.rows > kMostPlaneRows) return false;
  return kernel_for(input, first).shared_bytes <= device.block_shared_bytes;
}

cudaError_t launch_plane_mma(const Input& input, std::span<const Product> products, int blocks,
                             const Device& device, cudaStream_t stream) {
  const Weights& first = products.front().weights;
  const PlaneMmaKernel kernel = kernel_for(input, first);
  PlaneMmaArgs args{};
  static_cast<TableMmaArgs&>(args) = describe_products(input, products);
  args.x = input.x;
  args.x_stride = input.x_stride;
  args.x_is_vector = x_is_vector(input, first.in_features);
  args.chunks = divide_up(args.units, kernel.chunk_units);
  args.chunk_units = kernel.chunk_units;  // the last chunk may be short: warps are busier so
  args.groups = static_cast<int>(first.form.groups(first.in_features));
  args.group_of = GroupOfSegment::of_size(group_segments(first));
  if (args.tiles == 0 || args.x_rows == 0) return cudaSuccess;
  const int grid = std::max(std::min(args.tiles, blocks * device.multiprocessors),
                            divide_up(args.tiles, kMaxPlaneTiles));
  return launch(kernel.kernel, device, dim3(static_cast<unsigned>(grid)), kernel.threads,
                kernel.shared_bytes, stream, args);
}

cudaError_t plane_mma(const Input& input, std::span<const Product> products, const Device& device,
                      cudaStream_t stream) {
  // A second block a multiprocessor leaves the next launch no room (benchmarks/RESULTS.md).
  return launch_plane_mma(input, products, 1, device, stream);
}

}  // namespace anyprec::cuda
