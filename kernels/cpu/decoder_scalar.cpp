#include "kernels/cpu/decoder_simd.h"

namespace anyprec::cpu {

const DecoderKernels& decoder_kernels_scalar() { return kDecoderKernels; }

}  // namespace anyprec::cpu
