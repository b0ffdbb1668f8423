#pragma once

#include <cuda_runtime.h>

#include "kernels/cpu/fit_sweep.h"

namespace anyprec::cuda {

/// The contract of cpu::SweepKernel, with all pointers into the device's memory. The order of sums,
/// and so the choice between codes of nearly equal cost, may differ from the CPU's.
cudaError_t fit_sweep(const cpu::SweepBlock& block, cudaStream_t stream);

}  // namespace anyprec::cuda
