// Whatever happens to the bytes of a checkpoint: opening it ends in a typed error or in tensors
// that are in bounds, and verification is never silent.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "anyprec/error.h"
#include "src/format/manifest.h"
#include "src/format/sha256.h"
#include "tests/cpp/format/example.h"

namespace anyprec::testing {
namespace {

using Json = nlohmann::json;

/// Opens and reads every byte of every tensor; whether that went well. Anything but an
/// anyprec::Error fails the test that calls it.
bool opens(const std::filesystem::path& directory, std::vector<int> precisions = {}) {
  try {
    const Checkpoint checkpoint(directory, std::move(precisions));
    format::Sha256 hash;  // reads every byte
    for (const std::string& name : checkpoint.tensor_names()) {
      const TensorView tensor = checkpoint.tensor(name);
      hash.update({tensor.data, tensor.bytes});
    }
    EXPECT_EQ(hash.hex().size(), 64u);
    return true;
  } catch (const Error&) {
    return false;
  }
}

class Corruption : public ::testing::Test {
 protected:
  void SetUp() override {
    write_example(tiny_example(), out());
    files_ = read_directory(out());
    ASSERT_TRUE(opens(out()));
    ASSERT_EQ(verify_checkpoint(out()).problems, std::vector<std::string>{});
  }

  /// Replaces a file, tries everything, and puts the file back. Returns whether it opened.
  bool expect_noticed(const std::string& file, const std::string& content) {
    write_file(out() / file, content);
    const bool opened = opens(out());
    EXPECT_FALSE(verify_checkpoint(out()).problems.empty());
    write_file(out() / file, files_.at(file));
    return opened;
  }

  std::filesystem::path out() const { return directory_ / "out"; }

  TemporaryDirectory directory_;
  std::map<std::string, std::string> files_;
};

TEST_F(Corruption, TruncationOfAnyFileIsNoticed) {
  for (const auto& [name, content] : files_) {
    const std::size_t step = name.ends_with(".safetensors") ? 1 : 7;
    for (std::size_t cut = 1; cut <= content.size(); cut += step) {
      const std::size_t size = content.size() - cut;
      SCOPED_TRACE(name + " cut to " + std::to_string(size));
      const bool opened = expect_noticed(name, content.substr(0, size));
      EXPECT_FALSE(opened && name.ends_with(".safetensors"));
      if (HasFailure()) return;
    }
  }
}

TEST_F(Corruption, ABitFlippedInAnyByteOfAnyFileIsNoticed) {
  std::mt19937 random(1);
  for (const auto& [name, content] : files_) {
    for (std::size_t i = 0; i < content.size(); ++i) {
      std::string damaged = content;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << (random() % 8)));
      SCOPED_TRACE(name + ", byte " + std::to_string(i));
      expect_noticed(name, damaged);
      if (HasFailure()) return;
    }
  }
}

TEST_F(Corruption, AnAbsentFileIsNoticed) {
  for (const auto& [name, content] : files_) {
    std::filesystem::remove(out() / name);
    const VerifyReport report = verify_checkpoint(out());
    ASSERT_FALSE(report.problems.empty()) << name;
    EXPECT_NE(report.problems[0].find(name), std::string::npos) << report.problems[0];
    write_file(out() / name, content);
  }
}

TEST_F(Corruption, AFileOfAnotherCheckpointIsNoticed) {
  write_example(tiny_example(2), directory_ / "other");
  for (const auto& [name, content] : read_directory(directory_ / "other")) {
    if (content == files_.at(name)) continue;            // the config and the index are the same
    EXPECT_TRUE(expect_noticed(name, content)) << name;  // well-formed: only the hashes can tell
  }
}

TEST_F(Corruption, ATensorFileThatNobodyKnowsIsReported) {
  write_file(out() / "README.md", "hello");
  EXPECT_TRUE(verify_checkpoint(out()).problems.empty());
  write_file(out() / "model-4bit.safetensors", files_.at("model-3bit.safetensors"));
  const VerifyReport report = verify_checkpoint(out());
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_NE(report.problems[0].find("model-4bit.safetensors: not in the manifest"),
            std::string::npos);
}

