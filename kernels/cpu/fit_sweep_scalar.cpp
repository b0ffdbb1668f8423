#include "kernels/cpu/fit_sweep_simd.h"

namespace anyprec::cpu {

const FitKernels& fit_kernels_scalar() { return kFitKernels; }

}  // namespace anyprec::cpu
