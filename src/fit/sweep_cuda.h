#pragma once

#include "kernels/cpu/fit_sweep.h"

namespace anyprec::fit {

/// The sweep kernel of the GPU, on the current stream, with pointers into its memory.
void sweep_on_gpu(const cpu::SweepBlock& block);

}  // namespace anyprec::fit
