#include <algorithm>
#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"
#include "kernels/cuda/table_wgmma_args.h"

namespace anyprec::cuda {
namespace {

constexpr int kMaxRows = 128;

/// How a call is cut, and where what it needs lies in the workspace.
struct Plan {
  TableWgmmaKernel kernel;
  int runs, run_halves, cluster, blocks;
  std::size_t scales, bytes;
};

/// What a run costs a block beside its half-units, in half-units: tables to build, sums to add.
constexpr int kRunCost = 8;

/// How many are there at a time. Blocks of a cluster lie in one part of the GPU, of 16
/// multiprocessors or a few more.
int clusters_of(int cluster, const Device& device) {
  const int count = device.multiprocessors;
  return (cluster > 2 ? count / 16 * 16 : count) / cluster;
}

/// How many blocks share a run: what ends first.
int cluster_size(int runs, int run_halves, const Device& device) {
  int best = 1;
  std::int64_t least = 0;
  for (const int cluster : {1, 2, 4, 8}) {
    const int clusters = clusters_of(cluster, device);
    if (clusters == 0) break;
    const std::int64_t turns = (runs + clusters - 1) / clusters;
    const std::int64_t cost = turns * ((run_halves + cluster - 1) / cluster + kRunCost);
    if (cluster > 1 && (cost >= least || run_halves < cluster)) continue;
    best = cluster;
    least = cost;
  }
  return best;
}

Plan plan_for(const TableMmaArgs& args, int precision, const Device& device) {
  Plan plan{};
  plan.kernel =
      at_precision(precision, [&](auto bits) { return table_wgmma_kernel<bits()>(args.x_rows); });
  plan.runs = (args.tiles + kBlockTiles - 1) / kBlockTiles;
  plan.run_halves = (args.columns + kHalfColumns - 1) / kHalfColumns;
  plan.cluster = cluster_size(plan.runs, plan.run_halves, device);
  plan.blocks = std::min(plan.runs, clusters_of(plan.cluster, device)) * plan.cluster;
  plan.scales = activation_tile_bytes(args.columns, plan.kernel.x_rows);
  plan.bytes = plan.scales + static_cast<std::size_t>(plan.kernel.x_rows) * sizeof(float);
  return plan;
}

}  // namespace

bool table_wgmma_serves(const Input& input, std::span<const Product> products,
                        const Device& device) {
  const Weights& first = products.front().weights;
  return device.has_wgmma && input.rows >= 1 && input.rows <= kMaxRows &&
         input.type != ScalarType::kFloat32 && first.in_features >= 1 &&
         first.form.groups(first.in_features) == 1;
}

std::size_t table_wgmma_bytes(const Input& input, std::span<const Product> products,
                              const Device& device) {
  const int precision = products.front().weights.precision;
  return plan_for(describe_products(input, products), precision, device).bytes;
}

cudaError_t table_wgmma(const Input& input, std::span<const Product> products, void* workspace,
                        const Device& device, cudaStream_t stream) {
  const Weights& first = products.front().weights;
  TableWgmmaArgs args{};
  args.table = describe_products(input, products);
  if (args.table.tiles == 0 || args.table.x_rows == 0) return cudaSuccess;
  const Plan plan = plan_for(args.table, first.precision, device);
  auto* const memory = static_cast<std::uint8_t*>(workspace);
  const ActivationTiles tiles{memory, reinterpret_cast<float*>(memory + plan.scales),
                              plan.kernel.x_rows};
  const cudaError_t converted =
      activations_to_tiles(input, first.in_features, tiles, device, stream);
  if (converted != cudaSuccess) return converted;
  args.x_tiles = tiles.tiles;
  args.x_scales = tiles.scales;
  args.runs = plan.runs;
  args.run_halves = plan.run_halves;
  args.cluster = plan.cluster;
  return launch_clusters(plan.kernel.kernel, device, dim3(static_cast<unsigned>(plan.blocks)),
                         plan.cluster, plan.kernel.threads, plan.kernel.shared_bytes, stream, args);
}

}  // namespace anyprec::cuda
