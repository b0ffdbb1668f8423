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
/// those that the requested precisions need are opened, and a file that holds none of them need not
/// exist. Headers, offsets, dtypes, shapes and sizes are validated before anything is allocated
/// from their numbers; tensor data is not read (verify_checkpoint does). A file that another
/// process truncates while it is mapped is not guarded against. Immutable, so safe to share among
/// threads.
class Checkpoint {
 public:
  /// precisions: which to open; empty for all of the config. Throws PrecisionError when one is not
  /// in the config or its files are absent, FormatError when a file is malformed, IoError when it
  /// cannot be read.
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
  /// The config's precisions whose files were all present at opening, rising.
  const std::vector<int>& available_precisions() const;

  /// Names of every tensor that is open, sorted: all of the base, and the planes and codebooks that
  /// the precisions need.
  std::vector<std::string> tensor_names() const;
  bool contains(const std::string& name) const;
  /// Valid while the Checkpoint lives; data is aligned to its elements. Throws InvalidArgument when
  /// it is not open.
  TensorView tensor(const std::string& name) const;

  /// Bytes that these precisions cost to read: the headers of the files that are mapped, and the
  /// tensors that are open. (A mapped file's other tensors are never touched.)
  std::uint64_t bytes_mapped() const;
  /// The safetensors files that are mapped, sorted.
  std::vector<std::filesystem::path> files() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes a checkpoint into a directory of its own, tensor by tensor. Everything goes into a
/// temporary directory beside the final one; `finish` syncs it and renames it into place, so that
/// nothing ever exists under the final name but a whole checkpoint. A writer that is destroyed
/// before `finish`, or meets an IoError, removes what it wrote; a process that is killed leaves
/// `<directory>.partial-<pid>-<random>`. The same tensors give the same bytes in whatever order
/// they are added. While it finishes, up to three precisions' tensors are on disk twice. Not
/// thread-safe.
class CheckpointWriter {
 public:
  /// config_json: the model's config.json with a complete `quantization_config`.
  /// options_json: the options that made the checkpoint, for the manifest ("{}" if none).
  /// overwrite: replace what is at `directory`, which must be a checkpoint or an empty directory;
  /// it stays whole until the new one is, and then the two change places atomically where the file
  /// system can (renameat2).
  /// shard_bytes: a precision's file is cut into shards when its tensors are more (a single larger
  /// tensor gets a shard of its own).
  /// Throws InvalidArgument when `directory` exists and may not be replaced, FormatError when
  /// config_json's `quantization_config` lacks a key or has a wrong one, IoError when the temporary
  /// directory cannot be made.
  CheckpointWriter(const std::filesystem::path& directory, const std::string& config_json,
                   const std::string& options_json = "{}", bool overwrite = false,
                   std::uint64_t shard_bytes = std::uint64_t{5} << 30);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Adds a tensor to the file that its name belongs to (docs/format.md): `P.plane.<i>`,
  /// `P.lut.<b>` and `P.alpha.<b>` of the config's modules to a precision's file, all others to the
  /// base file. The data is copied to disk at once. Throws InvalidArgument, and remains usable,
  /// when the name was added before or is reserved, dtype or shape are not the config's, the size
  /// is not theirs, a plane's padding bits are not zero, or a codebook has a NaN or infinity.
  void add(const std::string& name, const std::string& dtype, std::span<const std::int64_t> shape,
           std::span<const std::byte> data);
  /// Adds a small file as it is (tokenizer, generation config). Throws InvalidArgument for a name
  /// that is not plain, was added before or is one of the checkpoint's own.
  void add_file(const std::string& file_name, std::span<const std::byte> data);
  /// Checks that every module's tensors of every precision are there (InvalidArgument otherwise),
  /// writes headers, index, manifest and config, syncs, and renames. The writer is then spent.
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

/// Reads every byte of a checkpoint, all precisions, and compares it with the manifest: tensors,
/// headers, config, index and copied files by SHA-256, and the manifest with its own. Also reports
/// what a writer may not produce: padding bits that are set, NaN or infinity in a codebook. A
/// checkpoint that cannot even be opened is reported as a problem, not thrown.
VerifyReport verify_checkpoint(const std::filesystem::path& directory);

}  // namespace anyprec
