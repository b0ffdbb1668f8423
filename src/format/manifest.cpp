#include "src/format/manifest.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "anyprec/error.h"
#include "src/format/layout.h"
#include "src/format/sha256.h"

namespace anyprec::format {
namespace {

constexpr std::size_t kDigestDigits = 64;

/// SHA-256 of the text with the 64 digits at `position` replaced by zeros.
std::string self_hash(std::string text, std::size_t position) {
  text.replace(position, kDigestDigits, kDigestDigits, '0');
  return sha256_hex(text);
}

std::uint64_t parse_bytes(const Fields& fields) {
  return static_cast<std::uint64_t>(fields.integer("bytes", 0));
}

std::string parse_file_name(const std::string& name, const std::string& source) {
  if (!is_plain_name(name)) throw FormatError(source + ": " + shown(name) + " is no file name");
  return name;
}

void check_self_hash(const std::string& text, const Fields& root, const std::string& source) {
  const std::string& stated = root.string("manifest_sha256");
  const std::size_t position = text.find(stated);
  if (stated.size() != kDigestDigits || position == std::string::npos ||
      text.find(stated, position + 1) != std::string::npos || self_hash(text, position) != stated) {
    throw FormatError(source + ": does not match its own manifest_sha256 " + shown(stated));
  }
}

}  // namespace

std::string manifest_text(const Manifest& manifest) {
  Json tensors = Json::object();
  for (const auto& [name, tensor] : manifest.tensors) {
    tensors[name] = {{"file", tensor.file},
                     {"dtype", tensor.dtype},
                     {"shape", tensor.shape},
                     {"bytes", tensor.bytes},
                     {"sha256", tensor.sha256}};
  }
  Json tensor_files = Json::object();
  for (const auto& [name, file] : manifest.tensor_files) {
    tensor_files[name] = {{"bytes", file.bytes}, {"header_sha256", file.header_sha256}};
  }
  Json files = Json::object();
  for (const auto& [name, file] : manifest.files) {
    files[name] = {{"bytes", file.bytes}, {"sha256", file.sha256}};
  }
  const std::string key = "\n  \"manifest_sha256\": \"";  // two spaces: only at the top level
  const Json json = {{"format_version", kFormatVersion},
                     {"manifest_sha256", std::string(kDigestDigits, '0')},
                     {"options", manifest.options},
                     {"tensors", std::move(tensors)},
                     {"tensor_files", std::move(tensor_files)},
                     {"files", std::move(files)}};
  std::string text = json.dump(2, ' ', true) + "\n";
  const std::size_t position = text.find(key) + key.size();
  return text.replace(position, kDigestDigits, self_hash(text, position));
}

Manifest parse_manifest(const std::string& text, const std::string& source) {
  const Json json = parse_json(text, source);
  const Fields root(json, source);
  check_self_hash(text, root, source);
  root.integer("format_version", kFormatVersion, kFormatVersion);

  Manifest manifest;
  root.object("options");
  manifest.options = root.at("options");
  root.object("tensors");
  for (const auto& item : root.at("tensors").items()) {
    const Fields fields(item.value(), source, "tensors." + shown(item.key()));
    Manifest::Tensor tensor;
    tensor.file = parse_file_name(fields.string("file"), source);
    tensor.dtype = fields.string("dtype");
    for (const Json& dimension : fields.array("shape")) {
      if (!dimension.is_number_unsigned() ||
          dimension.get<std::uint64_t>() >
              std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
        fields.reject("shape", "a dimension that is no unsigned integer", "such integers");
      }
      tensor.shape.push_back(dimension.get<std::int64_t>());
    }
    tensor.bytes = parse_bytes(fields);
    tensor.sha256 = fields.string("sha256");
    manifest.tensors.emplace(item.key(), std::move(tensor));
  }
  root.object("tensor_files");
  for (const auto& item : root.at("tensor_files").items()) {
    const Fields fields(item.value(), source, "tensor_files." + shown(item.key()));
    manifest.tensor_files.emplace(
        parse_file_name(item.key(), source),
        Manifest::TensorFile{parse_bytes(fields), fields.string("header_sha256")});
  }
  root.object("files");
  for (const auto& item : root.at("files").items()) {
    const Fields fields(item.value(), source, "files." + shown(item.key()));
    manifest.files.emplace(parse_file_name(item.key(), source),
                           Manifest::File{parse_bytes(fields), fields.string("sha256")});
  }
  return manifest;
}

}  // namespace anyprec::format
