// linear with the precision in device memory, which no libtorch operator gives: for
// bench_linear.py.
#include <cstdint>

#include "anyprec/cuda.h"
#include "anyprec/error.h"

/// One row of fp16 x, by pointers; luts, alphas: of precisions 2 to 8. Returns a cudaError_t, or -1
/// where the arguments are refused.
extern "C" int anyprec_linear_at(const void* x, std::int64_t in_features, std::int64_t out_features,
                                 const void* planes, const void* const* luts,
                                 const void* const* alphas, int lut_bits, const char* cell_groups,
                                 std::int64_t group_size, const int* precision, void* y,
                                 cudaStream_t stream) {
  anyprec::cuda::Codebooks codebooks;
  for (int i = 0; i < 7; ++i) {
    codebooks.lut[i] = static_cast<const std::uint16_t*>(luts[i]);
    codebooks.alpha[i] = static_cast<const std::uint16_t*>(alphas[i]);
  }
  try {
    anyprec::cuda::Product product;
    product.weights.out_features = out_features;
    product.weights.in_features = in_features;
    product.weights.form = {lut_bits, anyprec::parse_cell_groups(cell_groups), group_size};
    product.weights.planes = static_cast<const std::uint8_t*>(planes);
    product.y = y;
    product.y_stride = out_features;
    const anyprec::cuda::Input input{x, in_features, 1, anyprec::ScalarType::kFloat16};
    return anyprec::cuda::linear_at(input, precision, {&product, 1}, {&codebooks, 1}, stream);
  } catch (const anyprec::InvalidArgument&) {
    return -1;
  }
}
