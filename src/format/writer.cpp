#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

#include "anyprec/checkpoint.h"
#include "anyprec/error.h"
#include "src/format/content.h"
#include "src/format/file.h"
#include "src/format/json.h"
#include "src/format/layout.h"
#include "src/format/manifest.h"
#include "src/format/publish.h"
#include "src/format/safetensors.h"
#include "src/format/sha256.h"

namespace anyprec {
namespace {

using format::ExpectedTensor;
using format::Json;
using format::Layout;
using format::Manifest;
using format::OutputFile;
using format::Part;
using format::TensorEntry;

/// Where an added tensor lies until its part's files are written.
struct Spooled {
  Part part = format::kBasePart;
  std::uint64_t offset = 0;
};

/// The data of one part's tensors in the order they were added: a safetensors header comes first in
/// its file and cannot be known before the last tensor.
struct Spool {
  std::filesystem::path path;
  OutputFile file;
};

constexpr int kPartThreads = 3;
constexpr std::size_t kMinHashedBeside = std::size_t{1} << 20;
constexpr std::int64_t kMaxShards = 99999;  // what five digits can name

Json parse_options(const std::string& text) {
  try {
    Json options = format::parse_json(text, "options_json");
    if (options.is_object()) return options;
  } catch (const FormatError& error) {
    throw InvalidArgument(error.what());
  }
  throw InvalidArgument("options_json: not a JSON object");
}

bool is_utf8(const std::string& text) {
  try {
    (void)Json(text).dump();
    return true;
  } catch (const Json::type_error&) {
    return false;
  }
}

}  // namespace

struct CheckpointWriter::State {
  State(const std::filesystem::path& path, const std::string& config_json,
        const std::string& options_json, bool overwrite, std::uint64_t shard_bytes);
  ~State() { remove_partial(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void add(const std::string& name, const std::string& dtype, std::span<const std::int64_t> shape,
           std::span<const std::byte> data);
  void write_file(const std::string& file_name, std::span<const std::byte> data);
  void finish();

  void require_open() const;
  void require_complete() const;
  void write_part(Part part, const OutputFile& spool);
  void write_shard(const std::string& file_name, std::vector<TensorEntry> tensors,
                   const OutputFile& spool);
  void write_parts();
  void write_own_file(const std::string& file_name, const std::string& text);
  void remove_partial() noexcept;

  Layout layout;
  Manifest manifest;
  std::string config_json;
  std::uint64_t shard_bytes;
  bool overwrite;
  std::filesystem::path directory;
  std::filesystem::path partial;  ///< empty once it is renamed or removed: the writer is spent
  std::map<Part, Spool> spools;
  std::map<std::string, Spooled> spooled;
  std::mutex mutex;  ///< of spools and of the manifest's files while parts are written
};

CheckpointWriter::State::State(const std::filesystem::path& path, const std::string& config,
                               const std::string& options_json, bool replace, std::uint64_t shard)
    : layout(format::parse_config(config, "config_json"), "config_json"),
      config_json(config),
      shard_bytes(shard),
      overwrite(replace),
      directory(format::resolve_directory(path)) {
  if (shard_bytes == 0) throw InvalidArgument("shard_bytes: found 0, wanted at least 1");
  manifest.options = parse_options(options_json);
  format::check_replaceable(directory, overwrite);
  partial = format::make_partial_directory(directory);
}

void CheckpointWriter::State::remove_partial() noexcept {
  spools.clear();
  std::error_code ignored;
  if (!partial.empty()) std::filesystem::remove_all(partial, ignored);
  partial.clear();
}

void CheckpointWriter::State::require_open() const {
  if (partial.empty()) {
    throw InvalidArgument(directory.string() + ": the writer has finished or failed");
  }
}

void CheckpointWriter::State::add(const std::string& name, const std::string& dtype,
                                  std::span<const std::int64_t> shape,
                                  std::span<const std::byte> data) {
  require_open();
  const std::string what = "tensor " + format::shown(name);
  if (name.empty() || name == "__metadata__" || !is_utf8(name)) {
    throw InvalidArgument(what + ": not a name that safetensors allows");
  }
  if (spooled.contains(name)) throw InvalidArgument(what + ": added twice");
  const auto element_bytes = format::dtype_bytes(dtype);
  if (!element_bytes) {
    throw InvalidArgument(what + ": dtype " + format::shown(dtype) +
                          ", wanted a safetensors dtype of whole bytes");
  }
  const auto bytes = format::tensor_bytes(*element_bytes, shape);
  if (!bytes || *bytes != data.size()) {
    throw InvalidArgument(what + ": " + std::to_string(data.size()) + " bytes of data, wanted " +
                          (bytes ? std::to_string(*bytes) : "a shape below 2^63 bytes"));
  }
  const std::vector<std::int64_t> dimensions(shape.begin(), shape.end());
  const ExpectedTensor* expected = layout.find(name);
  if (expected == nullptr && layout.reserved(name)) {
    throw InvalidArgument(what + ": belongs to a quantized module, but is not one of the tensors " +
                          "that the config's codebook and precisions ask for");
  }
  if (expected != nullptr) {
    try {
      Layout::check(name, *expected, dtype, dimensions, "add");
    } catch (const FormatError& error) {
      throw InvalidArgument(error.what());
    }
    const std::string problem = format::content_problem(*expected, data);
    if (!problem.empty()) throw InvalidArgument(what + ": " + problem);
  }

  const Part part = expected == nullptr ? format::kBasePart : expected->part;
  auto spool = spools.find(part);
  if (spool == spools.end()) {
    std::filesystem::path path = partial / ("spool-" + std::to_string(part));
    OutputFile file(path);
    spool = spools.emplace(part, Spool{std::move(path), std::move(file)}).first;
  }
  const std::uint64_t offset = spool->second.file.size();
  // Hashing takes about as long as writing; a thread for it pays from some size on.
  const auto launch = data.size() < kMinHashedBeside ? std::launch::deferred : std::launch::async;
  auto digest = std::async(launch, [data] { return format::sha256_hex(data); });
  spool->second.file.append(data);
  spooled[name] = {part, offset};
  manifest.tensors[name] = {"", dtype, dimensions, *bytes, digest.get()};
}

void CheckpointWriter::State::write_file(const std::string& file_name,
                                         std::span<const std::byte> data) {
  OutputFile file(partial / file_name);
  file.append(data);
  file.sync_and_close();
  manifest.files[file_name] = {data.size(), format::sha256_hex(data)};
}

void CheckpointWriter::State::write_own_file(const std::string& file_name,
                                             const std::string& text) {
  if (text.size() > format::kMaxJsonBytes) {
    throw InvalidArgument(file_name + ": would have " + std::to_string(text.size()) +
                          " bytes, readers accept " + std::to_string(format::kMaxJsonBytes));
  }
  write_file(file_name, std::as_bytes(std::span(text)));
}

void CheckpointWriter::State::require_complete() const {
  std::size_t missing = 0;
  std::string first;
  for (const auto& item : layout.tensors()) {
    if (spooled.contains(item.first)) continue;
    if (missing++ == 0) first = item.first;
  }
  if (missing > 0) {
    throw InvalidArgument(directory.string() + ": " + std::to_string(missing) + " of " +
                          std::to_string(layout.tensors().size()) +
                          " quantized tensors were not added, the first is " +
                          format::shown(first));
  }
}

void CheckpointWriter::State::write_shard(const std::string& file_name,
                                          std::vector<TensorEntry> tensors,
                                          const OutputFile& spool) {
  const std::string header = format::layout_safetensors(tensors);
  if (header.size() > format::kMaxJsonBytes) {
    throw InvalidArgument(file_name + ": header would have " + std::to_string(header.size()) +
                          " bytes, readers accept " + std::to_string(format::kMaxJsonBytes) +
                          "; lower shard_bytes");
  }
  OutputFile file(partial / file_name);
  file.append(header);
  for (const TensorEntry& tensor : tensors) {
    file.append_range(spool, spooled.at(tensor.name).offset, tensor.bytes());
    manifest.tensors.at(tensor.name).file = file_name;  // no other part has this tensor
  }
  const std::uint64_t size = file.size();
  file.sync_and_close();
  const std::lock_guard lock(mutex);
  manifest.tensor_files[file_name] = {size, format::sha256_hex(header)};
}

void CheckpointWriter::State::write_part(Part part, const OutputFile& spool) {
  // Cut in the order of names, so that the shards do not depend on the order of adding.
  std::vector<std::vector<TensorEntry>> shards;
  std::uint64_t shard_size = 0;
  for (const auto& [name, tensor] : manifest.tensors) {
    if (spooled.at(name).part != part) continue;
    if (shards.empty() || (shard_size > 0 && tensor.bytes > shard_bytes - shard_size)) {
      shards.emplace_back();
      shard_size = 0;
    }
    shards.back().push_back({name, tensor.dtype, tensor.shape});
    shard_size = std::min(shard_size + tensor.bytes, shard_bytes);
  }
  const auto count = static_cast<std::int64_t>(shards.size());
  if (count > kMaxShards) {
    throw InvalidArgument("shard_bytes: " + std::to_string(shard_bytes) + " would make " +
                          std::to_string(count) + " shards, at most " + std::to_string(kMaxShards) +
                          " have names");
  }
  for (std::int64_t i = 0; i < count; ++i) {
    write_shard(format::part_file_name(part, i + 1, count),
                std::move(shards[static_cast<std::size_t>(i)]), spool);
  }
}

void CheckpointWriter::State::write_parts() {
  // One part waits for the disk while another is copied; each spool goes when its part is there, so
  // that only so many parts lie on the disk twice.
  const auto work = [this] {
    while (true) {
      std::map<Part, Spool>::node_type taken;
      {
        const std::lock_guard lock(mutex);
        if (spools.empty()) return;
        taken = spools.extract(spools.begin());
      }
      write_part(taken.key(), taken.mapped().file);
      std::error_code error;
      std::filesystem::remove(taken.mapped().path, error);
      if (error) format::throw_io_error(taken.mapped().path, "remove", error.value());
    }
  };
  std::vector<std::future<void>> threads;
  for (int i = 0; i < kPartThreads; ++i) threads.push_back(std::async(std::launch::async, work));
  for (std::future<void>& thread : threads) thread.wait();
  for (std::future<void>& thread : threads) thread.get();
}

void CheckpointWriter::State::finish() {
  write_parts();
  format::Index index;
  for (const auto& [name, tensor] : manifest.tensors) {
    index.total_bytes += tensor.bytes;
    index.files.emplace(name, tensor.file);
  }
  write_own_file(format::kIndexFile, format::index_text(index));
  write_own_file(format::kConfigFile, config_json);
  write_own_file(format::kManifestFile, format::manifest_text(manifest));
  format::sync_directory(partial);
  format::publish_directory(partial, directory, overwrite);
  partial.clear();
}

CheckpointWriter::CheckpointWriter(const std::filesystem::path& directory,
                                   const std::string& config_json, const std::string& options_json,
                                   bool overwrite, std::uint64_t shard_bytes)
    : state_(
          std::make_unique<State>(directory, config_json, options_json, overwrite, shard_bytes)) {}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::add(const std::string& name, const std::string& dtype,
                           std::span<const std::int64_t> shape, std::span<const std::byte> data) {
  try {
    state_->add(name, dtype, shape, data);
  } catch (const IoError&) {
    state_->remove_partial();
    throw;
  }
}

void CheckpointWriter::add_file(const std::string& file_name, std::span<const std::byte> data) {
  state_->require_open();
  const std::string what = "file " + format::shown(file_name);
  if (!format::is_plain_name(file_name) || !is_utf8(file_name)) {
    throw InvalidArgument(what + ": not a plain file name");
  }
  if (file_name == format::kConfigFile || file_name == format::kIndexFile ||
      file_name == format::kManifestFile || file_name.starts_with("spool-") ||
      file_name.ends_with(".safetensors")) {
    throw InvalidArgument(what + ": the writer makes files of that name itself");
  }
  if (state_->manifest.files.contains(file_name)) throw InvalidArgument(what + ": added twice");
  try {
    state_->write_file(file_name, data);
  } catch (const IoError&) {
    state_->remove_partial();
    throw;
  }
}

void CheckpointWriter::finish() {
  state_->require_open();
  state_->require_complete();
  try {
    state_->finish();
  } catch (...) {
    state_->remove_partial();
    throw;
  }
}

}  // namespace anyprec
