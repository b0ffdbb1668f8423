#include "src/engine/decoder.h"

#include <ATen/ATen.h>

#include <utility>

#include "src/engine/ops/ops.h"
#include "src/engine/residual.h"

namespace anyprec::engine {
namespace {

// Room for bit planes, where the layer that comes next would read them. The down projection alone
// gains by them: rows are long there. Shorter ones are turned into planes by the product's own
// blocks while their first weights come, in less time than a norm or attention, which have one
// block or a few for a row, would add to theirs (benchmarks/RESULTS.md).
class PlanesFor {
 public:
  PlanesFor(const ProjectionGroup& next, const at::Tensor& like, const Assignment& assignment)
      : wanted_(next.takes_planes(like, like.size(0), assignment)) {}
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
  const at::ScalarType dtype = c10::typeMetaToScalarType(options().dtype());
  at::Tensor embedded = at::embedding(weights_.embedding, batch.tokens).to(dtype);
  if (config_.embedding_scale != 1) {
    // transformers rounds the factor to the embedding's dtype.
    embedded.mul_(at::scalar_tensor(config_.embedding_scale, at::TensorOptions(dtype)).item());
  }
  ResidualStream residual(embedded, config_, assignment);
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const at::Tensor qkv = residual.normed(layer.query_key_value, layer.input_norm);
    const RotaryTable& rotary = rotary_[config_.layers[i].rope];
    const at::Tensor q =
        rotary_to_cache(qkv, batch.positions, batch.slots, rotary.cos, rotary.sin,
                        optional(layer.query_norm), optional(layer.key_norm), config_.norm_eps,
                        config_.norm_offset, cache.keys[i], cache.values[i]);
    const at::Tensor attended = attention(
        q, cache.keys[i], cache.values[i], batch.block_table, batch.sequence_start, batch.lengths,
        config_.attention_scale, config_.layers[i].window, config_.attention_softcap);
    residual.add(layer.attention_output, attended, layer.post_attention_norm);

    const at::Tensor gate_up = residual.normed(layer.gate_up, layer.mlp_norm);
    PlanesFor for_down(layer.down, embedded, assignment);
    const at::Tensor activated = gated(gate_up, config_.activation, for_down.get());
    residual.add(layer.down, activated, layer.post_mlp_norm, for_down.get());
  }
  const at::Tensor x = residual.norm_of(batch.logit_rows, weights_.norm);
  if (x.size(0) == 0) return at::empty({0, config_.vocabulary}, x.options());
  at::Tensor logits = weights_.head(x, assignment);
  if (config_.logit_softcap > 0) {
    logits = logits.div_(config_.logit_softcap).tanh_().mul_(config_.logit_softcap);
  }
  return logits;
}

}  // namespace anyprec::engine
