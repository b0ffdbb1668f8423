#include "src/engine/config.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "anyprec/error.h"
#include "src/engine/families.h"
#include "src/format/json.h"

namespace anyprec::engine {
namespace {

using format::Json;

// Far more than any model has; a list of them is made before a tensor is looked for.
constexpr std::int64_t kMostLayers = 16384;
constexpr std::string_view kSliding = "sliding_attention";
constexpr std::string_view kFull = "full_attention";

// One object of config.json with the family's defaults behind it; a null is as good as no key.
class Values {
 public:
  Values(const Json& object, const Json& defaults, std::string source)
      : object_(object), defaults_(defaults), source_(std::move(source)) {}

  const Json* find(const std::string& key) const {
    for (const Json* from : {&object_, &defaults_}) {
      const auto found = from->find(key);
      if (found != from->end() && !found->is_null()) return &*found;
    }
    return nullptr;
  }
  double number(const std::string& key, double otherwise) const {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number() || !std::isfinite(value->get<double>())) reject(key, "a finite number");
    return value->get<double>();
  }
  double positive(const std::string& key, double otherwise) const {
    const double value = number(key, otherwise);
    if (!(value > 0)) reject(key, "a number above 0");
    return value;
  }
  std::int64_t size(const std::string& key) const {
    const Json* const value = find(key);
    if (value == nullptr) throw FormatError(source_ + ": " + key + " is missing");
    // Large enough for any model, and small enough that products of two of them fit.
    constexpr std::int64_t kMost = std::int64_t{1} << 30;
    if (!value->is_number_integer() || value->get<std::int64_t>() < 1 ||
        value->get<std::int64_t>() > kMost) {
      reject(key, "an integer from 1 to 2^30");
    }
    return value->get<std::int64_t>();
  }
  std::int64_t size(const std::string& key, std::int64_t otherwise) const {
    return find(key) == nullptr ? otherwise : size(key);
  }
  bool flag(const std::string& key, bool otherwise) const {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) reject(key, "true or false");
    return value->get<bool>();
  }
  std::string text(const std::string& key, const std::string& otherwise) const {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) reject(key, "a string");
    return value->get<std::string>();
  }
  [[noreturn]] void reject(const std::string& key, const std::string& wanted) const {
    throw FormatError(source_ + ": " + key + ": found " + format::shown(find(key)->dump()) +
                      ", wanted " + wanted);
  }
  [[noreturn]] void unsupported(const std::string& key, const std::string& found,
                                const std::string& wanted) const {
    throw UnsupportedModel(source_ + ": " + key + ": found " + format::shown(found) +
                           ", the engine has " + wanted);
  }
  const std::string& source() const { return source_; }

 private:
  const Json& object_;
  const Json& defaults_;
  std::string source_;
};

const Json& empty_object() {
  static const Json empty = Json::object();
  return empty;
}

Activation activation_of(const Values& values, const std::string& key) {
  const std::string name = values.text(key, "");
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  values.unsupported(key, name, "silu and gelu_pytorch_tanh");
}

// transformers 5 writes rope_parameters, for each type of layer or for all; before it were
// rope_theta, rope_scaling and, for Gemma 3's windows, rope_local_base_freq.
RopeConfig rope_of(const Values& values, std::string_view layer_type, std::int64_t head_dim,
                   std::int64_t max_positions) {
  const Json* parameters = values.find("rope_parameters");
  if (parameters != nullptr && parameters->contains(layer_type)) {
    parameters = &(*parameters)[std::string(layer_type)];
  }
  const bool local = layer_type == kSliding && values.find("rope_local_base_freq") != nullptr;
  if (parameters == nullptr && !local) parameters = values.find("rope_scaling");
  if (parameters == nullptr) parameters = &empty_object();
  if (!parameters->is_object()) values.reject("rope_parameters", "an object");
  const Values rope(*parameters, empty_object(), values.source() + ": rope_parameters");

  RopeConfig config;
  config.theta = rope.positive(
      "rope_theta", values.positive(local ? "rope_local_base_freq" : "rope_theta", 10000));
  const double share =
      rope.positive("partial_rotary_factor", values.positive("partial_rotary_factor", 1));
  config.dims = static_cast<std::int64_t>(static_cast<double>(head_dim) * share);
  if (config.dims < 2 || config.dims % 2 != 0 || config.dims > head_dim) {
    values.unsupported("partial_rotary_factor",
                       std::to_string(config.dims) + " rotated of " + std::to_string(head_dim),
                       "an even number of rotated dimensions");
  }
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type == "default") return config;
  if (type == "linear") {
    config.type = RopeConfig::Type::kLinear;
    config.factor = rope.positive("factor", 1);
    return config;
  }
  if (type == "llama3") {
    config.type = RopeConfig::Type::kLlama3;
    config.factor = rope.positive("factor", 8);
    config.low_freq_factor = rope.positive("low_freq_factor", 1);
    config.high_freq_factor = rope.positive("high_freq_factor", 4);
    config.original_positions = rope.size("original_max_position_embeddings", max_positions);
    return config;
  }
  values.unsupported("rope_parameters.rope_type", type, "default, linear and llama3");
}

// The type of each layer where config.json does not list them.
std::string_view implied_type(const Values& values, const Values& family, std::int64_t layer) {
  if (family.find("window_pattern") != nullptr) {
    const std::int64_t pattern =
        values.size("sliding_window_pattern",
                    values.size("_sliding_window_pattern", family.size("window_pattern")));
    return (layer + 1) % pattern == 0 ? kFull : kSliding;
  }
  return values.flag("use_sliding_window", false) && layer >= values.size("max_window_layers", 1)
             ? kSliding
             : kFull;
}

