#include "kernels/cuda/mask_dot.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_l3_sym(int rows) {
  return mask_dot_device::describe<3, CellGroups::kSym>(rows);
}

}  // namespace anyprec::cuda