TEST_F(Corruption, AProblemNamesFileAndTensorAndCountsTheRest) {
  std::string damaged = files_.at("model-3bit.safetensors");
  damaged.back() = static_cast<char>(damaged.back() ^ 1);  // planes come last
  write_file(out() / "model-3bit.safetensors", damaged);
  const VerifyReport report = verify_checkpoint(out());
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_NE(report.problems[0].find("model-3bit.safetensors: tensor \"up.plane.2\": SHA-256"),
            std::string::npos)
      << report.problems[0];
  EXPECT_EQ(report.tensors, 9);
}

/// Damages one tensor's data and makes the manifest agree with it.
void forge(const std::filesystem::path& out, const std::string& file, const std::string& tensor,
           std::size_t byte, char value) {
  std::string data = read_file(out / file);
  std::uint64_t length = 0;
  std::memcpy(&length, data.data(), 8);
  const auto offsets = Json::parse(data.substr(8, length))[tensor]["data_offsets"];
  const std::size_t begin = 8 + length + offsets[0].get<std::size_t>();
  data[begin + byte] = value;
  write_file(out / file, data);
  const auto path = out / "anyprec_manifest.json";
  format::Manifest manifest = format::parse_manifest(read_file(path), "manifest");
  manifest.tensors.at(tensor).sha256 = format::sha256_hex(
      data.substr(begin, offsets[1].get<std::size_t>() - offsets[0].get<std::size_t>()));
  write_file(path, format::manifest_text(manifest));
}

TEST_F(Corruption, ContentThatNoWriterMakesIsReportedThoughTheHashesAgree) {
  forge(out(), "model-3bit.safetensors", "up.plane.2", 2, '\x7f');
  forge(out(), "model-2bit.safetensors", "up.lut.2", 3, '\x7c');
  const VerifyReport report = verify_checkpoint(out());
  ASSERT_EQ(report.problems.size(), 2u);
  EXPECT_NE(report.problems[0].find("\"up.lut.2\": element 1 is NaN"), std::string::npos);
  EXPECT_NE(report.problems[1].find("\"up.plane.2\": row 2 has padding"), std::string::npos);
}

TEST_F(Corruption, AManifestThatListsLessIsReported) {
  format::Manifest manifest =
      format::parse_manifest(files_.at("anyprec_manifest.json"), "manifest");
  const auto expect_reported = [&](format::Manifest forged) {
    write_file(out() / "anyprec_manifest.json", format::manifest_text(forged));
    EXPECT_FALSE(verify_checkpoint(out()).problems.empty());
  };
  for (const auto& item : manifest.tensors) {
    format::Manifest forged = manifest;
    forged.tensors.erase(item.first);
    expect_reported(forged);
  }
  for (const auto& item : manifest.tensor_files) {
    format::Manifest forged = manifest;
    forged.tensor_files.erase(item.first);
    expect_reported(forged);
  }
  for (const char* name : {"config.json", "model.safetensors.index.json"}) {
    format::Manifest forged = manifest;
    forged.files.erase(name);
    expect_reported(forged);
  }
  format::Manifest forged = manifest;
  forged.files["../out/config.json"] = forged.files["config.json"];
  expect_reported(forged);
  write_file(out() / "anyprec_manifest.json", format::manifest_text(manifest));
  EXPECT_TRUE(verify_checkpoint(out()).problems.empty());
}

/// One random edit of a file's bytes: overwrite, insert, delete, repeat, move, or cut.
std::string mutated(std::string text, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : random() % n; };
  const std::size_t at = below(text.size());
  const std::size_t length = std::min<std::size_t>(1 + below(16), text.size() - at);
  switch (random() % 6) {
    case 0:
      for (std::size_t i = 0; i < length; ++i) text[at + i] = static_cast<char>(random());
      break;
    case 1:
      text.insert(at, length, static_cast<char>(random()));
      break;
    case 2:
      text.erase(at, length);
      break;
    case 3:
      text.insert(below(text.size()), text.substr(at, length));
      break;
    case 4:
      std::rotate(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), text.end());
      break;
    default:
      text.resize(at);
  }
  return text;
}