void read_layers(const Values& values, const Values& family, ModelConfig& config) {
  const std::int64_t count = values.size("num_hidden_layers");
  if (count > kMostLayers) values.reject("num_hidden_layers", "at most 16384");
  const std::string rule = family.text("sliding_window", "layer_types");
  const std::int64_t window = values.size("sliding_window", 0);
  const Json* const types = rule == "layer_types" ? values.find("layer_types") : nullptr;
  if (types != nullptr &&
      (!types->is_array() || types->size() != static_cast<std::size_t>(count))) {
    values.reject("layer_types", "a list of num_hidden_layers = " + std::to_string(count));
  }
  if (types != nullptr && !std::all_of(types->begin(), types->end(),
                                       [](const Json& each) { return each.is_string(); })) {
    values.reject("layer_types", "a list of strings");
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::string type(rule == "all_layers" && window > 0 ? kSliding : kFull);
    if (rule == "layer_types") {
      type = types == nullptr ? std::string(implied_type(values, family, i))
                              : (*types)[static_cast<std::size_t>(i)].get<std::string>();
    }
    if (type != kSliding && type != kFull) {
      values.unsupported("layer_types", type, "sliding_attention and full_attention");
    }
    const RopeConfig rope = rope_of(values, type, config.head_dim, config.max_positions);
    const auto same = std::find(config.ropes.begin(), config.ropes.end(), rope);
    const auto index = static_cast<std::size_t>(same - config.ropes.begin());
    if (same == config.ropes.end()) config.ropes.push_back(rope);
    config.layers.push_back({.window = type == kSliding ? window : 0, .rope = index});
  }
}

std::vector<std::string> names(const Json& engine, const char* key,
                               std::vector<std::string> otherwise) {
  return engine.contains(key) ? engine[key].get<std::vector<std::string>>() : otherwise;
}

}  // namespace

ModelConfig read_model_config(const std::string& config_json, const std::string& source) {
  const Json root = format::parse_json(config_json, source);
  const Values outer(root, empty_object(), source);
  const std::string type = outer.text("model_type", "");
  const std::string_view text = family_json(type);
  const Json family =
      text.empty() ? Json::object() : format::parse_json(text, "configs/" + type + ".json");
  if (!family.contains("engine")) {
    throw UnsupportedModel(source + ": model_type: found " + format::shown(type) +
                           ", the engine has " + supported_families());
  }
  const Json& engine = family["engine"];
  const Values rules(engine, empty_object(), "configs/" + type + ".json");
  const std::string inner = rules.text("config", "");
  if (!inner.empty() && (!root.contains(inner) || !root[inner].is_object())) {
    throw FormatError(source + ": " + inner + ": found nothing, wanted an object");
  }
  const Json& own = inner.empty() ? root : root[inner];
  const Json defaults = engine.value("defaults", Json::object());
  const Values values(own, defaults, source);

  ModelConfig config;
  config.model_type = type;
  config.tensors = rules.text("tensors", "model");
  config.dtype = outer.text("dtype", outer.text("torch_dtype", values.text("dtype", "")));
  config.vocabulary = values.size("vocab_size");
  config.hidden = values.size("hidden_size");
  config.intermediate = values.size("intermediate_size");
  config.query_heads = values.size("num_attention_heads");
  config.kv_heads = values.size("num_key_value_heads", config.query_heads);
  if (config.query_heads % config.kv_heads != 0) {
    throw FormatError(source + ": num_key_value_heads: found " + std::to_string(config.kv_heads) +
                      ", wanted a divisor of num_attention_heads " +
                      std::to_string(config.query_heads));
  }
  config.head_dim =
      values.size("head_dim", std::max<std::int64_t>(1, config.hidden / config.query_heads));
  config.max_positions = values.size("max_position_embeddings");
  config.norm_eps = values.positive("rms_norm_eps", 1e-6);
  config.norm_offset = rules.number("norm_offset", 0);
  config.norms_around = rules.text("norms", "before") == "around";
  config.query_key_norm = rules.flag("query_key_norm", false);
  config.query_key_value = names(engine, "query_key_value", {"q_proj", "k_proj", "v_proj"});
  config.gate_up = names(engine, "gate_up", {"gate_proj", "up_proj"});
  config.activation = activation_of(values, rules.text("activation", "hidden_act"));
  const std::string scale_key = rules.text("attention_scale", "");
  config.attention_scale =
      1 / std::sqrt(scale_key.empty() ? static_cast<double>(config.head_dim)
                                      : values.positive(scale_key, config.head_dim));
  if (rules.flag("softcaps", false)) {
    config.attention_softcap = values.number("attn_logit_softcapping", 0);
  }
  config.logit_softcap = values.number("final_logit_softcapping", 0);
  if (rules.text("embedding_scale", "none") == "sqrt_hidden_size") {
    config.embedding_scale = std::sqrt(static_cast<double>(config.hidden));
  }
  config.tied_head = outer.flag("tie_word_embeddings", values.flag("tie_word_embeddings", false));
  if (values.flag("use_bidirectional_attention", false)) {
    values.unsupported("use_bidirectional_attention", "true", "causal attention only");
  }
  read_layers(values, rules, config);
  return config;
}

}  // namespace anyprec::engine
