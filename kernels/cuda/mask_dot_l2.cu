#include "kernels/cuda/mask_dot.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_l2(int rows) {
  return mask_dot_device::describe<2, CellGroups::kOne>(rows);
}

}  // namespace anyprec::cuda
