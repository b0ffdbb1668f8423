#include <gtest/gtest.h>

#include <cmath>

#include "anyprec/engine.h"
#include "anyprec/error.h"
#include "src/engine/config.h"
#include "src/engine/decode_graph.h"

namespace anyprec::engine {
namespace {

ModelConfig read(const std::string& changes, const std::string& type = "gemma2") {
  return read_model_config(
      R"({"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
          "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "model_type": ")" +
          type + "\"" + changes + "}",
      "config.json");
}

TEST(ModelConfig, AFamilysFileGivesItsRules) {
  const ModelConfig config =
      read(R"(, "query_pre_attn_scalar": 16, "sliding_window": 128, "head_dim": 32,
              "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0)");
  EXPECT_TRUE(config.norms_around);
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ(config.norm_offset, 1);
  EXPECT_EQ(config.activation, Activation::kGeluTanh);
  EXPECT_EQ(config.attention_scale, 0.25);
  EXPECT_EQ(config.attention_softcap, 50);
  EXPECT_EQ(config.logit_softcap, 30);
  EXPECT_EQ(config.embedding_scale, 8);
  EXPECT_EQ(config.query_size(), 128);
  // Of a config.json without layer_types, by the family's pattern.
  const std::vector<std::int64_t> windows = {128, 0, 128, 0};
  for (std::size_t i = 0; i < windows.size(); ++i) EXPECT_EQ(config.layers[i].window, windows[i]);
}

TEST(ModelConfig, OldAndNewNamesOfRopeAreRead) {
  const std::string scaling =
      R"("rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256)";
  const ModelConfig old =
      read(R"(, "rope_theta": 5e5, "rope_scaling": {)" + scaling + "}", "llama");
  const ModelConfig now =
      read(R"(, "rope_parameters": {"rope_theta": 5e5, )" + scaling + "}", "llama");
  ASSERT_EQ(old.ropes.size(), 1U);
  EXPECT_EQ(old.ropes, now.ropes);
  EXPECT_EQ(old.ropes[0].type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(old.ropes[0].theta, 5e5);
  EXPECT_EQ(old.ropes[0].original_positions, 256);
}

TEST(ModelConfig, WhatIsNotImplementedIsRefused) {
  EXPECT_THROW(read("", "mamba"), UnsupportedModel);
  EXPECT_THROW(read(R"(, "rope_scaling": {"type": "yarn"})", "llama"), UnsupportedModel);
  EXPECT_THROW(read(R"(, "layer_types": ["a", "b", "c", "d"])"), UnsupportedModel);
  EXPECT_THROW(read(R"(, "partial_rotary_factor": 0.95)", "phi3"), UnsupportedModel);
}

TEST(ModelConfig, WhatIsMalformedIsTold) {
  EXPECT_THROW(read(R"(, "rms_norm_eps": "small")"), FormatError);
  EXPECT_THROW(read(R"(, "layer_types": [])"), FormatError);
  EXPECT_THROW(read_model_config("{", "config.json"), FormatError);
}

TEST(Engine, AMissingDirectoryIsAnError) { EXPECT_THROW(Engine("/nonexistent/checkpoint"), Error); }

TEST(DecodeGraphs, RowsAreFilledUpToFewSizes) {
  const std::vector<std::int64_t> rows = {1, 2, 3, 5, 8, 9, 17, 33};
  const std::vector<std::int64_t> wanted = {1, 2, 4, 8, 8, 16, 24, 40};
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(graph_rows(rows[i]), wanted[i]);
}

}  // namespace
}  // namespace anyprec::engine
