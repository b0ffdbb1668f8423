#include "src/engine/weights.h"

#include <ATen/ops/equal.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "anyprec/error.h"

namespace anyprec::engine {
namespace {

std::string shape_text(at::IntArrayRef sizes) {
  std::string text = "[";
  for (const std::int64_t size : sizes) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

class Loader {
 public:
  Loader(const ModelConfig& config, WeightSource& source) : config_(config), source_(source) {
    for (std::size_t i = 0; i < source.modules().size(); ++i) {
      indices_.emplace(source.modules()[i].name, i);
    }
  }

  DecoderWeights load() {
    DecoderWeights weights;
    weights.precisions = source_.precisions();
    for (const QuantizedModule& module : source_.modules())
      weights.quantized.push_back(module.name);
    const std::string& stem = config_.tensors;
    weights.embedding =
        narrowed(dense(stem + ".embed_tokens.weight", {config_.vocabulary, config_.hidden}));
    for (std::size_t i = 0; i < config_.layers.size(); ++i) {
      weights.layers.push_back(layer(stem + ".layers." + std::to_string(i) + "."));
    }
    weights.norm = dense(stem + ".norm.weight", {config_.hidden});
    weights.head = ProjectionGroup({head(weights.embedding)});
    check_all_used();
    return weights;
  }

 private:
  LayerWeights layer(const std::string& name) {
    LayerWeights layer;
    const at::IntArrayRef hidden = config_.hidden;
    layer.input_norm = dense(name + "input_layernorm.weight", hidden);
    const std::string after_attention = name + "post_attention_layernorm.weight";
    if (config_.norms_around) {
      layer.post_attention_norm = dense(after_attention, hidden);
      layer.mlp_norm = dense(name + "pre_feedforward_layernorm.weight", hidden);
      layer.post_mlp_norm = dense(name + "post_feedforward_layernorm.weight", hidden);
    } else {
      layer.mlp_norm = dense(after_attention, hidden);
    }
    const std::string attention = name + "self_attn.";
    if (config_.query_key_norm) {
      layer.query_norm = dense(attention + "q_norm.weight", config_.head_dim);
      layer.key_norm = dense(attention + "k_norm.weight", config_.head_dim);
    }
    const std::int64_t q = config_.query_size();
    const std::int64_t k = config_.key_size();
    const std::int64_t f = config_.intermediate;
    layer.query_key_value = group(attention, config_.query_key_value, {q, k, k}, config_.hidden);
    layer.attention_output = group(attention, {"o_proj"}, {config_.hidden}, q);
    layer.gate_up = group(name + "mlp.", config_.gate_up, {f, f}, config_.hidden);
    layer.down = group(name + "mlp.", {"down_proj"}, {config_.hidden}, f);
    return layer;
  }

  ProjectionGroup group(const std::string& stem, const std::vector<std::string>& names,
                        const std::vector<std::int64_t>& pieces, std::int64_t in_features) {
    const std::vector<std::int64_t> sizes = sizes_of(names, pieces);
    std::vector<Projection> projections;
    for (std::size_t i = 0; i < names.size(); ++i) {
      projections.push_back(projection(stem + names[i], sizes[i], in_features));
    }
    return ProjectionGroup(std::move(projections));
  }

  Projection projection(const std::string& name, std::int64_t out_features,
                        std::int64_t in_features) {
    Projection projection;
    const auto index = indices_.find(name);
    if (index != indices_.end()) {
      projection = source_.quantized(index->second);
      if (projection.out_features != out_features || projection.in_features != in_features) {
        throw FormatError(name + ": found " +
                          shape_text({projection.out_features, projection.in_features}) +
                          ", config.json says " + shape_text({out_features, in_features}));
      }
      indices_.erase(index);
    } else {
      projection.out_features = out_features;
      projection.in_features = in_features;
      projection.dense = dense(name + ".weight", {out_features, in_features});
    }
    if (source_.contains(name + ".bias")) projection.bias = dense(name + ".bias", out_features);
    return projection;
  }

  Projection head(const at::Tensor& embedding) {
    const bool own = indices_.contains("lm_head") || source_.contains("lm_head.weight");
    if (own) {
      Projection head = projection("lm_head", config_.vocabulary, config_.hidden);
      if (head.quantized()) return head;
      head.dense = tied_to(head.dense, embedding) ? embedding : narrowed(head.dense);
      return head;
    }
    if (!config_.tied_head) throw FormatError("lm_head.weight is missing, wanted as not tied");
    Projection tied;
    tied.out_features = config_.vocabulary;
    tied.in_features = config_.hidden;
    tied.dense = embedding;
    return tied;
  }

  // Whether a head that has a name of its own is the embedding that the source gave.
  bool tied_to(const at::Tensor& head, const at::Tensor& embedding) const {
    if (!config_.tied_head) return false;
    return head.const_data_ptr() == embedding.const_data_ptr() ||
           (head.is_cpu() && at::equal(head, embedding.to(head.scalar_type())));
  }

  at::Tensor dense(const std::string& name, at::IntArrayRef shape) {
    if (!source_.contains(name)) {
      throw FormatError(name + " is missing, which a " + config_.model_type + " model has");
    }
    at::Tensor tensor = source_.dense(name);
    if (tensor.sizes() != shape) {
      throw FormatError(name + ": found shape " + shape_text(tensor.sizes()) +
                        ", config.json says " + shape_text(shape));
    }
    used_.insert(name);
    return tensor.contiguous();
  }

  // A decoder with a part that is not known here would compute something else.
  void check_all_used() const {
    const auto refuse = [this](const std::string& name) {
      throw UnsupportedModel(name + ": the engine knows no such part of a " + config_.model_type +
                             " model");
    };
    if (!indices_.empty()) refuse(indices_.begin()->first);
    for (const std::string& name : source_.dense_names()) {
      const bool own = name.starts_with(config_.tensors + ".") || name.starts_with("lm_head.");
      // Buffers that older versions of transformers saved.
      const bool computed = name.ends_with("rotary_emb.inv_freq");
      if (own && !computed && !used_.contains(name)) refuse(name);
    }
  }

  const ModelConfig& config_;
  WeightSource& source_;
  std::map<std::string, std::size_t> indices_;
  std::set<std::string> used_;
};

}  // namespace

Projection empty_projection(const QuantizedModule& module, std::size_t index,
                            const CodebookForm& form) {
  Projection projection;
  projection.out_features = module.out_features;
  projection.in_features = module.in_features;
  projection.index = index;
  projection.form = form;
  return projection;
}

std::vector<std::int64_t> sizes_of(const std::vector<std::string>& names,
                                   const std::vector<std::int64_t>& pieces) {
  if (names.size() == pieces.size()) return pieces;
  const auto total = std::accumulate(pieces.begin(), pieces.end(), std::int64_t{0});
  return std::vector<std::int64_t>(names.size(), total);
}

DecoderWeights load_weights(const ModelConfig& config, WeightSource& source) {
  return Loader(config, source).load();
}

}  // namespace anyprec::engine
