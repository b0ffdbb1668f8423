#include "kernels/cpu/dense_simd.h"

namespace anyprec::cpu {

DenseKernel dense_kernel_avx512() { return dense_kernel; }

}  // namespace anyprec::cpu
