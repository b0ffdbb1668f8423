#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cpu/fit_refit.h"

namespace anyprec::cuda {

/// The contracts of cpu::RefitKernels, with all pointers into the device's memory. Sums are always
/// in the same order, but not in the CPU's.
cudaError_t refit_begin(const cpu::RefitRows& rows, float ridge_share, float least_ridge,
                        cudaStream_t stream);
cudaError_t refit_step(const cpu::RefitRows& rows, bool last, cudaStream_t stream);

/// w - q as the sum of two bf16 numbers, [W, rows, K] each: relative error 2^-17. `error` is not
/// used.
cudaError_t refit_error(const cpu::RefitRows& rows, void* high, void* low, cudaStream_t stream);

/// Sums of numbers [rows, K] by slot, group * 2^b + code: out [rows, G 2^b]. Of `rows` only codes,
/// the precision and the sizes are used.
cudaError_t sum_by_slot(const float* numbers, const cpu::RefitRows& rows, float* out,
                        cudaStream_t stream);

}  // namespace anyprec::cuda
