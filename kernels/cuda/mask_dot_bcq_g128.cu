#include "kernels/cuda/mask_dot_groups.cuh"

namespace anyprec::cuda {

MaskDotKernels mask_dot_bcq_g128(int rows) {
  constexpr std::make_integer_sequence<int, kPrecisions> kAll{};
  return rows == 1 ? mask_dot_device::describe_groups<1>(kAll)
                   : mask_dot_device::describe_groups<2>(kAll);
}

}  // namespace anyprec::cuda
