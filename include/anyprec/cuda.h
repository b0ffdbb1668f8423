#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "anyprec/planes.h"
#include "anyprec/sum_by_code.h"
#include "anyprec/weights.h"

/// The CUDA kernels, by raw device pointers and a stream. No torch. Link anyprec::cuda.
///
/// Every function works on the current device and enqueues on `stream`; none allocates, and all can
/// be captured into a graph. Planes, codebooks and planes of x are 16-byte aligned.
/// Each returns the status of its launches; arguments outside what is
/// documented throw InvalidArgument before anything is launched. The same input gives the same
/// bytes.
namespace anyprec::cuda {

/// Canonical planes (anyprec/planes.h) [P, N, ceil(K/8)] to the backend's layout
/// (kernels/cuda/layout.h), P * packed_plane_bytes(N, K) bytes, 16-byte aligned; all of it is
/// written.
cudaError_t pack_planes(const std::uint8_t* canonical, int planes, std::int64_t out_features,
                        std::int64_t in_features, std::uint8_t* packed, cudaStream_t stream);
/// The inverse of pack_planes.
cudaError_t unpack_planes(const std::uint8_t* packed, int planes, std::int64_t out_features,
                          std::int64_t in_features, std::uint8_t* canonical, cudaStream_t stream);

/// Rows [row_begin, row_end) of W_b as `type`: out is [row_end - row_begin, K], contiguous. Values
/// are summed in fp32 and rounded once.
cudaError_t dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end,
                       void* out, ScalarType type, cudaStream_t stream);

/// Sums over columns of one code (anyprec/sum_by_code.h): out is fp32 [N, G, 2^precision]. Summed
/// in fp32, always in the same order; no atomics.
cudaError_t sum_by_code(const CodeSums& sums, float* out, cudaStream_t stream);

/// Rows of activations in device memory, of any alignment that their type has.
struct Input {
  const void* x = nullptr;    ///< [M, K]
  std::int64_t x_stride = 0;  ///< elements between rows, at least K
  std::int64_t rows = 0;      ///< M
  ScalarType type = ScalarType::kFloat16;
};

/// One matrix and where its product goes: y[m][n] = sum over k of x[m][k] W_b[n][k] + bias[n].
struct Product {
  Weights weights;
  const void* bias = nullptr;  ///< [N] of the input's type, or null
  void* y = nullptr;           ///< [M, N] of the input's type
  std::int64_t y_stride = 0;   ///< elements between rows
};

/// The most matrices that one call multiplies by.
inline constexpr int kMaxProducts = 4;

/// Activations as bit planes, which whoever produces x can leave for the product
/// (linear_from_planes). The layout is in kernels/cuda/activation_planes.cuh, with a device
/// function that a kernel can end with.
struct ActivationPlanes {
  const void* planes = nullptr;   ///< [M] x activation_planes_bytes(K), 16-byte aligned
  const float* scales = nullptr;  ///< [M, 2]: the value of one step, and the sum of the row
};
std::int64_t activation_planes_bytes(std::int64_t in_features);
/// planes, scales: room for what ActivationPlanes describes.
cudaError_t activations_to_planes(const Input& input, std::int64_t in_features, void* planes,
                                  float* scales, cudaStream_t stream);

/// How linear computes a product (kernels/cuda/dispatch.h says which it chooses when).
enum class LinearPath {
  kMaskDot,     ///< planes of W times planes of x, binary tensor cores
  kPlaneMma,    ///< planes of W times x, for binary coding
  kTableMma,    ///< table look-ups into tensor core operands
  kTableWgmma,  ///< the same for more rows of x, which are made into tiles first
  kDequantize,  ///< tiles of W in floating point, and cuBLAS
};

/// What kTableWgmma and kDequantize need: linear_workspace_bytes() bytes, 16-byte aligned, and for
/// kDequantize a cuBLAS handle (its stream is set here).
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
  cublasHandle_t cublas = nullptr;
};
LinearPath linear_path(const Input& input, std::span<const Product> products);
std::size_t linear_workspace_bytes(const Input& input, std::span<const Product> products);

/// y = x W_b^T + bias for 1 to kMaxProducts matrices of one input, which agree in K, codebook form
/// and precision (Q/K/V, gate/up). Sums are at least as exact as in fp32.
///
/// Accuracy beside that, before rounding to the type of y. kMaskDot: x is taken to 22 bits below
/// the power of two of its row's largest magnitude. kPlaneMma: bits of x 2^-32 below the largest
/// magnitude nearby are lost (of fp16 x that is 2^-16 or less, 2^-24). kTableMma, kTableWgmma:
/// values of a hybrid are rounded to fp16 once. kDequantize: W_b is rounded to the type of x. A NaN
/// or an infinity in a row of x makes that row of y NaN or infinite (kMaskDot: NaN), and no other
/// row.
///
/// May start before its predecessor in the stream has ended (programmatic dependent launch), and
/// reads planes and codebooks then: they must not be written by a kernel that lets its successors
/// start early.
cudaError_t linear(const Input& input, std::span<const Product> products,
                   const Workspace& workspace, cudaStream_t stream);

/// linear by kMaskDot with x given as planes; input.x is not read. Throws InvalidArgument where
/// that kernel does not serve the products (linear_path).
cudaError_t linear_from_planes(const Input& input, const ActivationPlanes& planes,
                               std::span<const Product> products, cudaStream_t stream);

/// The codebooks of one matrix at every precision b, at b - 2; null where b is not asked for.
struct Codebooks {
  const std::uint16_t* lut[kMaxPrecision - kMinPrecision + 1] = {};
  const std::uint16_t* alpha[kMaxPrecision - kMinPrecision + 1] = {};
};
/// linear by kMaskDot with the precision in device memory: a captured graph changes precision by
/// writing one integer. products[i].weights gives the planes, shape and form; its precision, lut
/// and alpha are not read. *precision must be one that all codebooks have.
cudaError_t linear_at(const Input& input, const int* precision, std::span<const Product> products,
                      std::span<const Codebooks> codebooks, cudaStream_t stream);

}  // namespace anyprec::cuda
