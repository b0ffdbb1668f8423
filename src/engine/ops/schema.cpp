// The engine's operators as torch.ops.anyprec.engine_*, for tests and measurements in Python: the
// same arguments and results as in ops.h. engine_*_planes also return planes and scales.
#include <torch/library.h>

#include <string_view>
#include <tuple>

#include "src/engine/ops/ops.h"

namespace anyprec::engine {
namespace {

decoder::Activation activation_of(std::string_view name) {
  if (name == "silu") return decoder::Activation::kSilu;
  TORCH_CHECK_VALUE(name == "gelu_tanh", "activation: found '", name,
                    "', wanted 'silu' or 'gelu_tanh'");
  return decoder::Activation::kGeluTanh;
}

using WithPlanes = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <class Compute>
WithPlanes with_planes(const Compute& compute) {
  BitPlanes planes;
  at::Tensor y = compute(&planes);
  return {y, planes.planes, planes.scales};
}

at::Tensor rms_norm_op(const at::Tensor& x, const at::Tensor& weight, double eps, double offset) {
  return rms_norm(x, weight, eps, offset);
}
at::Tensor add_rms_norm_op(const at::Tensor& x, const at::Tensor& residual,
                           const at::Tensor& weight, double eps, double offset) {
  return add_rms_norm(x, residual, weight, eps, offset);
}
WithPlanes add_rms_norm_planes(const at::Tensor& x, const at::Tensor& residual,
                               const at::Tensor& weight, double eps, double offset) {
  return with_planes(
      [&](BitPlanes* planes) { return add_rms_norm(x, residual, weight, eps, offset, planes); });
}
at::Tensor gated_op(const at::Tensor& gate_up, std::string_view activation) {
  return gated(gate_up, activation_of(activation));
}
WithPlanes gated_planes(const at::Tensor& gate_up, std::string_view activation) {
  return with_planes(
      [&](BitPlanes* planes) { return gated(gate_up, activation_of(activation), planes); });
}
at::Tensor attention_op(const at::Tensor& q, const at::Tensor& key_cache,
                        const at::Tensor& value_cache, const at::Tensor& block_table,
                        const at::Tensor& sequence_start, const at::Tensor& lengths, double scale,
                        std::int64_t window, double softcap) {
  return attention(q, key_cache, value_cache, block_table, sequence_start, lengths, scale, window,
                   softcap);
}
WithPlanes attention_planes(const at::Tensor& q, const at::Tensor& key_cache,
                            const at::Tensor& value_cache, const at::Tensor& block_table,
                            const at::Tensor& sequence_start, const at::Tensor& lengths,
                            double scale, std::int64_t window, double softcap) {
  return with_planes([&](BitPlanes* planes) {
    return attention(q, key_cache, value_cache, block_table, sequence_start, lengths, scale, window,
                     softcap, planes);
  });
}
at::Tensor sample_op(const at::Tensor& logits, const at::Tensor& temperature,
                     const at::Tensor& top_k, const at::Tensor& top_p, const at::Tensor& min_p,
                     const at::Tensor& repetition_penalty, const at::Tensor& seed,
                     const at::Tensor& step, const at::Tensor& history) {
  return sample(logits,
                {temperature, top_k, top_p, min_p, repetition_penalty, seed, step, history});
}

}  // namespace
}  // namespace anyprec::engine

TORCH_LIBRARY_FRAGMENT(anyprec, m) {
  m.def("engine_rms_norm(Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  m.def(
      "engine_add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps, float offset) "
      "-> Tensor");
  m.def(
      "engine_add_rms_norm_planes(Tensor x, Tensor(a!) residual, Tensor weight, float eps, "
      "float offset) -> (Tensor y, Tensor planes, Tensor scales)");
  m.def("engine_gated(Tensor gate_up, str activation) -> Tensor");
  m.def(
      "engine_gated_planes(Tensor gate_up, str activation) -> (Tensor y, Tensor planes, "
      "Tensor scales)");
  m.def(
      "engine_rotary_to_cache(Tensor qkv, Tensor positions, Tensor slots, Tensor cos, Tensor sin, "
      "Tensor? q_norm, Tensor? k_norm, float eps, float offset, Tensor(a!) key_cache, "
      "Tensor(b!) value_cache) -> Tensor");
  m.def(
      "engine_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor block_table, "
      "Tensor sequence_start, Tensor lengths, float scale, int window, float softcap) -> Tensor");
  m.def(
      "engine_attention_planes(Tensor q, Tensor key_cache, Tensor value_cache, "
      "Tensor block_table, Tensor sequence_start, Tensor lengths, float scale, int window, "
      "float softcap) -> (Tensor y, Tensor planes, Tensor scales)");
  m.def(
      "engine_sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
      "Tensor repetition_penalty, Tensor seed, Tensor step, Tensor history) -> Tensor");
}

// The operators find the kernels of the tensors' device by themselves.
TORCH_LIBRARY_IMPL(anyprec, CompositeExplicitAutograd, m) {
  using namespace anyprec::engine;
  m.impl("engine_rms_norm", &rms_norm_op);
  m.impl("engine_add_rms_norm", &add_rms_norm_op);
  m.impl("engine_add_rms_norm_planes", &add_rms_norm_planes);
  m.impl("engine_gated", &gated_op);
  m.impl("engine_gated_planes", &gated_planes);
  m.impl("engine_rotary_to_cache", &rotary_to_cache);
  m.impl("engine_attention", &attention_op);
  m.impl("engine_attention_planes", &attention_planes);
  m.impl("engine_sample", &sample_op);
}
