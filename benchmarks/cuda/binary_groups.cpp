// Binary coding, by groups along K or by row, by a kernel that the caller names, whichever the
// dispatcher would take: for bench_binary_groups.py.
#include <cstdint>
#include <string_view>

#include "anyprec/cuda.h"
#include "anyprec/error.h"
#include "kernels/cuda/dequantize_matmul.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/mask_dot.h"
#include "kernels/cuda/plane_mma.h"
#include "kernels/cuda/table_mma.h"

/// rows of fp16 x [rows, K], y [rows, N]; kernel: "mask-dot", "planes" (one block on a
/// multiprocessor), "planes x2" (two), "tables" or "dequantize". Returns a cudaError_t, -1 where
/// the arguments are refused, -2 where the kernel does not serve them.
extern "C" int anyprec_binary_groups(const char* kernel, const void* x, std::int64_t rows,
                                     std::int64_t in_features, std::int64_t out_features,
                                     const void* planes, const void* lut, const void* alpha,
                                     std::int64_t group_size, int precision, void* y,
                                     void* workspace, std::int64_t workspace_bytes,
                                     cublasHandle_t cublas, cudaStream_t stream) {
  using namespace anyprec::cuda;
  const std::string_view name = kernel;
  Product product;
  product.weights.out_features = out_features;
  product.weights.in_features = in_features;
  product.weights.form = {0, anyprec::CellGroups::kOne, group_size};
  product.weights.precision = precision;
  product.weights.planes = static_cast<const std::uint8_t*>(planes);
  product.weights.lut = static_cast<const std::uint16_t*>(lut);
  product.weights.alpha = static_cast<const std::uint16_t*>(alpha);
  product.y = y;
  product.y_stride = out_features;
  const Input input{x, in_features, rows, anyprec::ScalarType::kFloat16};
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  try {
    if (name == "mask-dot") {
      if (!mask_dot_serves(input, {}, {&product, 1}, device)) return -2;
      return mask_dot(input, {}, {}, {&product, 1}, device, stream);
    }
    if (name == "dequantize") {
      const auto bytes = static_cast<std::size_t>(workspace_bytes);
      if (dequantize_matmul_bytes(input, {&product, 1}, device) > bytes) return -1;
      return dequantize_matmul(input, {&product, 1}, {workspace, bytes, cublas}, device, stream);
    }
    if (name == "tables") {
      if (!table_mma_serves(input, {}, {&product, 1}, device)) return -2;
      return table_mma(input, {}, {&product, 1}, device, stream);
    }
    if (!plane_mma_serves(input, {&product, 1}, device)) return -2;
    return launch_plane_mma(input, {&product, 1}, name == "planes x2" ? 2 : 1, device, stream);
  } catch (const anyprec::InvalidArgument&) {
    return -1;
  }
}
