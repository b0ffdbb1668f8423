#include "src/quantize/kernels.h"

namespace anyprec::quantize {

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

const Kernels& kernels_for(cpu::Isa isa) {
#ifdef ANYPREC_CPU_X86
  if (isa >= cpu::Isa::kAvx512) return avx512_kernels();
  if (isa == cpu::Isa::kAvx2) return avx2_kernels();
#endif
  static_cast<void>(isa);
  return scalar_kernels();
}

}  // namespace anyprec::quantize
