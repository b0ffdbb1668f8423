// What is written comes back, whole or in part, for every form of codebook.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <numeric>
#include <set>

#include "anyprec/error.h"
#include "tests/cpp/format/example.h"

namespace anyprec::testing {
namespace {

void expect_same_tensor(const Checkpoint& checkpoint, const std::string& name,
                        const ExampleTensor& wanted) {
  SCOPED_TRACE(name);
  ASSERT_TRUE(checkpoint.contains(name));
  const TensorView found = checkpoint.tensor(name);
  EXPECT_EQ(found.name, name);
  EXPECT_EQ(found.dtype, wanted.dtype);
  EXPECT_EQ(found.shape, wanted.shape);
  ASSERT_EQ(found.bytes, wanted.data.size());
  EXPECT_TRUE(std::equal(wanted.data.begin(), wanted.data.end(), found.data));
}

std::set<std::string> file_names(const Checkpoint& checkpoint) {
  std::set<std::string> names;
  for (const auto& path : checkpoint.files()) names.insert(path.filename().string());
  return names;
}

/// Size of a safetensors file's header, from its first 8 bytes.
std::uint64_t header_bytes(const std::filesystem::path& path) {
  const std::string file = read_file(path);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return 8 + length;
}

class EveryForm : public ::testing::TestWithParam<CodebookForm> {};

TEST_P(EveryForm, ComesBackAsItWasWritten) {
  const TemporaryDirectory directory;
  const Example example = make_example(GetParam(), {2, 3, 4, 5, 6, 7, 8}, odd_modules(), 7);
  write_example(example, directory / "out");

  const Checkpoint checkpoint(directory / "out");
  EXPECT_EQ(checkpoint.config_json(), example.config_json);
  EXPECT_EQ(checkpoint.config().format_version, 1);
  EXPECT_EQ(checkpoint.config().codebook, example.config.codebook);
  EXPECT_EQ(checkpoint.config().precisions, example.config.precisions);
  EXPECT_EQ(checkpoint.config().seed_precision, example.config.seed_precision);
  EXPECT_EQ(checkpoint.config().modules, example.config.modules);
  EXPECT_EQ(checkpoint.precisions(), example.config.precisions);
  EXPECT_EQ(checkpoint.available_precisions(), example.config.precisions);
  EXPECT_EQ(checkpoint.tensor_names().size(), example.tensors.size());
  for (const auto& [name, tensor] : example.tensors) expect_same_tensor(checkpoint, name, tensor);
  for (const auto& [name, content] : example.files) {
    EXPECT_EQ(read_file(directory / "out" / name), content);
  }
}

TEST_P(EveryForm, PassesVerification) {
  const TemporaryDirectory directory;
  const Example example = make_example(GetParam(), {3, 4, 5}, odd_modules(), 8);
  write_example(example, directory / "out");
  const VerifyReport report = verify_checkpoint(directory / "out");
  EXPECT_EQ(report.problems, std::vector<std::string>{});
  EXPECT_EQ(report.tensors, static_cast<std::int64_t>(example.tensors.size()));
  std::uint64_t bytes = 0;  // everything but the manifest itself
  for (const auto& [name, content] : read_directory(directory / "out")) {
    if (name != "anyprec_manifest.json") bytes += content.size();
  }
  EXPECT_EQ(report.bytes, bytes);
}

TEST_P(EveryForm, GivesAlignedData) {
  const TemporaryDirectory directory;
  write_example(make_example(GetParam(), {2, 3, 4}, odd_modules(), 9), directory / "out");
  const Checkpoint checkpoint(directory / "out");
  for (const std::string& name : checkpoint.tensor_names()) {
    const TensorView tensor = checkpoint.tensor(name);
    const std::int64_t count = std::accumulate(tensor.shape.begin(), tensor.shape.end(),
                                               std::int64_t{1}, std::multiplies<>());
    if (count == 0) continue;
    const auto width = tensor.bytes / static_cast<std::size_t>(count);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data) % width, 0u) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Forms, EveryForm,
    ::testing::Values(CodebookForm{8, CellGroups::kOne, 0}, CodebookForm{8, CellGroups::kOne, 32},
                      CodebookForm{3, CellGroups::kSym, 0}, CodebookForm{4, CellGroups::kIo, 64},
                      CodebookForm{4, CellGroups::kQu, 0}, CodebookForm{2, CellGroups::kCell, 0},
                      CodebookForm{0, CellGroups::kOne, 32}),
    [](const auto& info) {
      return std::string(to_string(info.param.cell_groups)) + std::to_string(info.param.lut_bits) +
             "g" + std::to_string(info.param.group_size);
    });

TEST(Subset, OpensOnlyWhatAPrecisionNeeds) {
  const TemporaryDirectory directory;
  const Example example =
      make_example({4, CellGroups::kIo, 0}, {2, 3, 4, 5, 6, 7, 8}, odd_modules(), 3);
  write_example(example, directory / "out");

  const Checkpoint checkpoint(directory / "out", {5, 3, 5});
  EXPECT_EQ(checkpoint.precisions(), (std::vector<int>{3, 5}));
  EXPECT_EQ(file_names(checkpoint),
            (std::set<std::string>{"model-base.safetensors", "model-2bit.safetensors",
                                   "model-3bit.safetensors", "model-4bit.safetensors",
                                   "model-5bit.safetensors"}));
  std::set<std::string> wanted;
  for (const auto& [name, tensor] : example.tensors) {
    const bool quantized = name.find(".plane.") != std::string::npos ||
                           name.find(".lut.") != std::string::npos ||
                           name.find(".alpha.") != std::string::npos;
    const int number = quantized ? std::stoi(name.substr(name.rfind('.') + 1)) : 0;
    const bool plane = name.find(".plane.") != std::string::npos;
    if (!quantized || (plane && number < 5) || (!plane && (number == 3 || number == 5))) {
      wanted.insert(name);
    }
  }
  const auto names = checkpoint.tensor_names();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), wanted);
  for (const std::string& name : names) {
    expect_same_tensor(checkpoint, name, example.tensors.at(name));
  }

  const std::string closed = example.config.modules[0].name + ".lut.4";
  EXPECT_FALSE(checkpoint.contains(closed));
  try {
    checkpoint.tensor(closed);
    FAIL() << "a tensor of another precision was given";
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find(closed), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("3, 5"), std::string::npos) << error.what();
  }
}

