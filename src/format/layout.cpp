#include "src/format/layout.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "anyprec/error.h"
#include "anyprec/planes.h"
#include "src/format/file.h"
#include "src/format/json.h"
#include "src/format/safetensors.h"

namespace anyprec::format {
namespace {

using Kind = ExpectedTensor::Kind;

/// The largest dimension that is accepted: far beyond any model, and no sum of two overflows.
constexpr std::int64_t kMaxDimension = std::int64_t{1} << 40;

CodebookForm parse_codebook(const Fields& fields) {
  CodebookForm form;
  form.lut_bits = static_cast<int>(fields.integer("lut_bits", 0, kMaxPrecision));
  const std::string& groups = fields.string("cell_groups");
  try {
    form.cell_groups = parse_cell_groups(groups);
  } catch (const InvalidArgument&) {
    fields.reject("cell_groups", shown(groups), "one of one, io, sym, qu, cell");
  }
  form.group_size = fields.integer("group_size", 0, kMaxDimension);
  return form;
}

std::vector<int> parse_precisions(const Fields& fields) {
  const std::string wanted = "a rising run of consecutive integers from 2 to 8";
  std::vector<int> precisions;
  for (const Json& item : fields.array("precisions")) {
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() < kMinPrecision ||
        item.get<std::uint64_t>() > kMaxPrecision) {
      fields.reject("precisions", "an item that is none of 2 to 8", wanted);
    }
    const int precision = item.get<int>();
    if (!precisions.empty() && precision != precisions.back() + 1) {
      fields.reject("precisions",
                    std::to_string(precision) + " after " + std::to_string(precisions.back()),
                    wanted);
    }
    precisions.push_back(precision);
  }
  if (precisions.empty()) fields.reject("precisions", "[]", wanted);
  return precisions;
}

std::vector<QuantizedModule> parse_modules(const Fields& fields, const std::string& source) {
  std::vector<QuantizedModule> modules;
  const Json& list = fields.array("modules");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Fields module(list[i], source, "quantization_config.modules[" + std::to_string(i) + "]");
    QuantizedModule parsed;
    parsed.name = module.string("name");
    if (parsed.name.empty()) module.reject("name", "\"\"", "a module's name");
    parsed.out_features = module.integer("out_features", 1, kMaxDimension);
    parsed.in_features = module.integer("in_features", 1, kMaxDimension);
    modules.push_back(std::move(parsed));
  }
  if (modules.empty()) fields.reject("modules", "[]", "at least one module");
  return modules;
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

CheckpointConfig parse_config(const std::string& text, const std::string& source) {
  const Json json = parse_json(text, source);
  const Fields quantization = Fields(json, source).object("quantization_config");
  const std::string& method = quantization.string("quant_method");
  if (method != "anyprec") quantization.reject("quant_method", shown(method), "\"anyprec\"");

  CheckpointConfig config;
  config.format_version =
      static_cast<int>(quantization.integer("format_version", kFormatVersion, kFormatVersion));
  config.codebook = parse_codebook(quantization.object("codebook"));
  try {
    config.codebook.validate();
  } catch (const InvalidArgument& error) {
    throw FormatError(source + ": quantization_config.codebook." + error.what());
  }
  config.precisions = parse_precisions(quantization);
  config.seed_precision = static_cast<int>(
      quantization.integer("seed_precision", config.precisions.front(), config.precisions.back()));
  config.modules = parse_modules(quantization, source);
  quantization.object("calibration");
  quantization.string("producer");
  return config;
}

bool ExpectedTensor::needed_by(const std::vector<int>& precisions) const {
  if (kind == Kind::kPlane) return index < precisions.back();
  return std::find(precisions.begin(), precisions.end(), index) != precisions.end();
}

Layout::Layout(CheckpointConfig config, const std::string& source) : config_(std::move(config)) {
  const CodebookForm& form = config_.codebook;
  const int lowest = config_.precisions.front();
  for (const QuantizedModule& module : config_.modules) {
    if (!modules_.emplace(module.name, &module).second) {
      throw FormatError(source + ": quantization_config.modules: " + shown(module.name) +
                        " appears twice");
    }
    const std::int64_t n = module.out_features;
    const std::int64_t groups = form.groups(module.in_features);
    const std::int64_t row_bytes = plane_row_bytes(module.in_features);
    for (int plane = 0; plane < config_.precisions.back(); ++plane) {
      add(module.name + ".plane." + std::to_string(plane),
          {Kind::kPlane, plane, &module, "U8", {n, row_bytes}, 0, std::max(lowest, plane + 1)},
          source);
    }
    for (const int b : config_.precisions) {
      add(module.name + ".lut." + std::to_string(b),
          {Kind::kLut, b, &module, "F16", {n, groups, form.lut_entries(b)}, 0, b}, source);
      if (form.sign_planes(b) == 0) continue;
      add(module.name + ".alpha." + std::to_string(b),
          {Kind::kAlpha, b, &module, "F16", {n, groups, form.sign_planes(b), form.classes()}, 0, b},
          source);
    }
  }
}

void Layout::add(const std::string& name, ExpectedTensor tensor, const std::string& source) {
  const auto bytes = tensor_bytes(*dtype_bytes(tensor.dtype), tensor.shape);
  if (!bytes) {
    throw FormatError(source + ": tensor " + shown(name) + " of shape " +
                      shown_shape(tensor.shape) + " would have more than 2^63 bytes");
  }
  tensor.bytes = *bytes;
  if (!tensors_.emplace(name, std::move(tensor)).second) {
    throw FormatError(source + ": quantization_config.modules: two modules have a tensor " +
                      shown(name));
  }
}

const ExpectedTensor* Layout::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

bool Layout::reserved(const std::string& name) const {
  const std::size_t last = name.rfind('.');
  if (last == std::string::npos) return false;
  const std::string head = name.substr(0, last);
  if (std::string_view(name).substr(last) == ".weight") return modules_.contains(head);
  const std::size_t kind = head.rfind('.');
  if (kind == std::string::npos || !all_digits(std::string_view(name).substr(last + 1))) {
    return false;
  }
  const std::string_view word = std::string_view(head).substr(kind + 1);
  return (word == "plane" || word == "lut" || word == "alpha") &&
         modules_.contains(head.substr(0, kind));
}

void Layout::check(const std::string& name, const ExpectedTensor& expected,
                   const std::string& dtype, const std::vector<std::int64_t>& shape,
                   const std::string& source) {
  if (dtype == expected.dtype && shape == expected.shape) return;
  throw FormatError(source + ": tensor " + shown(name) + ": " + dtype + " " + shown_shape(shape) +
                    ", config.json says " + expected.dtype + " " + shown_shape(expected.shape));
}

std::string part_file_name(Part part, std::int64_t shard, std::int64_t shards) {
  std::string name = "model-" + (part == kBasePart ? "base" : std::to_string(part) + "bit");
  if (shards > 1) {
    std::array<char, 64> suffix;
    std::snprintf(suffix.data(), suffix.size(), "-%05lld-of-%05lld", static_cast<long long>(shard),
                  static_cast<long long>(shards));
    name += suffix.data();
  }
  return name + ".safetensors";
}

std::optional<Part> part_of_file(std::string_view file_name) {
  for (Part part = kBasePart; part <= kMaxPrecision; ++part) {
    if (part != kBasePart && part < kMinPrecision) continue;
    const std::string whole = part_file_name(part, 1, 1);
    if (file_name == whole) return part;
    const std::string_view head = std::string_view(whole).substr(0, whole.rfind('.'));
    constexpr std::string_view kShard = "-00001-of-00002.safetensors";
    if (file_name.size() != head.size() + kShard.size() || !file_name.starts_with(head)) continue;
    const std::string_view tail = file_name.substr(head.size());
    if (tail[0] == '-' && all_digits(tail.substr(1, 5)) && tail.substr(6, 4) == "-of-" &&
        all_digits(tail.substr(10, 5)) && tail.substr(15) == ".safetensors") {
      return part;
    }
  }
  return std::nullopt;
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), [](char c) {
           return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
         });
}

