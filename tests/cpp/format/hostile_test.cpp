// Files made to hurt a reader: each ends in a FormatError that names what is wrong.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "anyprec/error.h"
#include "src/format/json.h"
#include "src/format/layout.h"
#include "src/format/manifest.h"
#include "src/format/safetensors.h"
#include "tests/cpp/format/example.h"

namespace anyprec::testing {
namespace {

using Json = nlohmann::json;

template <typename Expected>
void expect_error(const std::function<void()>& action, const std::string& part) {
  try {
    action();
    ADD_FAILURE() << "no error, wanted one with: " << part;
  } catch (const Expected& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << "\"" << part << "\" is not in: " << error.what();
    EXPECT_LT(std::strlen(error.what()), 2000u);
    EXPECT_NO_THROW((void)Json(error.what()).dump()) << "the message is not UTF-8";
  }
}

/// Parses a copy that ends where its allocation does, so that a sanitizer sees any overrun.
format::SafetensorsHeader parse(const std::string& file) {
  const std::vector<std::byte> copy(reinterpret_cast<const std::byte*>(file.data()),
                                    reinterpret_cast<const std::byte*>(file.data()) + file.size());
  return format::parse_safetensors(copy, "f");
}

void expect_refused(const std::string& header, const std::string& data, const std::string& part) {
  SCOPED_TRACE(header.substr(0, 200));
  expect_error<FormatError>([&] { parse(safetensors_file(header, data)); }, part);
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  const auto header = parse(safetensors_file(
      R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},)"
      R"("__metadata__":{"format":"pt"},)"
      R"("empty":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[4,4]},)"
      R"("a":{"dtype":"BF16","shape":[],"data_offsets":[2,4]},)"
      R"("c":{"dtype":"F16","shape":[1,1],"data_offsets":[0,2]}})",
      "1234567"));
  ASSERT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors[0].name, "c");
  EXPECT_EQ(header.tensors[1].name, "a");
  EXPECT_EQ(header.tensors[2].name, "empty");
  EXPECT_EQ(header.tensors[3].name, "b");
  EXPECT_EQ(header.tensors[3].bytes(), 3u);
  EXPECT_EQ(parse(safetensors_file("{}", "")).tensors.size(), 0u);
}

TEST(SafetensorsHeader, RefusesALengthThatTheFileDoesNotHave) {
  for (std::size_t size = 0; size < 8; ++size) {
    expect_error<FormatError>([&] { parse(std::string(size, '\0')); }, "too short");
  }
  for (const std::uint64_t length :
       {std::uint64_t{9}, std::uint64_t{100'000'001}, std::uint64_t{1} << 32,
        std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{7}}) {
    std::string file = safetensors_file("{}", "");
    std::memcpy(file.data(), &length, 8);
    expect_error<FormatError>([&] { parse(file); }, std::to_string(length));
  }
}

TEST(SafetensorsHeader, RefusesTextThatIsNoObject) {
  expect_refused("", "", "does not begin with {");
  expect_refused("[]", "", "does not begin with {");
  expect_refused(" {}", "", "does not begin with {");
  expect_refused("{", "", "JSON");
  expect_refused("{}{}", "", "JSON");
  expect_refused(std::string("{}\0", 3), "", "NUL");
  expect_refused(std::string("{}\0{}", 5), "", "NUL");
  expect_refused("{\"\xff\xfe\":1}", "", "JSON");
  expect_refused("{\"a\":\"\xc3\"}", "", "JSON");
  expect_refused(R"({"a":NaN})", "", "JSON");
  expect_refused(R"({"a":1e999})", "", "JSON");
  expect_refused(R"({"a":1})", "", "expected an object");
  std::string odd = safetensors_file("{}", "");
  odd[0] = 7;
  expect_error<FormatError>([&] { parse(odd); }, "multiple of 8");
}