TEST(Subset, CostsItsHeadersAndTensorsAndNothingElse) {
  const TemporaryDirectory directory;
  const Example example = make_example({8, CellGroups::kOne, 0}, {2, 3, 4, 5, 6, 7, 8},
                                       {{"a", 64, 512}, {"b", 128, 64}}, 3);
  write_example(example, directory / "out");
  std::uint64_t all = 0;
  for (const auto& [name, content] : read_directory(directory / "out")) {
    if (name.ends_with(".safetensors")) all += content.size();
  }
  EXPECT_EQ(Checkpoint(directory / "out").bytes_mapped(), all);

  std::uint64_t before = 0;
  for (int b = 2; b <= 8; ++b) {
    const Checkpoint checkpoint(directory / "out", {b});
    std::uint64_t wanted = 0;
    for (const auto& path : checkpoint.files()) wanted += header_bytes(path);
    for (const std::string& name : checkpoint.tensor_names()) {
      wanted += example.tensors.at(name).data.size();
    }
    EXPECT_EQ(checkpoint.bytes_mapped(), wanted) << "precision " << b;
    EXPECT_GT(checkpoint.bytes_mapped(), before);
    EXPECT_LT(checkpoint.bytes_mapped(), all);
    before = checkpoint.bytes_mapped();
    std::cout << "precisions=[" << b << "]: " << before << " of " << all << " bytes\n";
  }
}

TEST(Subset, NeedsNoFilesOfHigherPrecisions) {
  const TemporaryDirectory directory;
  const Example example = make_example({8, CellGroups::kOne, 0}, {2, 3, 4, 5}, odd_modules(), 3);
  write_example(example, directory / "out");
  std::filesystem::remove(directory / "out" / "model-5bit.safetensors");
  std::filesystem::remove(directory / "out" / "model-4bit.safetensors");

  const Checkpoint checkpoint(directory / "out", {3});
  EXPECT_EQ(checkpoint.available_precisions(), (std::vector<int>{2, 3}));
  const std::string lut = example.config.modules[0].name + ".lut.3";
  expect_same_tensor(checkpoint, lut, example.tensors.at(lut));
  for (const std::vector<int>& asked : {std::vector<int>{4}, {2, 5}, {}}) {
    try {
      const Checkpoint absent(directory / "out", asked);
      FAIL() << "a precision without its file was opened";
    } catch (const PrecisionError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("model-4bit.safetensors is absent"), std::string::npos) << message;
      EXPECT_NE(message.find("present: 2, 3"), std::string::npos) << message;
      EXPECT_NE(message.find("precisions=[...]"), std::string::npos) << message;
    }
  }
}