Index read_index(const std::filesystem::path& directory, const Layout& layout) {
  const std::filesystem::path path = directory / kIndexFile;
  const std::string source = path.string();
  const Json json = parse_json(read_text(path), source);
  const Fields root(json, source);
  Index index;
  index.total_bytes = static_cast<std::uint64_t>(root.object("metadata").integer("total_size", 0));
  root.object("weight_map");
  for (const auto& item : root.at("weight_map").items()) {
    const std::string& name = item.key();
    if (!item.value().is_string()) {
      throw FormatError(source + ": weight_map: tensor " + shown(name) + " has no file name");
    }
    const auto& file = item.value().get_ref<const std::string&>();
    const auto part = part_of_file(file);
    if (!part) {
      throw FormatError(source + ": weight_map: tensor " + shown(name) + " in file " + shown(file) +
                        ", expected model-base*.safetensors or model-<b>bit*.safetensors");
    }
    const ExpectedTensor* expected = layout.find(name);
    if (expected == nullptr && layout.reserved(name)) {
      throw FormatError(source + ": weight_map: tensor " + shown(name) +
                        " is not one that config.json's quantization_config asks for");
    }
    const Part wanted = expected == nullptr ? kBasePart : expected->part;
    if (*part != wanted) {
      throw FormatError(source + ": weight_map: tensor " + shown(name) + " in file " + shown(file) +
                        ", expected " + part_file_name(wanted, 1, 1) + " or a shard of it");
    }
    index.files.emplace(name, file);
  }
  for (const auto& [name, expected] : layout.tensors()) {
    if (!index.files.contains(name)) {
      throw FormatError(source + ": weight_map: tensor " + shown(name) +
                        " is missing; config.json asks for it");
    }
  }
  return index;
}

std::string index_text(const Index& index) {
  const Json json = {{"metadata", {{"total_size", index.total_bytes}}},
                     {"weight_map", index.files}};
  return json.dump(2, ' ', true) + "\n";
}

}  // namespace anyprec::format
