#include "kernels/cpu/avx512.h"
#include "kernels/cpu/fixed_words.h"

namespace anyprec::cpu {

const KernelSet& avx512_kernels() { return kKernelSet<Avx512, FixedWords<Avx512>>; }

}  // namespace anyprec::cpu