TEST(Subset, RefusesAPrecisionOutsideTheConfig) {
  const TemporaryDirectory directory;
  write_example(make_example({8, CellGroups::kOne, 0}, {3, 4}, odd_modules(), 3),
                directory / "out");
  for (const int b : {-1, 0, 2, 5, 9}) {
    try {
      const Checkpoint checkpoint(directory / "out", {3, b});
      FAIL() << "precision " << b << " was opened";
    } catch (const PrecisionError& error) {
      EXPECT_NE(std::string(error.what()).find("holds 3, 4"), std::string::npos) << error.what();
    }
  }
}

TEST(Subset, IsAnErrorWithoutTheBase) {
  const TemporaryDirectory directory;
  write_example(tiny_example(), directory / "out");
  std::filesystem::remove(directory / "out" / "model-base.safetensors");
  EXPECT_THROW(Checkpoint(directory / "out"), IoError);
}

TEST(Shards, AreCutWhenTensorsAreMoreThanTheLimit) {
  const TemporaryDirectory directory;
  const Example example = make_example({8, CellGroups::kOne, 0}, {2, 3, 4}, odd_modules(), 5);
  write_example(example, directory / "out", {.shard_bytes = 100});
  const Checkpoint checkpoint(directory / "out");
  for (const auto& [name, tensor] : example.tensors) expect_same_tensor(checkpoint, name, tensor);
  EXPECT_EQ(verify_checkpoint(directory / "out").problems, std::vector<std::string>{});

  const auto names = file_names(checkpoint);
  EXPECT_TRUE(names.contains("model-base-00001-of-00002.safetensors"));
  EXPECT_TRUE(names.contains("model-4bit-00001-of-00006.safetensors"));
  EXPECT_FALSE(names.contains("model-base.safetensors"));
  for (const auto& path : checkpoint.files()) {
    const std::uint64_t data = std::filesystem::file_size(path) - header_bytes(path);
    if (data <= 100) continue;
    // Only a tensor that is larger by itself.
    const std::string index = read_file(directory / "out" / "model.safetensors.index.json");
    const std::string name = "\"" + path.filename().string() + "\"";
    EXPECT_EQ(index.find(name), index.rfind(name)) << path;
  }
}

TEST(Shards, OfAHigherPrecisionMayBeAbsent) {
  const TemporaryDirectory directory;
  const Example example = make_example({8, CellGroups::kOne, 0}, {2, 3, 4}, odd_modules(), 5);
  write_example(example, directory / "out", {.shard_bytes = 100});
  std::filesystem::remove(directory / "out" / "model-4bit-00002-of-00006.safetensors");
  const Checkpoint checkpoint(directory / "out", {2, 3});
  EXPECT_EQ(checkpoint.available_precisions(), (std::vector<int>{2, 3}));
  EXPECT_THROW(Checkpoint(directory / "out", {4}), PrecisionError);
}

TEST(Reader, FollowsSymbolicLinksAsTheHubCacheMakesThem) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  write_example(example, directory / "blobs");
  std::filesystem::create_directory(directory / "snapshot");
  for (const auto& item : read_directory(directory / "blobs")) {
    std::filesystem::create_symlink(directory / "blobs" / item.first,
                                    directory / "snapshot" / item.first);
  }
  const Checkpoint checkpoint(directory / "snapshot");
  for (const auto& [name, tensor] : example.tensors) expect_same_tensor(checkpoint, name, tensor);
  EXPECT_EQ(verify_checkpoint(directory / "snapshot").problems, std::vector<std::string>{});
}

TEST(Reader, ThatIsMovedKeepsItsData) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  write_example(example, directory / "out");
  Checkpoint first(directory / "out", {2});
  const std::byte* data = first.tensor("up.plane.0").data;
  const Checkpoint second(std::move(first));
  EXPECT_EQ(second.tensor("up.plane.0").data, data);
  expect_same_tensor(second, "up.plane.0", example.tensors.at("up.plane.0"));
}

}  // namespace
}  // namespace anyprec::testing
