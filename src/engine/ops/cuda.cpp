// The engine's operators on CUDA: working memory, the current stream, and errors as libtorch's.
#include "anyprec/cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/cuda/decoder.h"
#include "src/engine/ops/launch.h"
#include "src/engine/ops/ops.h"
#include "src/ops/errors.h"

namespace anyprec::engine {
namespace {

/// run(stream) -> cudaError_t, on the device of `like`.
template <class Run>
void on_device_of(const at::Tensor& like, const Run& run) {
  const c10::cuda::CUDAGuard guard(like.device());
  ops::as_value_error([&] { C10_CUDA_CHECK(run(c10::cuda::getCurrentCUDAStream().stream())); });
}

cuda::PlanesOut room_for(BitPlanes* planes, std::int64_t rows, std::int64_t columns,
                         const at::Tensor& like) {
  if (planes == nullptr) return {};
  TORCH_CHECK_VALUE(can_write_planes(like.device(), rows), "bit planes: found ", rows,
                    " rows of activations, wanted 1 or 2");
  planes->planes =
      at::empty({rows, cuda::activation_planes_bytes(columns)}, like.options().dtype(at::kByte));
  planes->scales = at::empty({rows, 2}, like.options().dtype(at::kFloat));
  return {planes->planes.mutable_data_ptr(), planes->scales.mutable_data_ptr<float>()};
}

void rms_norm(const decoder::RmsNorm& norm, const at::Tensor& like, BitPlanes* planes) {
  on_device_of(like, [&](cudaStream_t stream) {
    return cuda::rms_norm(norm, room_for(planes, norm.rows, norm.columns, like), stream);
  });
}

void gated(const decoder::Gated& gated, const at::Tensor& like, BitPlanes* planes) {
  on_device_of(like, [&](cudaStream_t stream) {
    return cuda::gated(gated, room_for(planes, gated.rows, gated.columns, like), stream);
  });
}

void rotary_to_cache(const decoder::RotaryToCache& rotary, const at::Tensor& like) {
  on_device_of(like, [&](cudaStream_t stream) { return cuda::rotary_to_cache(rotary, stream); });
}

void attention(const decoder::Attention& attention, const at::Tensor& like, BitPlanes* planes) {
  on_device_of(like, [&](cudaStream_t stream) {
    const auto bytes = static_cast<std::int64_t>(cuda::attention_workspace_bytes(attention));
    const at::Tensor workspace = at::empty({bytes}, like.options().dtype(at::kByte));
    return cuda::attention(
        attention,
        room_for(planes, attention.rows,
                 static_cast<std::int64_t>(attention.query_heads) * attention.cache.head_size,
                 like),
        bytes > 0 ? workspace.mutable_data_ptr() : nullptr, stream);
  });
}

void sample(const decoder::Sampling& sampling, const at::Tensor& like) {
  on_device_of(like, [&](cudaStream_t stream) { return cuda::sample(sampling, stream); });
}

const bool registered = register_cuda({.rms_norm = &rms_norm,
                                       .gated = &gated,
                                       .rotary_to_cache = &rotary_to_cache,
                                       .attention = &attention,
                                       .sample = &sample});

}  // namespace
}  // namespace anyprec::engine
