#include <algorithm>
#include <cstdint>

#include "kernels/cuda/activation_tiles.h"
#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"
#include "kernels/cuda/table_wgmma_args.h"

namespace anyprec::cuda {
namespace {

constexpr int kMaxRows = 128;
TableWgmmaKernel kernel_for(int precision, std::int64_t rows) {
  switch (precision) {
    case 2:
      return table_wgmma_kernel<2>(rows);
    case 3:
      return table_wgmma_kernel<3>(rows);
    case 4:
      return table_wgmma_kernel<4>(rows);
    case 5:
      return table_wgmma_kernel<5>(rows);
    case 6:
      return table_wgmma_kernel<6>(rows);
    case 7:
      return table_wgmma_kernel<7>(rows);
    default:
      return table_wgmma_kernel<8>(rows);
  }
}

/// How a call is cut, and where what it needs lies in the workspace.
struct Plan {
  TableWgmmaKernel kernel;
  int runs, run_halves, grain, blocks;
  std::size_t scales, arrivals, parts, bytes;
};

Plan plan_for(const TableMmaArgs& args, std::int64_t in_features, int precision,
              const Device& device) {
  Plan plan{};
  plan.kernel = kernel_for(precision, args.x_rows);
  plan.runs = (args.tiles + kBlockTiles - 1) / kBlockTiles;
  plan.run_halves = (args.columns + kHalfColumns - 1) / kHalfColumns;
  const std::int64_t work = std::int64_t{plan.runs} * plan.run_halves;
  // Whole runs where that leaves multiprocessors a fifth of the time idle at most: parts of runs
  // cost about as much.
  const int turns = (plan.runs + device.multiprocessors - 1) / device.multiprocessors;
  const bool whole = turns * device.multiprocessors * 4 <= plan.runs * 5;
  plan.grain = whole ? plan.run_halves : 1;
  const std::int64_t most =
      whole ? plan.runs : (work + plan.kernel.groups - 1) / plan.kernel.groups;
  plan.blocks = static_cast<int>(std::clamp<std::int64_t>(most, 1, device.multiprocessors));
  const auto rows = static_cast<std::size_t>(plan.kernel.x_rows);
  plan.scales = activation_tile_bytes(in_features, plan.kernel.x_rows);
  plan.arrivals = plan.scales + rows * sizeof(float);
  const std::size_t counters = static_cast<std::size_t>(plan.runs) * sizeof(std::uint32_t);
  plan.parts = (plan.arrivals + counters + 15) / 16 * 16;
  plan.bytes = plan.parts + static_cast<std::size_t>(plan.blocks) * 2 * rows * kBlockRows * 4;
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
  const Weights& first = products.front().weights;
  return plan_for(describe_products(input, products), first.in_features, first.precision, device)
      .bytes;
}

cudaError_t table_wgmma(const Input& input, std::span<const Product> products, void* workspace,
                        const Device& device, cudaStream_t stream) {
  const Weights& first = products.front().weights;
  TableWgmmaArgs args{};
  args.table = describe_products(input, products);
  if (args.table.tiles == 0 || args.table.x_rows == 0) return cudaSuccess;
  const Plan plan = plan_for(args.table, first.in_features, first.precision, device);
  auto* const memory = static_cast<std::uint8_t*>(workspace);
  const ActivationTiles tiles{memory, reinterpret_cast<float*>(memory + plan.scales),
                              reinterpret_cast<std::uint32_t*>(memory + plan.arrivals),
                              plan.kernel.x_rows, plan.runs};
  const cudaError_t converted =
      activations_to_tiles(input, first.in_features, tiles, device, stream);
  if (converted != cudaSuccess) return converted;
  args.x_tiles = tiles.tiles;
  args.x_scales = tiles.scales;
  args.runs = plan.runs;
  args.run_halves = plan.run_halves;
  args.grain = plan.grain;
  args.arrivals = tiles.counters;
  args.parts = reinterpret_cast<float*>(memory + plan.parts);
  return launch(plan.kernel.kernel, device, dim3(static_cast<unsigned>(plan.blocks)),
                plan.kernel.threads, plan.kernel.shared_bytes, stream, args);
}

}  // namespace anyprec::cuda
