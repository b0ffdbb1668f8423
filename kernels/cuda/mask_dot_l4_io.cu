#include "kernels/cuda/mask_dot.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_l4_io(int rows) {
  return mask_dot_device::describe<4, CellGroups::kIo>(rows);
}

}  // namespace anyprec::cuda
