#include "kernels/cuda/table_mma.cuh"

namespace anyprec::cuda {

template TableMmaKernel table_mma_kernel<4>(std::int64_t rows);

}  // namespace anyprec::cuda
