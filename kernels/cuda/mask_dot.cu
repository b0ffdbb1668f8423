#include <algorithm>
#include <optional>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/mask_dot.h"
#include "kernels/cuda/mask_dot_args.h"
#include "kernels/cuda/mask_dot_block.cuh"
#include "kernels/cuda/products.h"

namespace anyprec::cuda {
namespace {

constexpr int kMostRows = 2;
constexpr std::int64_t kMostColumns = std::int64_t{1} << 20;  // counts stay in 32 bits

std::optional<MaskDotKernels> kernels_of(const CodebookForm& form, std::int64_t in_features,
                                         int rows) {
  if (form.group_size == 128 && form.lut_bits == 0 && in_features % kUnitColumns == 0) {
    return mask_dot_bcq_g128(rows);
  }
  if (form.group_size != 0) return std::nullopt;
  const auto classes = form.cell_groups;
  switch (form.lut_bits) {
    case 0:
      return mask_dot_bcq(rows);
    case 2:
      if (classes == CellGroups::kOne) return mask_dot_l2(rows);
      break;
    case 3:
      if (classes == CellGroups::kOne) return mask_dot_l3(rows);
      if (classes == CellGroups::kIo) return mask_dot_l3_io(rows);
      if (classes == CellGroups::kSym) return mask_dot_l3_sym(rows);
      break;
    case 4:
      if (classes == CellGroups::kOne) return mask_dot_l4(rows);
      if (classes == CellGroups::kIo) return mask_dot_l4_io(rows);
      if (classes == CellGroups::kQu) return mask_dot_l4_qu(rows);
      break;
    case kMaxPrecision:
      return mask_dot_full(rows);
    default:
      break;
  }
  return std::nullopt;
}

/// Shared memory of a launch: all of it, and what the rings of weights have.
struct SharedPlan {
  int bytes;
  int ring_bytes;
};

/// Enough for two stages at each precision of `wanted` (bits b - 2): half an SM where that does, so
/// that the next launch's blocks find room beside these, else all of it.
std::optional<SharedPlan> plan_shared(const MaskDotKernels& kernels, unsigned wanted, int rows,
                                      std::int64_t units, std::int64_t tiles,
                                      const Device& device) {
  const std::int64_t blocks = std::min<std::int64_t>(tiles, device.multiprocessors);
  const std::int64_t block_tiles = (tiles + blocks - 1) / blocks;
  // Before a product can overflow: neither can be large in shared memory.
  if (units > kMostColumns / kUnitColumns || block_tiles > 4096) return std::nullopt;
  int before_ring = 0;
  int stages = 0;
  for (int i = 0; i < kPrecisions; ++i) {
    if (!(wanted >> i & 1)) continue;
    const mask_dot_device::Layout layout(kernels.shape[i], rows, static_cast<int>(units),
                                         static_cast<int>(block_tiles), kernels.tile_bytes);
    before_ring = std::max(before_ring, layout.ring);
    stages = std::max(stages, 2 * kernels.shape[i].stage_bytes);
  }
  for (const int budget : {mask_dot_device::kSharedBytes, device.block_shared_bytes}) {
    if (before_ring + stages <= budget) return SharedPlan{budget, budget - before_ring};
  }
  return std::nullopt;
}

struct Launch {
  MaskDotKernels kernels;
  SharedPlan shared;
};

std::optional<Launch> plan(const Input& input, const Fused& fused,
                           std::span<const Product> products, unsigned wanted,
                           const Device& device) {
  if (input.rows < 1 || input.rows > kMostRows || products.empty()) return std::nullopt;
  const Weights& first = products.front().weights;
  const int rows = static_cast<int>(input.rows);
  const std::optional<MaskDotKernels> kernels = kernels_of(first.form, first.in_features, rows);
  if (!kernels) return std::nullopt;
  for (int i = 0; i < kPrecisions; ++i) {
    if ((wanted >> i & 1) && kernels->precision[i] == nullptr) return std::nullopt;
  }
  if (fused.norm.weight != nullptr && (rows > 1 || first.in_features > kMaskDotNormColumns)) {
    return std::nullopt;
  }
  const std::int64_t tiles = total_tiles(products);
  if (tiles == 0 || tiles >= std::int64_t{1} << 26) return std::nullopt;
  const std::optional<SharedPlan> shared =
      plan_shared(*kernels, wanted, rows, unit_count(first.in_features), tiles, device);
  if (!shared) return std::nullopt;
  return Launch{*kernels, *shared};
}

MaskDotArgs arguments(const Input& input, const ActivationPlanes& planes, const Fused& fused,
                      std::span<const Product> products, const SharedPlan& shared) {
  const Weights& first = products.front().weights;
  MaskDotArgs args{};
  args.x = input.x;
  args.x_stride = input.x_stride;
  args.type = input.type;
  args.x_planes = planes.planes;
  args.x_scales = planes.scales;
  args.fused = fused;
  args.columns = static_cast<int>(first.in_features);
  args.units = static_cast<int>(unit_count(first.in_features));
  args.products = static_cast<int>(products.size());
  args.ring_bytes = shared.ring_bytes;
  for (std::size_t i = 0; i < products.size(); ++i) {
    const Product& from = products[i];
    MaskDotProduct& to = args.product[i];
    to.planes = from.weights.planes;
    to.plane_stride = packed_plane_bytes(from.weights.out_features, from.weights.in_features);
    to.bias = from.bias;
    to.y = from.y;
    to.y_stride = from.y_stride;
    to.rows = static_cast<int>(from.weights.out_features);
    to.tile_begin = args.tiles;
    args.tiles += static_cast<int>(tile_count(from.weights.out_features));
  }
  return args;
}

cudaError_t run(MaskDotKernels::Kernel kernel, const MaskDotArgs& args, const SharedPlan& shared,
                const Device& device, cudaStream_t stream) {
  const int blocks = std::min(args.tiles, device.multiprocessors);
  return launch(kernel, device, dim3(static_cast<unsigned>(blocks)), kMaskDotThreads, shared.bytes,
                stream, args);
}

unsigned common_precisions(std::span<const Codebooks> codebooks) {
  unsigned common = (1u << kPrecisions) - 1;
  for (const Codebooks& books : codebooks) {
    for (int i = 0; i < kPrecisions; ++i) {
      if (books.lut[i] == nullptr) common &= ~(1u << i);
    }
  }
  return common;
}

}  // namespace

bool mask_dot_serves(const Input& input, const Fused& fused, std::span<const Product> products,
                     const Device& device) {
  if (products.empty()) return false;
  const int index = products.front().weights.precision - kMinPrecision;
  return plan(input, fused, products, 1u << index, device).has_value();
}

cudaError_t mask_dot(const Input& input, const ActivationPlanes& planes, const Fused& fused,
                     std::span<const Product> products, const Device& device, cudaStream_t stream) {
  const int index = products.front().weights.precision - kMinPrecision;
  const std::optional<Launch> launch = plan(input, fused, products, 1u << index, device);
  if (!launch) return cudaErrorInvalidConfiguration;
  MaskDotArgs args = arguments(input, planes, fused, products, launch->shared);
  for (std::size_t i = 0; i < products.size(); ++i) {
    args.product[i].lut[index] = products[i].weights.lut;
    args.product[i].alpha[index] = products[i].weights.alpha;
  }
  return run(launch->kernels.precision[index], args, launch->shared, device, stream);
}

bool mask_dot_serves_any(const Input& input, std::span<const Product> products,
                         std::span<const Codebooks> codebooks, const Device& device) {
  const unsigned wanted = common_precisions(codebooks);
  return wanted != 0 && plan(input, {}, products, wanted, device).has_value();
}

cudaError_t mask_dot_any(const Input& input, const int* precision,
                         std::span<const Product> products, std::span<const Codebooks> codebooks,
                         const Device& device, cudaStream_t stream) {
  const std::optional<Launch> launch =
      plan(input, {}, products, common_precisions(codebooks), device);
  if (!launch) return cudaErrorInvalidConfiguration;
  MaskDotArgs args = arguments(input, {}, {}, products, launch->shared);
  args.precision_at = precision;
  for (std::size_t i = 0; i < products.size(); ++i) {
    std::copy_n(codebooks[i].lut, kPrecisions, args.product[i].lut);
    std::copy_n(codebooks[i].alpha, kPrecisions, args.product[i].alpha);
  }
  return run(launch->kernels.any_precision, args, launch->shared, device, stream);
}

}  // namespace anyprec::cuda