TEST(SafetensorsHeader, RefusesDeepNesting) {
  for (const std::size_t depth : {65u, 1000u, 1000000u}) {
    expect_refused("{\"a\":" + std::string(depth, '['), "", "nested deeper");
    std::string objects;
    for (std::size_t i = 0; i < depth; ++i) objects += "{\"a\":";
    expect_refused(objects, "", "nested deeper");
  }
}

TEST(SafetensorsHeader, RefusesAKeyThatAppearsTwice) {
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                 R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                 "1", "\"a\" appears twice");
  expect_refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "1",
                 "\"dtype\" appears twice");
  // The same key in different objects is no repetition.
  EXPECT_NO_THROW(
      parse(safetensors_file(R"({"dtype":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("shape":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                             "12")));
}

TEST(SafetensorsHeader, RefusesEntriesThatAreIncomplete) {
  const std::vector<std::pair<std::string, std::string>> entries = {
      {R"("shape":[1],"data_offsets":[0,1])", "dtype is missing"},
      {R"("dtype":"U8","data_offsets":[0,1])", "shape is missing"},
      {R"("dtype":"U8","shape":[1])", "data_offsets is missing"},
      {R"("dtype":8,"shape":[1],"data_offsets":[0,1])", "dtype: 8"},
      {R"("dtype":"F4","shape":[2],"data_offsets":[0,1])", "\"F4\""},
      {R"("dtype":"u8","shape":[1],"data_offsets":[0,1])", "\"u8\""},
      {R"("dtype":"U8","shape":1,"data_offsets":[0,1])", "shape: 1"},
      {R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])", "shape"},
      {R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])", "shape"},
      {R"("dtype":"U8","shape":["1"],"data_offsets":[0,1])", "shape"},
      {R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])", "shape"},
      {R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1])", "shape"},
      {R"("dtype":"U8","shape":[1],"data_offsets":[0])", "data_offsets: 1 values"},
      {R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])", "data_offsets: 3 values"},
      {R"("dtype":"U8","shape":[1],"data_offsets":[0.0,1])", "data_offsets"},
      {R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1)", "keys beyond"}};
  for (const auto& [entry, part] : entries) expect_refused("{\"a\":{" + entry + "}}", "1", part);
  expect_refused(R"({"__metadata__":{"a":1}})", "", "__metadata__");
  expect_refused(R"({"__metadata__":[]})", "", "__metadata__");
}

TEST(SafetensorsHeader, RefusesSizesThatOverflow) {
  for (const char* shape :
       {"[4294967296,4294967296]", "[4611686018427387904,4]", "[9223372036854775807,2]",
        "[4294967296,4294967296,0]", "[9223372036854775807]"}) {
    expect_refused(
        std::string(R"({"a":{"dtype":"F16","shape":)") + shape + R"(,"data_offsets":[0,0]}})", "",
        "2^63");
  }
}

TEST(SafetensorsHeader, RefusesOffsetsThatDoNotTileTheData) {
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}";
  };
  EXPECT_NO_THROW(parse(safetensors_file(two("[4,8]", "[0,4]"), "12345678")));
  expect_refused(two("[0,4]", "[3,7]"), "1234567", "begins at byte 3");    // overlap
  expect_refused(two("[0,4]", "[0,4]"), "1234", "begins at byte 0");       // the same bytes
  expect_refused(two("[0,4]", "[5,9]"), "123456789", "begins at byte 5");  // hole
  expect_refused(two("[1,5]", "[5,9]"), "123456789", "begins at byte 1");  // hole in front
  expect_refused(two("[0,4]", "[4,8]"), "123456789", "9 bytes of data");   // bytes behind
  expect_refused(two("[0,4]", "[4,8]"), "1234567", "7 bytes of data");     // cut
  expect_refused(two("[0,4]", "[8,4]"), "12345678", "data_offsets");       // backwards
  expect_refused(two("[0,4]", "[4,9]"), "123456789", "data_offsets");      // not its size
  expect_refused(two("[0,4]", "[18446744073709551612,18446744073709551616]"), "1234",
                 "data_offsets");
  expect_refused(two("[0,4]", "[18446744073709551612,0]"), "1234", "data_offsets");
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                 R"("b":{"dtype":"F16","shape":[1],"data_offsets":[1,3]}})",
                 "123", "multiple of 2");  // not aligned
}

