#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "anyprec/codebook.h"

namespace anyprec {

/// One tensor of a checkpoint, borrowed from the mapped file.
struct TensorView {
  std::string name;
  std::string dtype;  ///< safetensors' name: "U8", "F16", "BF16", "F32", ...
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// One quantized linear layer: its name and the shape of its weight.
struct QuantizedModule {
  std::string name;
  std::int64_t out_features = 0;  ///< N
  std::int64_t in_features = 0;   ///< K
  bool operator==(const QuantizedModule&) const = default;
};

/// The part of config.json's `quantization_config` that a reader needs.
struct CheckpointConfig {
  int format_version = 1;
  CodebookForm codebook;
  std::vector<int> precisions;  ///< rising and contiguous: the lowest .. the parent
  int seed_precision = 3;
  std::vector<QuantizedModule> modules;
};

/// Reads a checkpoint (docs/format.md). Files are memory-mapped; of the quantized tensors only
/// those that the requested precisions need are opened. Headers, offsets, dtypes, shapes and sizes
/// are validated before anything is allocated from their numbers.
class Checkpoint {
 public:
  /// precisions: which to open; empty for all. Throws PrecisionError when one is not there,
  /// FormatError when a file is malformed, IoError when it cannot be read.
  explicit Checkpoint(const std::filesystem::path& directory, std::vector<int> precisions = {});
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const std::filesystem::path& directory() const;
  const CheckpointConfig& config() const;
  /// The whole of config.json, as text.
  const std::string& config_json() const;
  /// The precisions that were asked for, rising.
  const std::vector<int>& precisions() const;

  /// Names of every tensor that is open, sorted.
  std::vector<std::string> tensor_names() const;
  bool contains(const std::string& name) const;
  /// Throws InvalidArgument when it is not open.
  TensorView tensor(const std::string& name) const;

  /// Bytes of the files that are mapped; the cost of opening these precisions.
  std::uint64_t bytes_mapped() const;
  /// Files that are mapped, sorted.
  std::vector<std::filesystem::path> files() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes a checkpoint into a directory of its own, tensor by tensor. Everything goes into a
/// temporary directory beside the final one; `finish` syncs it and renames it into place, so that
/// nothing ever exists under the final name but a whole checkpoint. A writer that is destroyed
/// before `finish` removes what it wrote.
class CheckpointWriter {
 public:
  /// config_json: the model's config.json with a complete `quantization_config`.
  /// options_json: the options that made the checkpoint, for the manifest ("{}" if none).
  /// shard_bytes: a precision's file is cut into shards when it would grow larger.
  /// Throws InvalidArgument when `directory` exists and overwrite is false.
  CheckpointWriter(const std::filesystem::path& directory, const std::string& config_json,
                   const std::string& options_json = "{}", bool overwrite = false,
                   std::uint64_t shard_bytes = std::uint64_t{5} << 30);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Adds a tensor to the file that its name belongs to (docs/format.md): `P.plane.<i>`,
  /// `P.lut.<b>` and `P.alpha.<b>` of the config's modules to a precision's file, all others to the
  /// base file. Checks dtype, shape and size against the config. The data is copied to disk at
  /// once.
  void add(const std::string& name, const std::string& dtype, std::span<const std::int64_t> shape,
           std::span<const std::byte> data);
  /// Adds a small file as it is (tokenizer, generation config).
  void add_file(const std::string& file_name, std::span<const std::byte> data);
  /// Checks that every module's tensors of every precision are there, writes headers, index,
  /// manifest and config, syncs, and renames.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// What `verify` found: nothing, when the checkpoint is whole.
struct VerifyReport {
  std::int64_t tensors = 0;
  std::uint64_t bytes = 0;
  std::vector<std::string> problems;  ///< one line each, naming file and tensor
};

/// Opens every file and compares every tensor's SHA-256 (and every copied file's) with the
/// manifest. A checkpoint that cannot even be opened is reported as a problem, not thrown.
VerifyReport verify_checkpoint(const std::filesystem::path& directory);

}  // namespace anyprec
