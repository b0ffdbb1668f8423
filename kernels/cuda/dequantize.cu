#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "anyprec/cuda.h"
#include "anyprec/error.h"
#include "anyprec/planes.h"
#include "kernels/cuda/code_bytes.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/precisions.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/table_build.cuh"

/// W_b as numbers, at the speed at which they can be written.
///
/// Codebooks of whole rows become a table in shared memory as in table_build.cuh, but of single
/// values in the type of the output; a warp turns half-units (16 rows x 128 columns) of planes into
/// values, passes them through its own piece of shared memory and writes runs of whole rows. Where
/// groups of columns have their own codebooks, a thread reads its group's and makes 32 columns, by
/// sums of signed numbers where there is no table.
namespace anyprec::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

struct DequantizeArgs {
  const std::uint8_t* planes;
  std::int64_t plane_stride;
  const std::uint16_t* lut;
  const std::uint16_t* alpha;
  void* out;
  std::int64_t columns;    ///< K
  std::int64_t row_begin;  ///< of W
  std::int64_t row_end;
  std::int64_t out_features;
  int units;
  int block_units;  ///< of a tile, by one block
  int group_size;   ///< columns; 0: the whole row
  int groups;
  bool vector;  ///< runs of 16 bytes of the output are aligned and whole
  TableForm form;
};

__device__ __forceinline__ std::uint32_t bits_of_value(float value, float) {
  return __float_as_uint(value);
}
__device__ __forceinline__ std::uint32_t bits_of_value(float value, __half) {
  return __half_as_ushort(__float2half_rn(value));
}
__device__ __forceinline__ std::uint32_t bits_of_value(float value, __nv_bfloat16) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

/// Where 16-byte piece `piece` of a row of 128 values lies in its row's memory: neither the lanes
/// that write (two rows, four runs of 32 columns) nor those that read (a row) meet in a bank.
template <typename T>
__device__ __forceinline__ int swizzled(int row, int piece) {
  return sizeof(T) == 2 ? piece ^ (piece >> 3 & 1) ^ (row & 1) << 1
                        : piece ^ (piece >> 3 & 3) ^ (row & 1) << 2;
}

/// The values of 16 rows x 128 columns, from the warp's memory to the output.
template <typename T>
__device__ __forceinline__ void write_rows(const DequantizeArgs& args, const uint4* values,
                                           std::int64_t first_row, std::int64_t first_column) {
  constexpr int kPerPiece = 16 / sizeof(T);
  constexpr int kPieces = kHalfColumns / kPerPiece;
#pragma unroll
  for (int i = threadIdx.x % 32; i < kTileRows * kPieces; i += 32) {
    const int row = i / kPieces, piece = i % kPieces;
    const std::int64_t w_row = first_row + row;
    const std::int64_t column = first_column + piece * kPerPiece;
    if (w_row < args.row_begin || w_row >= args.row_end || column >= args.columns) continue;
    const uint4 four = values[row * kPieces + swizzled<T>(row, piece)];
    T* const out = static_cast<T*>(args.out) + (w_row - args.row_begin) * args.columns + column;
    if (args.vector) {
      *reinterpret_cast<uint4*>(out) = four;
    } else {
      const T* const elements = reinterpret_cast<const T*>(&four);
#pragma unroll
      for (int e = 0; e < kPerPiece; ++e) {
        if (column + e < args.columns) out[e] = elements[e];
      }
    }
  }
}

/// A lane's words of a row to the warp's memory: values of 32 columns by look-ups.
template <int kBits, typename T>
__device__ __forceinline__ void look_up_row(const char* table, int half_of_tile,
                                            const std::uint32_t (&words)[kBits], uint4* values) {
  constexpr int kPerPiece = 16 / sizeof(T);
  constexpr int kPieces = kHalfColumns / kPerPiece;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = g + 8 * half_of_tile;
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
      values[row * kPieces + swizzled<T>(row, 4 * t + i)] =
          make_uint4(value[0] | value[1] << 16, value[2] | value[3] << 16,
                     value[4] | value[5] << 16, value[6] | value[7] << 16);
    } else {
      values[row * kPieces + swizzled<T>(row, 8 * t + 2 * i)] =
          make_uint4(value[0], value[1], value[2], value[3]);
      values[row * kPieces + swizzled<T>(row, 8 * t + 2 * i + 1)] =
          make_uint4(value[4], value[5], value[6], value[7]);
    }
  }
}