TEST_F(Corruption, RandomEditsAreNoticed) {
  std::mt19937 random(2);
  std::vector<std::string> names;
  for (const auto& item : files_) names.push_back(item.first);
  for (int i = 0; i < 4000; ++i) {
    const std::string& name = names[random() % names.size()];
    const std::string damaged = mutated(files_.at(name), random);
    if (damaged == files_.at(name)) continue;
    SCOPED_TRACE(name + ", edit " + std::to_string(i));
    expect_noticed(name, damaged);
    if (HasFailure()) return;
  }
}

/// Every value inside `json`, itself included.
void collect(Json& json, std::vector<Json*>& values) {
  values.push_back(&json);
  if (!json.is_structured()) return;
  for (Json& item : json) collect(item, values);
}

/// Well-formed JSON with one value replaced by an extreme one, removed, or swapped with another.
Json edited(Json json, std::mt19937& random) {
  static const std::vector<Json> kExtremes = {nullptr,
                                              true,
                                              -1,
                                              0,
                                              1,
                                              2,
                                              3,
                                              7,
                                              8,
                                              255,
                                              std::int64_t{1} << 31,
                                              std::int64_t{1} << 32,
                                              std::int64_t{1} << 40,
                                              std::int64_t{1} << 62,
                                              INT64_MAX,
                                              INT64_MIN,
                                              UINT64_MAX,
                                              UINT64_MAX - 7,
                                              0.5,
                                              1e300,
                                              "",
                                              "U8",
                                              "F16",
                                              "I64",
                                              "model-base.safetensors",
                                              "model-2bit.safetensors",
                                              "../x",
                                              Json::array(),
                                              Json::object(),
                                              Json{0, 0},
                                              Json{0, 6}};
  std::vector<Json*> values;
  collect(json, values);
  Json& target = *values[random() % values.size()];
  switch (random() % 4) {
    case 0:
      if (target.is_object() && !target.empty()) {
        target.erase(std::next(target.begin(), static_cast<int>(random() % target.size())).key());
      } else if (target.is_array() && !target.empty()) {
        target.erase(random() % target.size());
      } else {
        target = kExtremes[random() % kExtremes.size()];
      }
      break;
    case 1: {
      const Json copy = *values[random() % values.size()];
      target = copy;
      break;
    }
    default:
      target = kExtremes[random() % kExtremes.size()];
  }
  return json;
}

TEST_F(Corruption, WellFormedNonsenseIsNoticed) {
  std::mt19937 random(3);
  int refused = 0;
  int rounds = 0;
  for (int i = 0; i < 4000; ++i) {
    auto it = files_.begin();
    std::advance(it, random() % files_.size());
    const auto& [name, content] = *it;
    std::string damaged;
    if (name.ends_with(".json")) {
      const Json json = Json::parse(content);
      Json changed = edited(json, random);
      if (changed == json) continue;
      damaged = changed.dump();
    } else {
      std::uint64_t length = 0;
      std::memcpy(&length, content.data(), 8);
      const Json json = Json::parse(content.substr(8, length));
      Json changed = edited(json, random);
      if (changed == json) continue;
      damaged = safetensors_file(changed.dump(), content.substr(8 + length));
    }
    SCOPED_TRACE(name + ", edit " + std::to_string(i) + ": " + damaged.substr(0, 3000));
    ++rounds;
    refused += !expect_noticed(name, damaged);
    if (HasFailure()) return;
  }
  EXPECT_GT(rounds, 2000);
  EXPECT_GT(refused, rounds / 4);  // the edits do reach the reader's checks
}

}  // namespace
}  // namespace anyprec::testing
