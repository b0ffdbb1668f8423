#include "kernels/cpu/avx512.h"

namespace anyprec::cpu {

const KernelSet& avx512_kernels() { return kKernelSet<Avx512>; }

}  // namespace anyprec::cpu
