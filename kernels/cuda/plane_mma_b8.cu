#include "kernels/cuda/plane_mma.cuh"

namespace anyprec::cuda {

template PlaneMmaKernel plane_mma_kernel<8>(std::int64_t rows, int parts);

}  // namespace anyprec::cuda
