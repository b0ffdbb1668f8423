#include "kernels/cpu/fit_sweep.h"

#include "anyprec/linear.h"

namespace anyprec::cpu {

const FitKernels& fit_kernels() {
#ifdef ANYPREC_CPU_X86
  switch (selected_isa()) {
    case Isa::kScalar:
      return fit_kernels_scalar();
    case Isa::kAvx2:
      return fit_kernels_avx2();
    case Isa::kAvx512:
    case Isa::kAvx512Vbmi:
      return fit_kernels_avx512();
  }
#endif
  return fit_kernels_scalar();
}

}  // namespace anyprec::cpu
