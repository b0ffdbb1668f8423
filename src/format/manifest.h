#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "src/format/json.h"

namespace anyprec::format {

/// anyprec_manifest.json: what every byte of a checkpoint should be.
struct Manifest {
  struct Tensor {
    std::string file;
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t bytes = 0;
    std::string sha256;  ///< of the data
  };
  /// A safetensors file: its data is covered by the tensors, the rest by `header_sha256`.
  struct TensorFile {
    std::uint64_t bytes = 0;    ///< of the whole file
    std::string header_sha256;  ///< of everything before the data
  };
  /// Any other file.
  struct File {
    std::uint64_t bytes = 0;
    std::string sha256;
  };

  Json options = Json::object();  ///< what made the checkpoint
  std::map<std::string, Tensor> tensors;
  std::map<std::string, TensorFile> tensor_files;
  std::map<std::string, File> files;
};

/// The manifest's text, which holds its own hash.
std::string manifest_text(const Manifest& manifest);

/// Parses and checks the text's own hash. Throws FormatError.
Manifest parse_manifest(const std::string& text, const std::string& source);

}  // namespace anyprec::format
