#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "anyprec/cuda.h"
#include "anyprec/error.h"
#include "anyprec/planes.h"
#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/dequantize_groups.cuh"
#include "kernels/cuda/dequantize_values.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_build.cuh"

/// W_b as numbers, at the speed at which they can be written.
///
/// Codebooks of whole rows become a table in shared memory as in table_build.cuh, but of single
/// values in the type of the output; a warp turns half-units (16 rows x 128 columns) of planes into
/// values and writes them (dequantize_values.cuh). Groups of columns: dequantize_groups.cuh.
namespace anyprec::cuda {
namespace dequantize_device {
namespace {

/// A lane's words of a row to the warp's memory: values of 32 columns by look-ups.
template <int kBits, typename T>
__device__ __forceinline__ void look_up_row(const char* table, int half_of_tile,
                                            const std::uint32_t (&words)[kBits], uint4* values) {
  const int lane = threadIdx.x % 32;
  const int row = lane / 4 + 8 * half_of_tile;
  std::uint32_t bytes[8];
  single_code_bytes<kBits>(words, bytes);
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // columns 8 i + {0 .. 7} of the lane's
    std::uint32_t value[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const std::uint32_t offset = __byte_perm(bytes[c], 4 * lane, 0x7604 | i << 4);
      value[c] =
          *reinterpret_cast<const std::uint32_t*>(table + half_of_tile * kEntryBytes / 2 + offset);
    }
    if constexpr (sizeof(T) == 2) {
      keep_eight<T>({make_uint4(value[0] | value[1] << 16, value[2] | value[3] << 16,
                                value[4] | value[5] << 16, value[6] | value[7] << 16)},
                    row, i, values);
    } else {
      keep_eight<T>({make_uint4(value[0], value[1], value[2], value[3]),
                     make_uint4(value[4], value[5], value[6], value[7])},
                    row, i, values);
    }
  }
}

template <int kBits, typename T>
constexpr int dequantize_shared_bytes() {
  return (kEntryBytes << kBits) + kStageBytes<kBits> + kWarps * kValuesBytes<T>;
}

/// Block (x, y): units y * block_units .. of tile x of the range.
template <int kBits, typename T>
__global__ void __launch_bounds__(kThreads, 2)
    dequantize_rows(const __grid_constant__ DequantizeArgs args) {
  extern __shared__ __align__(1024) char shared[];
  ptx::launch_dependents();
  char* const table = shared;
  char* const staged = shared + (kEntryBytes << kBits);
  uint4* const values = reinterpret_cast<uint4*>(staged + kStageBytes<kBits>) +
                        threadIdx.x / 32 * (kValuesBytes<T> / 16);
  const std::int64_t tile = args.row_begin / kTileRows + blockIdx.x;
  const std::int64_t first_row = tile * kTileRows;
  const int first_unit = blockIdx.y * args.block_units;
  const int end_unit = min(args.units, first_unit + args.block_units);
  int unit = first_unit + threadIdx.x / 32;
  uint4 next[kBits] = {};  // planes of the next unit, under way
  const auto load = [&](int of_unit) {
    if (of_unit >= end_unit) return;
    const std::uint8_t* from =
        args.planes + (tile * args.units + of_unit) * kRecordBytes + threadIdx.x % 32 * kLaneBytes;
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      next[p] = __ldcs(reinterpret_cast<const uint4*>(from));
      from += args.plane_stride;
    }
  };
  load(unit);

  const TableForm& form = args.form;
  stage_codebooks<kThreads>(
      form, reinterpret_cast<const char*>(args.lut) + first_row * (2 << form.table_bits),
      reinterpret_cast<const char*>(args.alpha) + first_row * 2 * form.signs * form.classes,
      static_cast<int>(min(std::int64_t{kTileRows}, args.out_features - first_row)), staged);
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  build_singles<kBits, kThreads, T>(form, staged, table);
  __syncthreads();
  ptx::wait_for_predecessors();

  for (; unit < end_unit; unit += kWarps) {
    uint4 planes[kBits];
#pragma unroll
    for (int p = 0; p < kBits; ++p) planes[p] = next[p];
    load(unit + kWarps);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t words[kBits];
#pragma unroll
      for (int p = 0; p < kBits; ++p) words[p] = h == 0 ? planes[p].x : planes[p].z;
      look_up_row<kBits, T>(table, 0, words, values);
#pragma unroll
      for (int p = 0; p < kBits; ++p) words[p] = h == 0 ? planes[p].y : planes[p].w;
      look_up_row<kBits, T>(table, 1, words, values);
      __syncwarp();
      write_rows<T>(args, values, first_row,
                    static_cast<std::int64_t>(unit) * kUnitColumns + h * kHalfColumns);
      __syncwarp();
    }
  }
}

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
                dequantize_shared_bytes<kBits, T>(), stream, cut);
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
