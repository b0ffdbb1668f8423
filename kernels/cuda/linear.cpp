#include <string>

#include "anyprec/cuda.h"
#include "anyprec/error.h"
#include "kernels/cuda/dequantize_matmul.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/mask_dot.h"
#include "kernels/cuda/plane_mma.h"
#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"

namespace anyprec::cuda {
namespace {

void check(bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument("linear: " + message);
}

std::string shape_of(const Weights& w) {
  return std::string("[") + std::to_string(w.out_features) + ", " + std::to_string(w.in_features) +
         "]";
}

void check_aligned(const std::string& what, const void* pointer, std::size_t alignment) {
  check(reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0,
        what + ": address is not a multiple of " + std::to_string(alignment));
}

void check_input(const Input& input) {
  check(input.rows >= 0, "rows is " + std::to_string(input.rows) + ", wanted at least 0");
}

/// The planes' side of a product: shapes, and pointers that are read wide.
void check_planes(const Product& product, const Product& first) {
  const Weights& w = product.weights;
  w.form.validate();
  check(w.out_features >= 0 && w.in_features >= 1 && w.out_features < std::int64_t{1} << 31 &&
            w.in_features < std::int64_t{1} << 31,
        "shape is " + shape_of(w) + ", wanted positive sizes below 2^31");
  check(w.in_features == first.weights.in_features && w.form == first.weights.form,
        "products must agree in in_features and codebook form");
  if (w.out_features == 0) return;
  check(w.planes != nullptr, "planes is null");
  check_aligned("planes", w.planes, 16);
  check(product.y != nullptr, "y is null");
}

void check_products(const Input& input, std::span<const Product> products) {
  check_input(input);
  check(!products.empty() && products.size() <= kMaxProducts,
        std::to_string(products.size()) + " products, wanted 1 to " + std::to_string(kMaxProducts));
  for (const Product& product : products) {
    check_planes(product, products.front());
    const Weights& w = product.weights;
    check(input.rows <= 1 || product.y_stride >= w.out_features,
          "y_stride is " + std::to_string(product.y_stride) + ", wanted at least " +
              std::to_string(w.out_features));
  }
  check(input.rows == 0 || input.x != nullptr, "x is null");
  check(input.rows <= 1 || input.x_stride >= products.front().weights.in_features,
        "x_stride is " + std::to_string(input.x_stride) + ", wanted at least " +
            std::to_string(products.front().weights.in_features));
}

void check_codebook(const Product& product, const Product& first) {
  const Weights& w = product.weights;
  check(w.precision >= kMinPrecision && w.precision <= kMaxPrecision,
        "precision is " + std::to_string(w.precision) + ", wanted 2 to 8");
  check(w.precision == first.weights.precision, "products must agree in precision");
  if (w.out_features == 0) return;
  check(w.lut != nullptr, "lut is null");
  check_aligned("lut", w.lut, 16);
  const int signs = w.form.sign_planes(w.precision);
  check(w.alpha != nullptr || signs == 0, "alpha is null, but precision " +
                                              std::to_string(w.precision) + " has " +
                                              std::to_string(signs) + " signed planes");
  check_aligned("alpha", w.alpha, 16);
}

void check_all(const Input& input, std::span<const Product> products) {
  check_products(input, products);
  for (const Product& product : products) check_codebook(product, products.front());
}

bool nothing_to_do(const Input& input, std::span<const Product> products) {
  if (input.rows == 0) return true;
  for (const Product& product : products) {
    if (product.weights.out_features > 0) return false;
  }
  return true;
}

Device device_or_throw() {
  Device device;
  const cudaError_t status = current_device(device);
  check(status == cudaSuccess, std::string("no CUDA device: ") + cudaGetErrorString(status));
  return device;
}

std::size_t workspace_bytes(LinearPath path, const Input& input, std::span<const Product> products,
                            const Device& device) {
  switch (path) {
    case LinearPath::kTableWgmma:
      return table_wgmma_bytes(input, products);
    case LinearPath::kDequantize:
      return dequantize_matmul_bytes(input, products, device);
    default:
      return 0;
  }
}

bool path_fuses(LinearPath path, const Input& input, const Fused& fused,
                std::span<const Product> products, const Device& device) {
  switch (path) {
    case LinearPath::kMaskDot:
      return mask_dot_serves(input, fused, products, device);
    case LinearPath::kTableMma:
      return table_mma_serves(input, fused, products, device);
    default:
      return false;
  }
}

}  // namespace

LinearPath linear_path(const Input& input, std::span<const Product> products) {
  check_all(input, products);
  return choose_path(input, products, device_or_throw());
}

std::size_t linear_workspace_bytes(const Input& input, std::span<const Product> products) {
  return workspace_bytes(linear_path(input, products), input, products, device_or_throw());
}

cudaError_t linear(const Input& input, std::span<const Product> products,
                   const Workspace& workspace, cudaStream_t stream) {
  check_all(input, products);
  if (nothing_to_do(input, products)) return cudaSuccess;
  const Device device = device_or_throw();
  const LinearPath path = choose_path(input, products, device);
  const std::size_t wanted = workspace_bytes(path, input, products, device);
  check(wanted == 0 || (workspace.data != nullptr && workspace.bytes >= wanted),
        "workspace of " + std::to_string(workspace.bytes) + " bytes, wanted " +
            std::to_string(wanted));
  switch (path) {
    case LinearPath::kMaskDot:
      return mask_dot(input, {}, {}, products, device, stream);
    case LinearPath::kPlaneMma:
      return plane_mma(input, products, device, stream);
    case LinearPath::kTableMma:
      return table_mma(input, {}, products, device, stream);
    case LinearPath::kTableWgmma:
      check_aligned("workspace", workspace.data, 16);
      return table_wgmma(input, products, workspace.data, device, stream);
    case LinearPath::kDequantize:
      break;
  }
  check(workspace.cublas != nullptr, "no cuBLAS handle");
  return dequantize_matmul(input, products, workspace, device, stream);
}

bool linear_fuses(const Input& input, const Fused& fused, std::span<const Product> products) {
  check_all(input, products);
  const Device device = device_or_throw();
  return path_fuses(choose_path(input, products, device), input, fused, products, device);
}

cudaError_t linear_fused(const Input& input, const ActivationPlanes& planes, const Fused& fused,
                         std::span<const Product> products, cudaStream_t stream) {
  check_all(input, products);
  const Device device = device_or_throw();
  const LinearPath path = choose_path(input, products, device);
  check(path_fuses(path, input, fused, products, device),
        "a norm or a sum with the product needs a kernel for few rows of x (linear_fuses)");
  if (nothing_to_do(input, products)) return cudaSuccess;
  const bool normed = fused.norm.weight != nullptr;
  Fused complete = fused;
  complete.norm.per_column = 1.0f / static_cast<float>(products.front().weights.in_features);
  return path == LinearPath::kMaskDot ? mask_dot(input, normed ? ActivationPlanes{} : planes,
                                                 complete, products, device, stream)
                                      : table_mma(input, complete, products, device, stream);
}

cudaError_t linear_from_planes(const Input& input, const ActivationPlanes& planes,
                               std::span<const Product> products, cudaStream_t stream) {
  Input without_x = input;
  if (without_x.x == nullptr) without_x.x = planes.planes;  // not read
  check_all(without_x, products);
  if (nothing_to_do(input, products)) return cudaSuccess;
  check(planes.planes != nullptr && planes.scales != nullptr, "planes of x are null");
  check_aligned("planes of x", planes.planes, 16);
  const Device device = device_or_throw();
  check(mask_dot_serves(input, {}, products, device),
        "planes of x serve one or two rows and codebooks of few masks (linear_path)");
  return mask_dot(input, planes, {}, products, device, stream);
}

cudaError_t linear_at(const Input& input, const int* precision, std::span<const Product> products,
                      std::span<const Codebooks> codebooks, cudaStream_t stream) {
  check_products(input, products);
  check(precision != nullptr, "precision is null");
  check(codebooks.size() == products.size(), std::to_string(codebooks.size()) + " codebooks for " +
                                                 std::to_string(products.size()) + " products");
  if (nothing_to_do(input, products)) return cudaSuccess;
  const Device device = device_or_throw();
  check(mask_dot_serves_any(input, products, codebooks, device),
        "a precision in device memory needs one or two rows of x and codebooks of few masks at "
        "every precision (linear_path)");
  return mask_dot_any(input, precision, products, codebooks, device, stream);
}

}  // namespace anyprec::cuda
