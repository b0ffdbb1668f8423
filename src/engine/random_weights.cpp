#include "src/engine/random_weights.h"

#include <ATen/ATen.h>

#include <map>
#include <utility>

#include "anyprec/error.h"
#include "anyprec/torch.h"

namespace anyprec::engine {
namespace {

// Small enough that activations stay in the range of fp16 through any number of layers.
constexpr double kDeviation = 0.02;

class RandomSource final : public WeightSource {
 public:
  RandomSource(const ModelConfig& config, RandomWeights what, at::Device device,
               at::ScalarType dtype)
      : what_(std::move(what)), options_(at::TensorOptions().device(device).dtype(dtype)) {
    const std::int64_t h = config.hidden;
    add(config.tensors + ".embed_tokens.weight", {config.vocabulary, h});
    add(config.tensors + ".norm.weight", {h});
    for (std::size_t i = 0; i < config.layers.size(); ++i) {
      add_layer(config, config.tensors + ".layers." + std::to_string(i) + ".");
    }
    if (!config.tied_head || what_.quantize_head) {
      add_linear("lm_head", config.vocabulary, h, what_.quantize_head);
    }
  }

  const std::vector<QuantizedModule>& modules() const override { return modules_; }
  const std::vector<int>& precisions() const override { return what_.precisions; }
  bool contains(const std::string& name) const override { return shapes_.contains(name); }
  at::Tensor dense(const std::string& name) override {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    return shape.size() == 1 ? at::ones(shape, options_)
                             : at::empty(shape, options_).normal_(0, kDeviation);
  }

  Projection quantized(std::size_t index) override {
    const QuantizedModule& module = modules_[index];
    Projection projection = empty_projection(module, index, what_.form);
    const std::int64_t planes = what_.precisions.back();
    const auto bytes = options_.dtype(at::kByte);
    projection.planes = torch::pack_planes(
        at::randint(256, {planes, module.out_features, module.in_features / 8}, bytes),
        module.in_features);
    const auto half = options_.dtype(at::kHalf);
    const std::int64_t groups = what_.form.groups(module.in_features);
    for (const int b : what_.precisions) {
      const auto at = static_cast<std::size_t>(b);
      const int signs = what_.form.sign_planes(b);
      projection.lut[at] = at::empty({module.out_features, groups, what_.form.lut_entries(b)}, half)
                               .normal_(0, kDeviation);
      if (signs == 0) continue;
      projection.alpha[at] =
          at::empty({module.out_features, groups, signs, what_.form.classes()}, half)
              .normal_(0, kDeviation);
    }
    return projection;
  }

  std::vector<std::string> dense_names() const override {
    std::vector<std::string> names;
    for (const auto& [name, shape] : shapes_) names.push_back(name);
    return names;
  }

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape) {
    shapes_.emplace(name, std::move(shape));
  }

  void add_linear(const std::string& name, std::int64_t out_features, std::int64_t in_features,
                  bool quantize = true) {
    if (what_.precisions.empty() || !quantize)
      return add(name + ".weight", {out_features, in_features});
    if (in_features % 8 != 0) {
      throw UnsupportedModel(name +
                             ": random planes are made for in_features a multiple of 8, found " +
                             std::to_string(in_features));
    }
    modules_.push_back({.name = name, .out_features = out_features, .in_features = in_features});
  }

  void add_group(const std::string& stem, const std::vector<std::string>& names,
                 const std::vector<std::int64_t>& pieces, std::int64_t in_features) {
    const std::vector<std::int64_t> sizes = sizes_of(names, pieces);
    for (std::size_t i = 0; i < names.size(); ++i) {
      add_linear(stem + names[i], sizes[i], in_features);
    }
  }

  void add_layer(const ModelConfig& config, const std::string& name) {
    const std::int64_t h = config.hidden;
    const std::int64_t f = config.intermediate;
    add(name + "input_layernorm.weight", {h});
    add(name + "post_attention_layernorm.weight", {h});
    if (config.norms_around) {
      add(name + "pre_feedforward_layernorm.weight", {h});
      add(name + "post_feedforward_layernorm.weight", {h});
    }
    if (config.query_key_norm) {
      add(name + "self_attn.q_norm.weight", {config.head_dim});
      add(name + "self_attn.k_norm.weight", {config.head_dim});
    }
    const std::int64_t q = config.query_size();
    const std::int64_t k = config.key_size();
    add_group(name + "self_attn.", config.query_key_value, {q, k, k}, h);
    add_linear(name + "self_attn.o_proj", h, q);
    add_group(name + "mlp.", config.gate_up, {f, f}, h);
    add_linear(name + "mlp.down_proj", h, f);
  }

  RandomWeights what_;
  at::TensorOptions options_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  std::vector<QuantizedModule> modules_;
};

}  // namespace

std::unique_ptr<WeightSource> random_source(const ModelConfig& config, RandomWeights what,
                                            at::Device device, at::ScalarType dtype) {
  return std::make_unique<RandomSource>(config, std::move(what), device, dtype);
}

}  // namespace anyprec::engine