TEST(SafetensorsHeader, QuotesHostileNamesSafely) {
  const std::string name = std::string(5000, 'x') + "\\n\\u0000";
  expect_refused("{\"" + name + R"(":{"dtype":"U9","shape":[],"data_offsets":[0,1]}})", "1", "U9");
  expect_refused(R"({"a\nb\"":{"dtype":"U9","shape":[],"data_offsets":[0,1]}})", "1",
                 R"("a\x0ab\x22")");
}

TEST(SafetensorsHeader, CutsHostileShapesInMessages) {
  std::string ones = "1";
  for (int i = 0; i < 5000; ++i) ones += ",1";
  expect_refused(R"({"a":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,2]}})", "12",
                 "1, ...]");
  const QuantizedModule module{"up", 3, 5};
  const format::ExpectedTensor expected{
      format::ExpectedTensor::Kind::kPlane, 0, &module, "U8", {3, 1}, 3, 2};
  expect_error<FormatError>(
      [&] { format::Layout::check("a", expected, "U8", std::vector<std::int64_t>(5000, 1), "f"); },
      "1, ...]");
}

/// One checkpoint whose JSON files a test may edit.
class HostileJson : public ::testing::Test {
 protected:
  void SetUp() override { write_example(tiny_example(), directory_ / "out"); }

  /// Expects a FormatError with `part` from opening after `edit` of the file.
  void expect_refused(const std::string& file, const std::function<void(Json&)>& edit,
                      const std::string& part) {
    const auto path = directory_ / "out" / file;
    const std::string original = read_file(path);
    Json json = Json::parse(original);
    edit(json);
    write_file(path, json.dump());
    SCOPED_TRACE(part);
    expect_error<FormatError>([&] { Checkpoint opened(directory_ / "out"); }, part);
    EXPECT_FALSE(verify_checkpoint(directory_ / "out").problems.empty());
    write_file(path, original);
  }

  void expect_config_refused(const std::string& pointer, const Json& value,
                             const std::string& part) {
    expect_refused(
        "config.json",
        [&](Json& json) { json[Json::json_pointer("/quantization_config" + pointer)] = value; },
        part);
  }

  std::filesystem::path out() const { return directory_ / "out"; }

  TemporaryDirectory directory_;
};

TEST_F(HostileJson, ConfigWithoutAKey) {
  for (const char* key : {"quant_method", "format_version", "codebook", "precisions",
                          "seed_precision", "modules", "calibration", "producer"}) {
    expect_refused(
        "config.json", [&](Json& json) { json["quantization_config"].erase(key); },
        std::string("quantization_config.") + key + " is missing");
  }
  for (const char* key : {"lut_bits", "cell_groups", "group_size"}) {
    expect_refused(
        "config.json", [&](Json& json) { json["quantization_config"]["codebook"].erase(key); },
        std::string("quantization_config.codebook.") + key + " is missing");
  }
  for (const char* key : {"name", "out_features", "in_features"}) {
    expect_refused(
        "config.json", [&](Json& json) { json["quantization_config"]["modules"][0].erase(key); },
        std::string("quantization_config.modules[0].") + key + " is missing");
  }
  expect_refused(
      "config.json", [](Json& json) { json.erase("quantization_config"); },
      "quantization_config is missing");
  expect_refused("config.json", [](Json& json) { json = Json::array(); }, "expected an object");
}

