#include "kernels/cpu/dense.h"

#include "anyprec/error.h"

namespace anyprec::cpu {
namespace {

// Channels that are worth a thread of their own.
constexpr std::int64_t kGrain = 256;

DenseKernel kernel_of([[maybe_unused]] Isa isa) {
#ifdef ANYPREC_CPU_X86
  switch (isa) {
    case Isa::kScalar:
      return dense_kernel_scalar();
    case Isa::kAvx2:
      return dense_kernel_avx2();
    case Isa::kAvx512:
    case Isa::kAvx512Vbmi:
      return dense_kernel_avx512();
  }
#endif
  return dense_kernel_scalar();
}

}  // namespace

void dense_product(const DenseProduct& product, const Executor& executor, Isa isa) {
  if (product.weight_type == ScalarType::kFloat32) {
    throw InvalidArgument("dense_product: found a float32 weight, wanted float16 or bfloat16");
  }
  if (!isa_supported(isa)) {
    throw InvalidArgument("dense_product: this machine cannot run " + to_string(isa));
  }
  const DenseKernel kernel = kernel_of(isa);
  executor.parallel_for(product.out_features, kGrain,
                        [&](std::int64_t begin, std::int64_t end) { kernel(product, begin, end); });
}

}  // namespace anyprec::cpu
