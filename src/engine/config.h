#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decoder.h"

namespace anyprec::engine {

using decoder::Activation;

/// Rotary position embedding of one kind of layer.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000;
  std::int64_t dims = 0;       ///< of a head's first dimensions, those that are rotated; even
  double factor = 1;           ///< kLinear, kLlama3
  double low_freq_factor = 1;  ///< kLlama3, and the two below
  double high_freq_factor = 4;
  std::int64_t original_positions = 0;
  bool operator==(const RopeConfig&) const = default;
};

struct LayerConfig {
  std::int64_t window = 0;  ///< positions that a token sees, its own included; 0: all before it
  std::size_t rope = 0;     ///< index into ModelConfig::ropes
};

/// A decoder as the engine runs it: what config.json says, read by the rules that the family's file
/// (configs/<model_type>.json, "engine") gives.
struct ModelConfig {
  std::string model_type;
  std::string tensors;  ///< prefix of the decoder's tensors: "model"
  std::string dtype;    ///< "float32", "bfloat16", "float16", or empty where config.json is silent
  std::int64_t vocabulary = 0;
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t query_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_positions = 0;
  double norm_eps = 1e-6;
  double norm_offset = 0;                    ///< added to norms' weights (Gemma: 1)
  bool norms_around = false;                 ///< a norm after attention and MLP too (Gemma 2, 3)
  bool query_key_norm = false;               ///< RMSNorm of each head of q and k before rotation
  std::vector<std::string> query_key_value;  ///< names under self_attn: three, or one fused
  std::vector<std::string> gate_up;          ///< names under mlp: two, or one fused
  Activation activation = Activation::kSilu;
  double attention_scale = 1;
  double attention_softcap = 0;  ///< 0: none
  double logit_softcap = 0;      ///< 0: none
  double embedding_scale = 1;
  bool tied_head = false;
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;

  std::int64_t query_size() const { return query_heads * head_dim; }
  std::int64_t key_size() const { return kv_heads * head_dim; }
};

/// Reads config.json's text. source: names it in errors. Throws FormatError where it is malformed,
/// and UnsupportedModel, with the key and the reason, where it asks for what the engine lacks.
ModelConfig read_model_config(const std::string& config_json, const std::string& source);

}  // namespace anyprec::engine
