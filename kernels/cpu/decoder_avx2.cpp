#include "kernels/cpu/decoder_simd.h"

namespace anyprec::cpu {

const DecoderKernels& decoder_kernels_avx2() { return kDecoderKernels; }

}  // namespace anyprec::cpu
