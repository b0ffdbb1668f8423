#include "kernels/cuda/dispatch.h"

#include "kernels/cuda/mask_dot.h"

namespace anyprec::cuda {

LinearPath choose_path(const Input& input, std::span<const Product> products,
                       const Device& device) {
  if (mask_dot_serves(input, products, device)) return LinearPath::kMaskDot;
  return LinearPath::kDequantize;
}

}  // namespace anyprec::cuda
