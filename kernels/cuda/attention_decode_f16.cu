#include "kernels/cuda/attention_decode.cuh"

namespace anyprec::cuda {

template cudaError_t decode_parts<ScalarType::kFloat16>(const decoder::Attention&, const Parts*,
                                                        const Device&, cudaStream_t);

}  // namespace anyprec::cuda
