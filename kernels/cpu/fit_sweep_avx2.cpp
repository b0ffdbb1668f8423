#include "kernels/cpu/fit_sweep_simd.h"

namespace anyprec::cpu {

const FitKernels& fit_kernels_avx2() { return kFitKernels; }

}  // namespace anyprec::cpu
