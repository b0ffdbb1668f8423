#include <algorithm>

#include "kernels/cuda/dequantize_matmul.h"
#include "kernels/cuda/scalars.cuh"

namespace anyprec::cuda {
namespace {

// Rows of W in a tile: cuBLAS cuts large products into pieces of 128 x 256, of which a tile gives
// every multiprocessor one or two. At most 64 MiB in half precision.
constexpr std::int64_t kMostElements = std::int64_t{32} << 20;
constexpr std::int64_t kPieceRows = 128, kPieceColumns = 256;

std::int64_t tile_rows(const Weights& weights, std::int64_t x_rows, const Device& device) {
  const std::int64_t columns = (x_rows + kPieceColumns - 1) / kPieceColumns;
  const std::int64_t fitting = std::max(
      kMostElements / std::max<std::int64_t>(weights.in_features, 1) / kPieceRows, std::int64_t{1});
  const std::int64_t pieces = std::max(2 * device.multiprocessors / columns, std::int64_t{8});
  const std::int64_t most = pieces > fitting ? pieces / 2 : pieces;
  return std::min(weights.out_features, std::min(most, fitting) * kPieceRows);
}

std::size_t scalar_bytes(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

cudaDataType_t cublas_type(ScalarType type) {
  switch (type) {
    case ScalarType::kFloat32:
      return CUDA_R_32F;
    case ScalarType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_16F;
  }
}

cudaError_t status_of(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return cudaSuccess;
  return status == CUBLAS_STATUS_ALLOC_FAILED ? cudaErrorMemoryAllocation : cudaErrorUnknown;
}

/// Only where it is another: setting a stream takes the handle's own workspace from it.
cudaError_t use_stream(cublasHandle_t handle, cudaStream_t stream) {
  cudaStream_t current = nullptr;
  const cudaError_t status = status_of(cublasGetStream(handle, &current));
  if (status != cudaSuccess || current == stream) return status;
  return status_of(cublasSetStream(handle, stream));
}

/// Sums in fp32 from end to end: by default cuBLAS may add partial sums up in half precision.
class FullPrecisionSums {
 public:
  explicit FullPrecisionSums(cublasHandle_t handle) : handle_(handle) {
    cublasGetMathMode(handle, &before_);
    cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  }
  ~FullPrecisionSums() { cublasSetMathMode(handle_, before_); }
  FullPrecisionSums(const FullPrecisionSums&) = delete;
  FullPrecisionSums& operator=(const FullPrecisionSums&) = delete;

 private:
  cublasHandle_t handle_;
  cublasMath_t before_ = CUBLAS_DEFAULT_MATH;
};

/// y[m][n] = bias[n].
__global__ void fill_bias_kernel(const void* bias, void* y, std::int64_t y_stride,
                                 std::int64_t out_features, ScalarType type) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= out_features) return;
  store_scalar(y, type, blockIdx.y * y_stride + n, load_scalar(bias, type, n));
}

}  // namespace

std::size_t dequantize_matmul_bytes(const Input& input, std::span<const Product> products,
                                    const Device& device) {
  std::size_t bytes = 0;
  for (const Product& product : products) {
    const auto elements = static_cast<std::size_t>(tile_rows(product.weights, input.rows, device) *
                                                   product.weights.in_features);
    bytes = std::max(bytes, elements * scalar_bytes(input.type));
  }
  return bytes;
}

cudaError_t dequantize_matmul(const Input& input, std::span<const Product> products,
                              const Workspace& workspace, const Device& device,
                              cudaStream_t stream) {
  const cudaError_t set = use_stream(workspace.cublas, stream);
  if (set != cudaSuccess) return set;
  const FullPrecisionSums full_precision(workspace.cublas);
  const cudaDataType_t type = cublas_type(input.type);
  for (const Product& product : products) {
    const Weights& weights = product.weights;
    const auto at = [&](std::int64_t column) {
      return static_cast<char*>(product.y) +
             static_cast<std::size_t>(column) * scalar_bytes(input.type);
    };
    if (product.bias != nullptr) {
      constexpr unsigned kThreads = 256;
      const auto columns = static_cast<unsigned>((weights.out_features + kThreads - 1) / kThreads);
      for (std::int64_t first = 0; first < input.rows; first += 32768) {
        const auto rows = static_cast<unsigned>(std::min<std::int64_t>(32768, input.rows - first));
        fill_bias_kernel<<<dim3(columns, rows), kThreads, 0, stream>>>(
            product.bias, at(first * product.y_stride), product.y_stride, weights.out_features,
            input.type);
      }
      if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
    }
    const std::int64_t step = tile_rows(weights, input.rows, device);
    for (std::int64_t begin = 0; begin < weights.out_features; begin += step) {
      const std::int64_t end = std::min(weights.out_features, begin + step);
      const cudaError_t made = dequantize(weights, begin, end, workspace.data, input.type, stream);
      if (made != cudaSuccess) return made;
      // cuBLAS counts columns first: y^T [N, M] = W [N, K] x^T [K, M].
      const float one = 1.0f;
      const float beta = product.bias == nullptr ? 0.0f : 1.0f;
      const cudaError_t multiplied = status_of(cublasGemmEx(
          workspace.cublas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(end - begin),
          static_cast<int>(input.rows), static_cast<int>(weights.in_features), &one, workspace.data,
          type, static_cast<int>(weights.in_features), input.x, type,
          static_cast<int>(input.x_stride), &beta, at(begin), type,
          static_cast<int>(product.y_stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
      if (multiplied != cudaSuccess) return multiplied;
    }
  }
  return cudaSuccess;
}

}  // namespace anyprec::cuda
