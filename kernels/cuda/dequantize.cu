#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "anyprec/cuda.h"
#include "anyprec/error.h"
#include "anyprec/planes.h"
#include "kernels/cuda/dequantize_groups.cuh"
#include "kernels/cuda/dequantize_rows.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/precisions.h"

/// W_b as numbers, at the speed at which they can be written. Codebooks of whole rows:
/// dequantize_rows.cuh; of groups of columns: dequantize_groups.cuh.
namespace anyprec::cuda {
namespace dequantize_device {
namespace {

template <int kBits, typename T>
cudaError_t launch_dequantize(const DequantizeArgs& args, const Device& device,
                              cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(tile_count(args.row_end) - args.row_begin / kTileRows);
  if (args.groups > 1) {
    const auto parts = static_cast<unsigned>((args.units + kWarps - 1) / kWarps);
    const auto kernel = args.form.table_bits == 0 ? dequantize_groups<kBits, true, T>
                                                  : dequantize_groups<kBits, false, T>;
    return launch(kernel, device, dim3(tiles, parts), kThreads, kWarps * kValuesBytes<T>, stream,
                  args);
  }
  // Tiles are cut along K where there are too few for the device.
  const int wanted = std::max(1, device.multiprocessors * 2 / static_cast<int>(tiles));
  DequantizeArgs cut = args;
  cut.block_units = std::max(kWarps, (args.units + wanted - 1) / wanted);
  const auto parts = static_cast<unsigned>((args.units + cut.block_units - 1) / cut.block_units);
  return launch(dequantize_rows<kBits, T>, device, dim3(tiles, parts), kThreads,
                kRowsSharedBytes<kBits, T>, stream, cut);
}

template <int kBits>
cudaError_t launch_dequantize(const DequantizeArgs& args, ScalarType type, const Device& device,
                              cudaStream_t stream) {
  switch (type) {
    case ScalarType::kFloat32:
      return launch_dequantize<kBits, float>(args, device, stream);
    case ScalarType::kBFloat16:
      return launch_dequantize<kBits, __nv_bfloat16>(args, device, stream);
    case ScalarType::kFloat16:
      return launch_dequantize<kBits, __half>(args, device, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace dequantize_device

cudaError_t dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end,
                       void* out, ScalarType type, cudaStream_t stream) {
  if (row_begin < 0 || row_end > weights.out_features) {
    throw InvalidArgument("dequantize: found rows " + std::to_string(row_begin) + " to " +
                          std::to_string(row_end) + ", wanted rows of a matrix of " +
                          std::to_string(weights.out_features));
  }
  if (row_end <= row_begin || weights.in_features <= 0) return cudaSuccess;
  Device device{};
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  const CodebookForm& form = weights.form;
  dequantize_device::DequantizeArgs args{};
  args.planes = weights.planes;
  args.plane_stride = packed_plane_bytes(weights.out_features, weights.in_features);
  args.lut = weights.lut;
  args.alpha = weights.alpha;
  args.out = out;
  args.columns = weights.in_features;
  args.row_begin = row_begin;
  args.row_end = row_end;
  args.out_features = weights.out_features;
  args.units = static_cast<int>(unit_count(weights.in_features));
  args.group_size = static_cast<int>(form.group_size);
  args.groups = static_cast<int>(form.groups(weights.in_features));
  args.vector = reinterpret_cast<std::uintptr_t>(out) % 16 == 0 && weights.in_features % 8 == 0;
  args.form = TableForm(form, weights.precision);
  return at_precision(weights.precision, [&](auto precision) {
    return dequantize_device::launch_dequantize<precision()>(args, type, device, stream);
  });
}

}  // namespace anyprec::cuda
