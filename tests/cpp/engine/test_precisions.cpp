#include <gtest/gtest.h>

#include "anyprec/error.h"
#include "src/engine/precisions.h"

namespace anyprec::engine {
namespace {

const std::vector<std::string> kNames = {"model.layers.0.self_attn.q_proj",
                                         "model.layers.0.mlp.up_proj",
                                         "model.layers.1.self_attn.q_proj"};
const std::vector<int> kLoaded = {2, 3, 4};

TEST(Precisions, OneNumberIsForAllLinears) {
  EXPECT_EQ(*resolve(Precision(3), kNames, kLoaded), (Assignment{3, 3, 3}));
}

TEST(Precisions, TheFirstPatternThatMatchesDecides) {
  const Precision map({{"*.mlp.*", 2}, {"model.layers.0.*", 4}, {"*", 3}});
  EXPECT_EQ(*resolve(map, kNames, kLoaded), (Assignment{4, 2, 3}));
}

TEST(Precisions, WhatCannotBeMetIsRefused) {
  EXPECT_THROW(resolve(Precision(5), kNames, kLoaded), PrecisionError);
  EXPECT_THROW(resolve(Precision({{"nothing", 2}, {"*", 3}}), kNames, kLoaded), PrecisionError);
  EXPECT_THROW(resolve(Precision({{"*.mlp.*", 2}}), kNames, kLoaded), PrecisionError);
}

TEST(Precisions, AModelWithoutQuantizedLinearsHasNoneToAsk) {
  EXPECT_TRUE(resolve(Precision(), {}, {})->empty());
}

}  // namespace
}  // namespace anyprec::engine
