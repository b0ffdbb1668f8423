#include "src/engine/decoder.h"

#include <ATen/ATen.h>

#include <utility>

#include "src/engine/ops/ops.h"

namespace anyprec::engine {
namespace {

// Room for bit planes, where the layer that comes next would read them.
class PlanesFor {
 public:
  PlanesFor(const ProjectionGroup& next, const at::Tensor& like, std::int64_t rows,
            const Assignment& assignment)
      : wanted_(next.takes_planes(like, rows, assignment)) {}
  BitPlanes* get() { return wanted_ ? &planes_ : nullptr; }

 private:
  bool wanted_;
  BitPlanes planes_;
};

}  // namespace

Decoder::Decoder(ModelConfig config, DecoderWeights weights, std::int64_t positions)
    : config_(std::move(config)), weights_(std::move(weights)) {
  for (const RopeConfig& rope : config_.ropes) {
    rotary_.push_back(make_rotary_table(rope, positions, weights_.embedding.device()));
  }
}

std::int64_t Decoder::weight_bytes(const Assignment& assignment) const {
  std::int64_t bytes = weights_.head.bytes(assignment);
  for (const LayerWeights& layer : weights_.layers) {
    for (const ProjectionGroup* group :
         {&layer.query_key_value, &layer.attention_output, &layer.gate_up, &layer.down}) {
      bytes += group->bytes(assignment);
    }
  }
  return bytes;
}

at::Tensor Decoder::forward(const StepBatch& batch, KeyValueCache& cache,
                            const Assignment& assignment) const {
  const double eps = config_.norm_eps;
  const double offset = config_.norm_offset;
  const at::ScalarType dtype = c10::typeMetaToScalarType(options().dtype());
  at::Tensor residual = at::embedding(weights_.embedding, batch.tokens).to(dtype);
  if (config_.embedding_scale != 1) {
    // transformers rounds the factor to the embedding's dtype.
    residual.mul_(at::scalar_tensor(config_.embedding_scale, at::TensorOptions(dtype)).item());
  }
  const std::int64_t rows = residual.size(0);
  at::Tensor x;
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const auto planes_for = [&](const ProjectionGroup& next) {
      return PlanesFor(next, residual, rows, assignment);
    };
    PlanesFor for_attention = planes_for(layer.query_key_value);
    if (i == 0) {
      x = rms_norm(residual, layer.input_norm, eps, offset, for_attention.get());
    } else {
      x = add_rms_norm(x, residual, layer.input_norm, eps, offset, for_attention.get());
    }
    const at::Tensor qkv = layer.query_key_value(x, assignment, for_attention.get());

    const RotaryTable& rotary = rotary_[config_.layers[i].rope];
    const at::Tensor q = rotary_to_cache(qkv, batch.positions, batch.slots, rotary.cos, rotary.sin,
                                         optional(layer.query_norm), optional(layer.key_norm), eps,
                                         offset, cache.keys[i], cache.values[i]);
    PlanesFor for_output = planes_for(layer.attention_output);
    x = attention(q, cache.keys[i], cache.values[i], batch.block_table, batch.sequence_start,
                  batch.lengths, config_.attention_scale, config_.layers[i].window,
                  config_.attention_softcap, for_output.get());
    x = layer.attention_output(x, assignment, for_output.get());
    if (config_.norms_around) x = rms_norm(x, layer.post_attention_norm, eps, offset);

    PlanesFor for_mlp = planes_for(layer.gate_up);
    x = add_rms_norm(x, residual, layer.mlp_norm, eps, offset, for_mlp.get());
    x = layer.gate_up(x, assignment, for_mlp.get());
    PlanesFor for_down = planes_for(layer.down);
    x = gated(x, config_.activation, for_down.get());
    x = layer.down(x, assignment, for_down.get());
    if (config_.norms_around) x = rms_norm(x, layer.post_mlp_norm, eps, offset);
  }
  if (batch.logit_rows.defined()) {
    x = x.index_select(0, batch.logit_rows);
    residual = residual.index_select(0, batch.logit_rows);
  }
  if (x.size(0) == 0) return at::empty({0, config_.vocabulary}, x.options());
  PlanesFor for_head(weights_.head, x, x.size(0), assignment);
  x = add_rms_norm(x, residual, weights_.norm, eps, offset, for_head.get());
  at::Tensor logits = weights_.head(x, assignment, for_head.get());
  if (config_.logit_softcap > 0) {
    logits = logits.div_(config_.logit_softcap).tanh_().mul_(config_.logit_softcap);
  }
  return logits;
}

}  // namespace anyprec::engine
