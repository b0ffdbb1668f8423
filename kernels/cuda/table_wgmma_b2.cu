#include "kernels/cuda/table_wgmma.cuh"

namespace anyprec::cuda {

template TableWgmmaKernel table_wgmma_kernel<2>(std::int64_t rows);

}  // namespace anyprec::cuda