TEST_F(HostileJson, ConfigWithAWrongValue) {
  expect_config_refused("/quant_method", "gptq", "\"gptq\", expected \"anyprec\"");
  expect_config_refused("/format_version", 2, "format_version: 2");
  expect_config_refused("/format_version", 1.0, "format_version: 1.0");
  expect_config_refused("/codebook", 3, "codebook: 3, expected an object");
  expect_config_refused("/codebook/lut_bits", 9, "lut_bits: 9");
  expect_config_refused("/codebook/lut_bits", -1, "lut_bits: -1");
  expect_config_refused("/codebook/cell_groups", "two", "\"two\"");
  expect_config_refused("/codebook/cell_groups", "qu", "codebook.cell_groups");
  expect_config_refused("/codebook/group_size", 33, "group_size");
  expect_config_refused("/codebook/group_size", 18446744073709551615u, "group_size");
  expect_config_refused("/precisions", 3, "precisions: 3, expected an array");
  for (const Json& list : {Json::array(), Json{2, 4}, Json{3, 2}, Json{2, 2}, Json{1, 2},
                           Json{8, 9}, Json{2.0, 3.0}, Json{"2"}, Json{-2}, Json{4294967298u}}) {
    expect_config_refused("/precisions", list, "quantization_config.precisions");
  }
  expect_config_refused("/seed_precision", 4, "seed_precision: 4");
  expect_config_refused("/modules", Json::array(), "modules");
  expect_config_refused("/modules", {"up"}, "modules[0]");
  expect_config_refused("/modules/0/name", "", "modules[0].name");
  expect_config_refused("/modules/0/out_features", 0, "modules[0].out_features: 0");
  expect_config_refused("/modules/0/in_features", std::int64_t{1} << 62, "modules[0].in_features");
  expect_config_refused("/modules/0/out_features", std::int64_t{1} << 40,
                        "config.json says F16 [1099511627776, 1, 1, 1]");
  expect_config_refused("/modules/0/out_features", "3", "modules[0].out_features: \"3\"");
  expect_config_refused("/calibration", 1, "calibration");
  expect_config_refused("/producer", 1, "producer");
  // Sizes that only overflow together.
  expect_refused(
      "config.json",
      [](Json& json) {
        Json& config = json["quantization_config"];
        config["codebook"] = {{"lut_bits", 8}, {"cell_groups", "one"}, {"group_size", 32}};
        config["modules"][0]["out_features"] = std::int64_t{1} << 40;
        config["modules"][0]["in_features"] = std::int64_t{1} << 40;
      },
      "2^63");
}

TEST_F(HostileJson, ConfigWhoseModulesCollide) {
  const Json module = {{"name", "up"}, {"out_features", 3}, {"in_features", 5}};
  expect_config_refused("/modules/1", module, "\"up\" appears twice");
}

TEST_F(HostileJson, ConfigOfAnotherShape) {
  expect_config_refused("/modules/0/out_features", 4, "config.json says");
  expect_config_refused("/modules/0/in_features", 9, "config.json says");
  expect_config_refused("/codebook/lut_bits", 2, "\"up.alpha.2\" is not one that config.json");
  expect_config_refused("/precisions/2", 4, "\"up.alpha.4\" is missing");
  expect_refused(
      "config.json",
      [](Json& json) {
        json["quantization_config"]["precisions"] = {2};
        json["quantization_config"]["seed_precision"] = 2;
      },
      "is not one that config.json");
}

TEST_F(HostileJson, IndexThatLeavesTheDirectory) {
  for (const char* file :
       {"../model-base.safetensors", "/etc/passwd", "x/model-base.safetensors", "", ".", "..",
        "model-base.safetensors/", "model-1bit.safetensors", "model-9bit.safetensors",
        "model-bit.safetensors", "model-base-1-of-2.safetensors",
        "model-base-00001-of-0000a.safetensors", "model-base-00001-of-00002.safetensors.bak",
        "model-base.safetensors\n", "model-base/00001-of-00002.safetensors"}) {
    expect_refused(
        "model.safetensors.index.json",
        [&](Json& json) { json["weight_map"]["model.norm.weight"] = file; }, "model.norm.weight");
  }
}

