#include "kernels/cuda/mask_dot.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_bcq(int rows) {
  return mask_dot_device::describe<0, CellGroups::kOne>(rows);
}

}  // namespace anyprec::cuda
