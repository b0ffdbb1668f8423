#include <algorithm>
#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"
#include "kernels/cuda/table_wgmma_args.h"

namespace anyprec::cuda {
namespace {

constexpr int kMaxRows = 128;

TableWgmmaKernel kernel_for(const Input& input, std::span<const Product> products) {
  return at_precision(products.front().weights.precision,
                      [&](auto bits) { return table_wgmma_kernel<bits()>(input.rows); });
}

/// What a run costs a block beside its half-units, in half-units: tables to build, sums to add.
constexpr int kRunCost = 8;

/// How many blocks share a run, by what ends first, and how many runs are under way at a time.
cudaError_t choose_clusters(const TableWgmmaKernel& kernel, const Device& device,
                            TableWgmmaArgs& args, int& clusters) {
  std::int64_t least = 0;
  for (const int cluster : {1, 2, 4, 8}) {
    if (cluster > args.run_halves) break;
    int resident = device.multiprocessors;
    if (cluster > 1) {
      const cudaError_t status =
          resident_clusters(reinterpret_cast<const void*>(kernel.kernel), device, cluster,
                            kernel.threads, kernel.shared_bytes, resident);
      if (status != cudaSuccess) return status;
    }
    if (resident == 0) break;
    const std::int64_t turns = divide_up(args.runs, resident);
    const std::int64_t cost = turns * (divide_up(args.run_halves, cluster) + kRunCost);
    if (cluster > 1 && cost >= least) continue;
    least = cost;
    args.cluster = cluster;
    clusters = std::min(args.runs, resident);
  }
  return cudaSuccess;
}

}  // namespace

bool table_wgmma_serves(const Input& input, std::span<const Product> products,
                        const Device& device) {
  const Weights& first = products.front().weights;
  return device.has_wgmma && input.rows >= 1 && input.rows <= kMaxRows &&
         input.type != ScalarType::kFloat32 && first.in_features >= 1 &&
         first.form.groups(first.in_features) == 1;
}

std::size_t table_wgmma_bytes(const Input& input, std::span<const Product> products) {
  const int rows = kernel_for(input, products).x_rows;
  return activation_tile_bytes(products.front().weights.in_features, rows) +
         static_cast<std::size_t>(rows) * sizeof(float);
}

cudaError_t table_wgmma(const Input& input, std::span<const Product> products, void* workspace,
                        const Device& device, cudaStream_t stream) {
  const Weights& first = products.front().weights;
  TableWgmmaArgs args{};
  args.table = describe_products(input, products);
  if (args.table.tiles == 0 || args.table.x_rows == 0) return cudaSuccess;
  const TableWgmmaKernel kernel = kernel_for(input, products);
  args.runs = divide_up(args.table.tiles, kBlockTiles);
  args.run_halves = divide_up(args.table.columns, kHalfColumns);
  int clusters = 0;
  if (const cudaError_t status = choose_clusters(kernel, device, args, clusters);
      status != cudaSuccess) {
    return status;
  }
  auto* const memory = static_cast<std::uint8_t*>(workspace);
  auto* const scales =
      reinterpret_cast<float*>(memory + activation_tile_bytes(first.in_features, kernel.x_rows));
  args.x_tiles = memory;
  args.x_scales = scales;
  const FirstCodebooks ahead{args.table, std::min(args.table.tiles, clusters * kBlockTiles)};
  if (const cudaError_t status = activations_to_tiles(
          input, first.in_features, {memory, scales, kernel.x_rows}, ahead, device, stream);
      status != cudaSuccess) {
    return status;
  }
  return launch_clusters(kernel.kernel, device,
                         dim3(static_cast<unsigned>(clusters * args.cluster)), args.cluster,
                         kernel.threads, kernel.shared_bytes, stream, args);
}

}  // namespace anyprec::cuda