TEST_F(HostileJson, IndexThatDisagreesWithTheFiles) {
  const std::string index = "model.safetensors.index.json";
  expect_refused(
      index, [](Json& json) { json["weight_map"].erase("up.lut.3"); },
      "\"up.lut.3\" is missing; config.json");
  expect_refused(
      index, [](Json& json) { json["weight_map"].erase("model.norm.weight"); },
      "\"model.norm.weight\" is not in model.safetensors.index.json");
  expect_refused(
      index, [](Json& json) { json["weight_map"]["stranger"] = "model-base.safetensors"; },
      "\"stranger\" is missing");
  expect_refused(
      index, [](Json& json) { json["weight_map"]["up.lut.3"] = "model-base.safetensors"; },
      "expected model-3bit.safetensors");
  expect_refused(
      index, [](Json& json) { json["weight_map"]["up.weight"] = "model-base.safetensors"; },
      "\"up.weight\" is not one that config.json");
  expect_refused(index, [](Json& json) { json["weight_map"]["up.lut.3"] = 3; }, "no file name");
  expect_refused(index, [](Json& json) { json["weight_map"] = 3; }, "weight_map: 3");
  expect_refused(index, [](Json& json) { json.erase("weight_map"); }, "weight_map is missing");
  expect_refused(index, [](Json& json) { json.erase("metadata"); }, "metadata is missing");
  expect_refused(index, [](Json& json) { json["metadata"]["total_size"] = -1; }, "total_size");
}

TEST_F(HostileJson, FilesThatAreNoFiles) {
  for (const char* name : {"config.json", "model.safetensors.index.json", "model-base.safetensors",
                           "anyprec_manifest.json"}) {
    const std::string original = read_file(out() / name);
    const bool needed = std::string(name) != "anyprec_manifest.json";
    for (const auto& make : {std::function<void()>([&] { ::mkfifo((out() / name).c_str(), 0600); }),
                             {[&] { std::filesystem::create_directory(out() / name); }},
                             {[&] { std::filesystem::create_symlink("/dev/zero", out() / name); }},
                             {[&] { std::filesystem::create_symlink(name, out() / name); }}}) {
      std::filesystem::remove(out() / name);
      make();
      if (needed) {
        EXPECT_THROW(Checkpoint opened(out()), IoError) << name;
      }
      EXPECT_FALSE(verify_checkpoint(out()).problems.empty()) << name;
    }
    std::filesystem::remove(out() / name);
    write_file(out() / name, original);
  }
  EXPECT_EQ(verify_checkpoint(out()).problems, std::vector<std::string>{});
}

TEST_F(HostileJson, LargeTextIsRefusedUnread) {
  std::filesystem::resize_file(out() / "config.json", 100'000'001);  // sparse
  expect_error<FormatError>([&] { Checkpoint opened(out()); }, "100000001 bytes");
}

TEST_F(HostileJson, ADirectoryThatIsNotThere) {
  EXPECT_THROW(Checkpoint opened(directory_ / "nothing"), IoError);
  EXPECT_EQ(verify_checkpoint(directory_ / "nothing").problems.size(), 1u);
}

TEST(Json, AcceptsTheDeepestNestingAndNoMore) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_NO_THROW(format::parse_json(nested(64), "f"));
  EXPECT_THROW(format::parse_json(nested(65), "f"), FormatError);
}

TEST(FileNames, SayWhichPartAFileBelongsTo) {
  EXPECT_EQ(format::part_of_file("model-base.safetensors"), 0);
  EXPECT_EQ(format::part_of_file("model-7bit.safetensors"), 7);
  EXPECT_EQ(format::part_of_file("model-base-00001-of-00002.safetensors"), 0);
  EXPECT_EQ(format::part_of_file("model-3bit-00012-of-12345.safetensors"), 3);
  EXPECT_EQ(format::part_of_file(format::part_file_name(3, 12, 12345)), 3);
  EXPECT_EQ(format::part_of_file("model-3bit-00012-of-12345"), std::nullopt);
  EXPECT_EQ(format::part_of_file("model.safetensors"), std::nullopt);
}

}  // namespace
}  // namespace anyprec::testing
