#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "anyprec/checkpoint.h"

namespace anyprec::format {

inline constexpr int kFormatVersion = 1;
inline constexpr const char* kConfigFile = "config.json";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";
inline constexpr const char* kManifestFile = "anyprec_manifest.json";

/// The part of a checkpoint that a file belongs to: one precision's, or (0) the base.
using Part = int;
inline constexpr Part kBasePart = 0;

/// Reads config.json's `quantization_config` (docs/format.md); keys it does not know are ignored.
/// Throws FormatError naming the key that is missing or wrong.
CheckpointConfig parse_config(const std::string& text, const std::string& source);

/// What the config says about one tensor of a quantized module.
struct ExpectedTensor {
  enum class Kind { kPlane, kLut, kAlpha };
  Kind kind;
  int index;  ///< the plane's number, or the codebook's precision
  const QuantizedModule* module;
  const char* dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes;
  Part part;

  /// Whether a reader of these precisions (rising) needs it.
  bool needed_by(const std::vector<int>& precisions) const;
};

/// Every tensor that a config asks for, by name: `P.plane.<i>`, `P.lut.<b>` and `P.alpha.<b>`.
class Layout {
 public:
  /// Throws FormatError where a size overflows or two modules' tensors share a name.
  Layout(CheckpointConfig config, const std::string& source);
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  const CheckpointConfig& config() const { return config_; }
  const std::map<std::string, ExpectedTensor>& tensors() const { return tensors_; }
  /// Null when the config does not ask for this tensor: it belongs to the base, unless reserved.
  const ExpectedTensor* find(const std::string& name) const;
  /// Whether a name that the config does not ask for is excluded from the base: a quantized
  /// module's `P.weight`, and its planes and codebooks of precisions that the config lacks.
  bool reserved(const std::string& name) const;
  /// Throws FormatError, naming `source`, where dtype or shape are not the config's.
  static void check(const std::string& name, const ExpectedTensor& expected,
                    const std::string& dtype, const std::vector<std::int64_t>& shape,
                    const std::string& source);

 private:
  void add(const std::string& name, ExpectedTensor tensor, const std::string& source);

  CheckpointConfig config_;
  std::map<std::string, ExpectedTensor> tensors_;
  std::map<std::string, const QuantizedModule*> modules_;
};

/// `model-base.safetensors`, `model-3bit-00001-of-00002.safetensors`: shard counts from 1; a part
/// in one file (shards = 1) has no shard in its name.
std::string part_file_name(Part part, std::int64_t shard, std::int64_t shards);
/// The part that a file of that name belongs to, or nothing when it has another form.
std::optional<Part> part_of_file(std::string_view file_name);

/// Whether a name is one plain component of a path: not empty, "." or "..", without slashes or
/// control characters.
bool is_plain_name(std::string_view name);

/// The index, validated: every tensor with its file, which is a name of the right part.
struct Index {
  std::uint64_t total_bytes = 0;
  std::map<std::string, std::string> files;  ///< tensor -> file name
};
Index read_index(const std::filesystem::path& directory, const Layout& layout);
/// As Hugging Face writes it: two spaces of indentation, sorted keys, ASCII.
std::string index_text(const Index& index);

}  // namespace anyprec::format