template <int kBits, typename T>
constexpr int dequantize_shared_bytes() {
  return (kEntryBytes << kBits) + kStageBytes<kBits> +
         kWarps * kTileRows * kHalfColumns * sizeof(T);
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
                        threadIdx.x / 32 * (kTileRows * kHalfColumns * sizeof(T) / 16);
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
  const int row = threadIdx.x % kTileRows;
  const CodebookRow codebook = staged_row(form, staged, row);
  for (int code = threadIdx.x / kTileRows; code < 1 << kBits; code += kThreads / kTileRows) {
    const std::uint32_t word = bits_of_value(codebook.value(form, code, 0), T{});
    *reinterpret_cast<uint4*>(table + reversed<kBits>(code) * kEntryBytes +
                              row / 8 * (kEntryBytes / 2) + row % 8 * 16) =
        make_uint4(word, word, word, word);
  }
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

constexpr int kGroupThreads = 128;

/// What 32 columns of a row, which share a group, have in common.
template <int kBits>
struct GroupRun {
  std::uint32_t words[kBits];  ///< of plane p, bit i for column i
  const __half* lut;
  const __half* alphas;
  float offset;        ///< the table's first entry
  float alpha[kBits];  ///< of signed plane s, for cells of class 0

  __device__ __forceinline__ GroupRun(const DequantizeArgs& args, std::int64_t row, int column) {
    const std::int64_t record = row / kTileRows * args.units + column / kUnitColumns;
    const int word = word_of(static_cast<int>(row % kTileRows), column % kUnitColumns);
    const std::uint8_t* from = args.planes + record * kRecordBytes + word * 4;
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      words[p] = __ldg(reinterpret_cast<const std::uint32_t*>(from));
      from += args.plane_stride;
    }
    const TableForm& form = args.form;
    const std::int64_t codebook = row * args.groups + column / args.group_size;
    lut = reinterpret_cast<const __half*>(args.lut) + (codebook << form.table_bits);
    alphas = reinterpret_cast<const __half*>(args.alpha) + codebook * form.signs * form.classes;
    offset = __half2float(__ldg(lut));
#pragma unroll
    for (int s = 0; s < kBits; ++s) {
      alpha[s] = s < form.signs ? __half2float(__ldg(alphas + s * form.classes)) : 0.0f;
    }
  }

  /// Of binary coding: all planes are signed.
  __device__ __forceinline__ float binary(int i) const {
    float sum = offset;
#pragma unroll
    for (int p = 0; p < kBits; ++p) {
      const std::uint32_t minus = ~(words[p] << (31 - i)) & 0x80000000u;
      sum += __uint_as_float(__float_as_uint(alpha[p]) ^ minus);
    }
    return sum;
  }

  __device__ __forceinline__ float value(const TableForm& form, int i) const {
    int code = 0;
#pragma unroll
    for (int p = 0; p < kBits; ++p) code = 2 * code + static_cast<int>(words[p] >> i & 1);
    const int cell = code >> form.signs;
    const int of_class = form.classes > 1 ? form.codebook.class_of(cell) : 0;
    float sum = __half2float(__ldg(lut + cell));
#pragma unroll
    for (int s = 0; s < kBits; ++s) {
      if (s >= form.signs) continue;
      const float a =
          of_class == 0 ? alpha[s] : __half2float(__ldg(alphas + s * form.classes + of_class));
      sum += (code >> (form.signs - 1 - s) & 1) != 0 ? a : -a;
    }
    return sum;
  }
};

/// Block (x, y): a thread each for runs of 32 columns of row x.
template <int kBits, bool kBinary, typename T>
__global__ void __launch_bounds__(kGroupThreads)
    dequantize_groups(const __grid_constant__ DequantizeArgs args) {
  ptx::launch_dependents();
  const std::int64_t row = args.row_begin + blockIdx.x;
  const int column = (static_cast<int>(blockIdx.y) * kGroupThreads + threadIdx.x) * 32;
  const bool inside = column < args.columns;
  const GroupRun<kBits> run(args, row, inside ? column : 0);
  ptx::wait_for_predecessors();
  if (!inside) return;
  T* const out = static_cast<T*>(args.out) + (row - args.row_begin) * args.columns + column;
  const int left = static_cast<int>(min(args.columns - column, std::int64_t{32}));
  // Shifts by constants are free; whatever else a table takes is not worth its length in code.
#pragma unroll(kBinary ? 4 : 1)
  for (int first = 0; first < 32; first += 8) {
    if (first >= left) break;
    __align__(16) T eight[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float number = kBinary ? run.binary(first + i) : run.value(args.form, first + i);
      const std::uint32_t value = bits_of_value(number, T{});
      eight[i] = reinterpret_cast<const T&>(value);
    }
    if (args.vector) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(eight) / 16); ++i) {
        reinterpret_cast<uint4*>(out + first)[i] = reinterpret_cast<const uint4*>(eight)[i];
      }
    } else {
      for (int i = 0; i < 8 && first + i < left; ++i) out[first + i] = eight[i];
    }
  }
}

template <int kBits, typename T>
cudaError_t launch_dequantize(const DequantizeArgs& args, const Device& device,
                              cudaStream_t stream) {
  if (args.groups > 1) {
    constexpr int kBlockColumns = 32 * kGroupThreads;
    const dim3 grid(static_cast<unsigned>(args.row_end - args.row_begin),
                    static_cast<unsigned>((args.columns + kBlockColumns - 1) / kBlockColumns));
    const auto kernel = args.form.table_bits == 0 ? dequantize_groups<kBits, true, T>
                                                  : dequantize_groups<kBits, false, T>;
    return launch(kernel, device, grid, kGroupThreads, 0, stream, args);
  }
  // Tiles are cut along K where there are too few for the device.
  const auto tiles = static_cast<unsigned>(tile_count(args.row_end) - args.row_begin / kTileRows);
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
  DequantizeArgs args{};
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
    return launch_dequantize<precision()>(args, type, device, stream);
  });
}

}  // namespace anyprec::cuda
