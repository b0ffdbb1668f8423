#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "anyprec/cuda.h"
#include "kernels/cuda/layout.h"

namespace anyprec::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxCells = 256;

// The form, as a kernel needs it: class_of[] is looked up, not recomputed.
struct Form {
  int precision;
  int table_bits;  // min(b, L)
  int signs;       // b - table_bits
  int classes;
  int group_size;  // columns
  int groups;
  std::uint8_t class_of[kMaxCells];
};

template <typename T>
__device__ T from_float(float value);
template <>
__device__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ float half_bits(const std::uint16_t* bits) {
  return __half2float(__ushort_as_half(__ldg(bits)));
}

// One thread makes eight columns of a row; a block covers kThreads * 8 columns of one row.
template <typename T>
__global__ void dequantize_kernel(const std::uint32_t* planes, std::int64_t plane_words,
                                  std::int64_t units, const std::uint16_t* lut,
                                  const std::uint16_t* alpha, std::int64_t in_features,
                                  std::int64_t row_begin, T* out, const Form form) {
  const std::int64_t byte = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const std::int64_t first_column = byte * 8;
  if (first_column >= in_features) return;
  const std::int64_t row = row_begin + blockIdx.x;

  const std::int64_t record = row / kTileRows * units + first_column / kUnitColumns;
  const std::int64_t word =
      record * (kRecordBytes / 4) +
      word_of(static_cast<int>(row % kTileRows), static_cast<int>(first_column % kUnitColumns));
  std::uint32_t bits[kMaxPrecision];
  for (int p = 0; p < form.precision; ++p) {
    bits[p] = planes[p * plane_words + word] >> (first_column % 32);
  }
  // group_size is a multiple of 32, so eight columns share a group.
  const std::int64_t group = row * form.groups + first_column / form.group_size;
  const std::uint16_t* table = lut + (group << form.table_bits);
  const std::uint16_t* coefficients = alpha + group * form.signs * form.classes;
  T* const row_out = out + static_cast<std::int64_t>(blockIdx.x) * in_features;
  for (int i = 0; i < 8 && first_column + i < in_features; ++i) {
    int cell = 0;
    for (int p = 0; p < form.table_bits; ++p) cell = 2 * cell + ((bits[p] >> i) & 1);
    float value = half_bits(table + cell);
    for (int s = 0; s < form.signs; ++s) {
      const float a = half_bits(coefficients + s * form.classes + form.class_of[cell]);
      value += (bits[form.table_bits + s] >> i) & 1 ? a : -a;
    }
    row_out[first_column + i] = from_float<T>(value);
  }
}

}  // namespace

cudaError_t dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end,
                       void* out, ScalarType type, cudaStream_t stream) {
  const std::int64_t rows = row_end - row_begin;
  if (rows <= 0 || weights.in_features <= 0) return cudaSuccess;
  Form form{};
  form.precision = weights.precision;
  form.signs = weights.form.sign_planes(weights.precision);
  form.table_bits = weights.precision - form.signs;
  form.classes = weights.form.classes();
  form.group_size = static_cast<int>(weights.form.group_size == 0 ? weights.in_features + 7
                                                                  : weights.form.group_size);
  form.groups = static_cast<int>(weights.form.groups(weights.in_features));
  if (form.signs > 0) {
    for (int cell = 0; cell < (1 << form.table_bits); ++cell) {
      form.class_of[cell] = static_cast<std::uint8_t>(weights.form.class_of(cell));
    }
  }
  const std::int64_t bytes = (weights.in_features + 7) / 8;
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((bytes + kThreads - 1) / kThreads));
  const auto launch = [&](auto* typed_out) {
    dequantize_kernel<<<grid, kThreads, 0, stream>>>(
        reinterpret_cast<const std::uint32_t*>(weights.planes),
        packed_plane_bytes(weights.out_features, weights.in_features) / 4,
        unit_count(weights.in_features), weights.lut, weights.alpha, weights.in_features, row_begin,
        typed_out, form);
    return cudaGetLastError();
  };
  switch (type) {
    case ScalarType::kFloat32:
      return launch(static_cast<float*>(out));
    case ScalarType::kBFloat16:
      return launch(static_cast<__nv_bfloat16*>(out));
    case ScalarType::kFloat16:
      return launch(static_cast<__half*>(out));
  }
  return cudaErrorInvalidValue;
}

}  // namespace anyprec::cuda
