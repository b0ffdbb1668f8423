#include "src/fit/sweep_cuda.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>

#include "kernels/cuda/fit_sweep.h"

namespace anyprec::fit {

void sweep_on_gpu(const cpu::SweepBlock& block) {
  C10_CUDA_CHECK(cuda::fit_sweep(block, at::cuda::getCurrentCUDAStream()));
}

}  // namespace anyprec::fit
