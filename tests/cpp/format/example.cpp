#include "tests/cpp/format/example.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "anyprec/planes.h"

namespace anyprec::testing {
namespace {

using Json = nlohmann::json;

std::string config_text(const CheckpointConfig& config) {
  Json modules = Json::array();
  for (const QuantizedModule& module : config.modules) {
    modules.push_back({{"name", module.name},
                       {"out_features", module.out_features},
                       {"in_features", module.in_features}});
  }
  const Json json = {{"architectures", {"LlamaForCausalLM"}},
                     {"hidden_size", 64},
                     {"quantization_config",
                      {{"quant_method", "anyprec"},
                       {"format_version", 1},
                       {"codebook",
                        {{"lut_bits", config.codebook.lut_bits},
                         {"cell_groups", std::string(to_string(config.codebook.cell_groups))},
                         {"group_size", config.codebook.group_size}}},
                       {"precisions", config.precisions},
                       {"seed_precision", config.seed_precision},
                       {"modules", std::move(modules)},
                       {"calibration", {{"dataset", "none"}}},
                       {"a_key_of_tomorrow", 7},
                       {"producer", "anyprec 0.1.0"}}}};
  return json.dump(2) + "\n";
}

ExampleTensor random_tensor(const std::string& dtype, std::vector<std::int64_t> shape,
                            std::size_t element_bytes, std::mt19937& random) {
  std::size_t count = 1;
  for (const std::int64_t dimension : shape) count *= static_cast<std::size_t>(dimension);
  ExampleTensor tensor{dtype, std::move(shape), std::vector<std::byte>(count * element_bytes)};
  for (std::byte& byte : tensor.data) byte = static_cast<std::byte>(random());
  return tensor;
}

/// Random fp16 values without NaN and infinity: the exponent's top bit is zero.
ExampleTensor random_codebook(std::vector<std::int64_t> shape, std::mt19937& random) {
  ExampleTensor tensor = random_tensor("F16", std::move(shape), 2, random);
  for (std::size_t i = 1; i < tensor.data.size(); i += 2) tensor.data[i] &= std::byte{0xBF};
  return tensor;
}

void add_module(Example& example, const QuantizedModule& module, std::mt19937& random) {
  const CodebookForm& form = example.config.codebook;
  const int parent = example.config.precisions.back();
  const std::int64_t n = module.out_features;
  const std::int64_t row_bytes = plane_row_bytes(module.in_features);

  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * module.in_features));
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random() >> (32 - parent));
  const auto plane_bytes = static_cast<std::size_t>(n * row_bytes);
  std::vector<std::uint8_t> planes(plane_bytes * static_cast<std::size_t>(parent));
  codes_to_planes(codes.data(), n, module.in_features, parent, planes.data());
  for (int i = 0; i < parent; ++i) {
    ExampleTensor plane{"U8", {n, row_bytes}, std::vector<std::byte>(plane_bytes)};
    std::memcpy(plane.data.data(), planes.data() + static_cast<std::size_t>(i) * plane_bytes,
                plane_bytes);
    example.tensors[module.name + ".plane." + std::to_string(i)] = std::move(plane);
  }
  const std::int64_t groups = form.groups(module.in_features);
  for (const int b : example.config.precisions) {
    example.tensors[module.name + ".lut." + std::to_string(b)] =
        random_codebook({n, groups, form.lut_entries(b)}, random);
    if (b > form.lut_bits) {
      example.tensors[module.name + ".alpha." + std::to_string(b)] =
          random_codebook({n, groups, form.sign_planes(b), form.classes()}, random);
    }
  }
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "anyprec-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryDirectory::entries() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<QuantizedModule> odd_modules() {
  return {{"model.layers.0.self_attn.q_proj", 6, 40},
          {"model.layers.0.mlp.up_proj", 5, 101},
          {"model.layers.1.mlp.down_proj", 1, 64},
          {"model.layers.10.mlp.down_proj", 9, 1}};
}

Example make_example(const CodebookForm& form, std::vector<int> precisions,
                     std::vector<QuantizedModule> modules, std::uint32_t seed) {
  std::mt19937 random(seed);
  Example example;
  const int seed_precision = precisions[precisions.size() / 2];
  example.config = {1, form, std::move(precisions), seed_precision, std::move(modules)};
  example.config_json = config_text(example.config);
  for (const QuantizedModule& module : example.config.modules) add_module(example, module, random);
  example.tensors["model.embed_tokens.weight"] = random_tensor("BF16", {7, 5}, 2, random);
  example.tensors["model.norm.weight"] = random_tensor("F32", {5}, 4, random);
  example.tensors["model.rotary.steps"] = random_tensor("I64", {}, 8, random);
  example.tensors["model.empty"] = random_tensor("F32", {0, 4}, 4, random);
  example.tensors["model.mask"] = random_tensor("BOOL", {3}, 1, random);
  const QuantizedModule& first = example.config.modules.front();
  example.tensors[first.name + ".bias"] = random_tensor("F16", {first.out_features}, 2, random);
  example.files["tokenizer.json"] = "{\"seed\": " + std::to_string(seed) + "}";
  example.files["empty.txt"] = "";
  return example;
}

Example tiny_example(std::uint32_t seed) {
  Example example = make_example({1, CellGroups::kOne, 0}, {2, 3}, {{"up", 3, 5}}, seed);
  for (const char* name : {"model.rotary.steps", "model.empty", "model.mask", "up.bias"}) {
    example.tensors.erase(name);
  }
  example.files.erase("empty.txt");
  return example;
}

void add_everything(const Example& example, CheckpointWriter& writer, bool reversed) {
  std::vector<const std::pair<const std::string, ExampleTensor>*> order;
  for (const auto& item : example.tensors) order.push_back(&item);
  if (reversed) std::reverse(order.begin(), order.end());
  for (const auto* item : order) {
    writer.add(item->first, item->second.dtype, item->second.shape, item->second.data);
  }
  for (const auto& [name, content] : example.files) {
    writer.add_file(name, std::as_bytes(std::span(content)));
  }
}

void write_example(const Example& example, const std::filesystem::path& directory,
                   const WriteOptions& options) {
  CheckpointWriter writer(directory, example.config_json, R"({"seed": 3, "dataset": "c4"})",
                          options.overwrite, options.shard_bytes);
  add_everything(example, writer, options.reversed);
  writer.finish();
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::filesystem::path& path, const std::string& content) {
  // A new file: some file systems wait for the disk when an old one is truncated and rewritten.
  std::filesystem::remove(path);
  std::ofstream out(path, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

std::map<std::string, std::string> read_directory(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_file(entry.path());
  }
  return files;
}

std::string safetensors_file(std::string header, const std::string& data) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

}  // namespace anyprec::testing
