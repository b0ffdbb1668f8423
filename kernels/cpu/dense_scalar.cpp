#include "kernels/cpu/dense_simd.h"

namespace anyprec::cpu {

DenseKernel dense_kernel_scalar() { return dense_kernel; }

}  // namespace anyprec::cpu
