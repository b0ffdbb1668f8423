#include "kernels/cuda/mask_dot.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_full(int rows) {
  return mask_dot_device::describe<8, CellGroups::kOne>(rows);
}

}  // namespace anyprec::cuda
