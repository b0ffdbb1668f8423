#include <algorithm>
#include <cstdint>

#include "anyprec/planes.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/table_mma.h"

namespace anyprec::cuda {
namespace {

constexpr int kMaxRows = 64;

TableMmaKernel kernel_for(const Input& input, std::span<const Product> products) {
  return at_precision(products.front().weights.precision,
                      [&](auto precision) { return table_mma_kernel<precision()>(input.rows); });
}

/// Shared memory that a block may have where `blocks` of them share a multiprocessor, which keeps
/// 1 KB of every block's to itself.
int shared_bytes_of_block(const Device& device, int blocks) {
  return (device.block_shared_bytes + 1024) / blocks - 1024;
}

}  // namespace

bool table_mma_serves(const Input& input, const Fused& fused, std::span<const Product> products,
                      const Device& device) {
  const Weights& first = products.front().weights;
  if (input.rows < 1 || input.rows > kMaxRows || input.type == ScalarType::kFloat32) return false;
  if (first.in_features < 1 || first.form.groups(first.in_features) > 1) return false;
  const TableMmaKernel kernel = kernel_for(input, products);
  const bool normed = fused.norm.weight != nullptr;
  if ((fused.add || normed) && !kernel.fuses) return false;
  if (normed && (unit_count(first.in_features) > kernel.chunk_units ||
                 !x_is_vector(input, first.in_features) ||
                 reinterpret_cast<std::uintptr_t>(fused.norm.weight) % 16 != 0)) {
    return false;
  }
  return kernel.shared_bytes + kernel.sum_bytes <= device.block_shared_bytes;
}

bool x_is_vector(const Input& input, std::int64_t columns) {
  return reinterpret_cast<std::uintptr_t>(input.x) % 16 == 0 &&
         (input.x_stride % 8 == 0 || input.rows == 1) && columns % 8 == 0;
}

TableMmaArgs describe_products(const Input& input, std::span<const Product> products) {
  const Weights& first = products.front().weights;
  TableMmaArgs args{};
  args.type = input.type;
  args.x_rows = static_cast<int>(input.rows);
  args.columns = static_cast<int>(first.in_features);
  args.units = static_cast<int>(unit_count(first.in_features));
  args.products = static_cast<int>(products.size());
  args.form = TableForm(first.form, first.precision);
  for (std::size_t i = 0; i < products.size(); ++i) {
    const Product& product = products[i];
    const Weights& w = product.weights;
    args.product[i] = {w.planes,
                       packed_plane_bytes(w.out_features, w.in_features),
                       w.lut,
                       w.alpha,
                       product.bias,
                       product.y,
                       product.y_stride,
                       static_cast<int>(w.out_features),
                       args.tiles};
    args.tiles += static_cast<int>(tile_count(w.out_features));
  }
  return args;
}

cudaError_t launch_table_mma(const TableMmaKernel& kernel, const Input& input, const Fused& fused,
                             std::span<const Product> products, const Device& device,
                             cudaStream_t stream) {
  TableMmaArgs args = describe_products(input, products);
  args.fused = fused;
  args.x = input.x;
  args.x_stride = input.x_stride;
  args.x_is_vector = x_is_vector(input, args.columns);
  args.chunks = divide_up(args.units, kernel.chunk_units);
  // Chunks as large as they may be: of the last one's units all warps have one fewer, rather than
  // some of every chunk's.
  args.chunk_units = std::min(args.units, kernel.chunk_units);
  args.one_shl_16 = 1u << 16;
  if (args.tiles == 0 || args.x_rows == 0) return cudaSuccess;

  int resident = kernel.blocks_per_multiprocessor;
  while (resident > 1 && shared_bytes_of_block(device, resident) < kernel.shared_bytes) --resident;
  int blocks = std::min(args.tiles, device.multiprocessors * resident);
  int most_tiles = kMaxTiles;
  if (args.chunks > 1) {  // the run of a block is bounded by room for its sums
    const int room = shared_bytes_of_block(device, resident) - kernel.shared_bytes;
    most_tiles = std::clamp(room / kernel.sum_bytes, 1, most_tiles);
  }
  blocks = std::max(blocks, divide_up(args.tiles, most_tiles));
  const int shared_bytes = kernel.shared_bytes +
                           (args.chunks > 1 ? divide_up(args.tiles, blocks) * kernel.sum_bytes : 0);
  return launch(kernel.kernel, device, dim3(static_cast<unsigned>(blocks)), kernel.threads,
                shared_bytes, stream, args);
}

cudaError_t table_mma(const Input& input, const Fused& fused, std::span<const Product> products,
                      const Device& device, cudaStream_t stream) {
  return launch_table_mma(kernel_for(input, products), input, fused, products, device, stream);
}

}  // namespace anyprec::cuda
