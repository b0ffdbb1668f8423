#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "anyprec/checkpoint.h"

namespace anyprec::testing {

/// A directory that is removed with everything in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  /// Names of what is in it, sorted.
  std::vector<std::string> entries() const;

 private:
  std::filesystem::path path_;
};

struct ExampleTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;
};

/// A small model with random contents: everything that a CheckpointWriter takes.
struct Example {
  CheckpointConfig config;
  std::string config_json;
  std::map<std::string, ExampleTensor> tensors;  ///< quantized and base
  std::map<std::string, std::string> files;
};

/// Modules of odd shapes: K that is no multiple of 8, of 32 or of a group; one row; one column.
std::vector<QuantizedModule> odd_modules();

Example make_example(const CodebookForm& form, std::vector<int> precisions,
                     std::vector<QuantizedModule> modules, std::uint32_t seed);
/// Two precisions and one 3 x 5 module: small enough to damage every byte of it.
Example tiny_example(std::uint32_t seed = 1);

/// What can be changed about how an example is written.
struct WriteOptions {
  bool overwrite = false;
  std::uint64_t shard_bytes = std::uint64_t{5} << 30;
  bool reversed = false;  ///< add tensors in the opposite order
};
/// Adds everything, and finishes.
void write_example(const Example& example, const std::filesystem::path& directory,
                   const WriteOptions& options = {});
void add_everything(const Example& example, CheckpointWriter& writer, bool reversed = false);

std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& content);

/// The data of every file, by name.
std::map<std::string, std::string> read_directory(const std::filesystem::path& directory);

/// A safetensors file: `header`, padded to 8 bytes, behind its length, and then `data`.
std::string safetensors_file(std::string header, const std::string& data);

}  // namespace anyprec::testing
