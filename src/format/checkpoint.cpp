#include "anyprec/checkpoint.h"

#include <algorithm>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "anyprec/error.h"
#include "src/format/file.h"
#include "src/format/json.h"
#include "src/format/layout.h"
#include "src/format/safetensors.h"

namespace anyprec {
namespace {

using format::ExpectedTensor;
using format::Index;
using format::Layout;
using format::MappedFile;

std::string joined(const std::vector<int>& precisions) {
  std::string text;
  for (const int b : precisions) text += (text.empty() ? "" : ", ") + std::to_string(b);
  return text.empty() ? "none" : text;
}

/// Sorted and without duplicates; all of the config's when none are asked for.
std::vector<int> chosen_precisions(std::vector<int> asked, const CheckpointConfig& config,
                                   const std::filesystem::path& directory) {
  if (asked.empty()) return config.precisions;
  std::sort(asked.begin(), asked.end());
  asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
  for (const int b : asked) {
    if (b < config.precisions.front() || b > config.precisions.back()) {
      throw PrecisionError(directory.string() + ": precision " + std::to_string(b) +
                           " is not in this checkpoint, which holds " + joined(config.precisions));
    }
  }
  return asked;
}

/// Names of the files that hold the quantized tensors which these precisions need.
std::set<std::string> files_needed(const Layout& layout, const Index& index,
                                   const std::vector<int>& precisions) {
  std::set<std::string> files;
  for (const auto& [name, tensor] : layout.tensors()) {
    if (tensor.needed_by(precisions)) files.insert(index.files.at(name));
  }
  return files;
}

bool is_present(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

struct Checkpoint::State {
  State(const std::filesystem::path& directory, std::vector<int> asked);

  void check_present() const;
  void open_file(const std::string& file_name, const std::set<std::string>& indexed);

  std::filesystem::path directory;
  std::string config_json;
  Layout layout;
  Index index;
  std::vector<int> precisions;
  std::vector<int> available;
  std::vector<MappedFile> files;
  std::map<std::string, TensorView> tensors;
  std::uint64_t bytes_mapped = 0;
};

Checkpoint::State::State(const std::filesystem::path& path, std::vector<int> asked)
    : directory(path),
      config_json(format::read_text(path / format::kConfigFile)),
      layout(format::parse_config(config_json, (path / format::kConfigFile).string()),
             (path / format::kConfigFile).string()),
      index(format::read_index(path, layout)),
      precisions(chosen_precisions(std::move(asked), layout.config(), path)) {
  for (const int b : layout.config().precisions) {
    const std::set<std::string> needed = files_needed(layout, index, {b});
    if (std::all_of(needed.begin(), needed.end(),
                    [&](const std::string& file) { return is_present(directory / file); })) {
      available.push_back(b);
    }
  }
  check_present();

  std::set<std::string> needed = files_needed(layout, index, precisions);
  std::map<std::string, std::set<std::string>> indexed;  // file -> the tensors it should hold
  for (const auto& [name, file] : index.files) {
    indexed[file].insert(name);
    if (layout.find(name) == nullptr) needed.insert(file);
  }
  for (const std::string& file : needed) open_file(file, indexed.at(file));
}

/// Says which file is absent, for which precision, and what the caller can ask for instead.
void Checkpoint::State::check_present() const {
  for (const int b : precisions) {
    if (std::find(available.begin(), available.end(), b) != available.end()) continue;
    for (const std::string& file : files_needed(layout, index, {b})) {
      if (is_present(directory / file)) continue;
      throw PrecisionError((directory / file).string() + " is absent, so precision " +
                           std::to_string(b) + " cannot be opened; present: " + joined(available) +
                           " (pass precisions=[...] to open only some)");
    }
  }
}

void Checkpoint::State::open_file(const std::string& file_name,
                                  const std::set<std::string>& indexed) {
  MappedFile file(directory / file_name);
  const std::string source = file.path().string();
  const format::SafetensorsHeader header = format::parse_safetensors(file.bytes(), source);
  bytes_mapped += header.data_begin;
  for (const format::TensorEntry& entry : header.tensors) {
    if (!indexed.contains(entry.name)) {
      throw FormatError(source + ": tensor " + format::shown(entry.name) + " is not in " +
                        format::kIndexFile);
    }
    const ExpectedTensor* expected = layout.find(entry.name);
    if (expected != nullptr) {
      Layout::check(entry.name, *expected, entry.dtype, entry.shape, source);
      if (!expected->needed_by(precisions)) continue;
    }
    bytes_mapped += entry.bytes();
    tensors.emplace(entry.name, TensorView{entry.name, entry.dtype, entry.shape,
                                           file.bytes().data() + header.data_begin + entry.begin,
                                           entry.bytes()});
  }
  // Every name of the header is in the index, so equal counts mean equal sets.
  if (header.tensors.size() != indexed.size()) {
    for (const std::string& name : indexed) {
      const bool found = std::any_of(header.tensors.begin(), header.tensors.end(),
                                     [&](const auto& entry) { return entry.name == name; });
      if (!found) {
        throw FormatError(source + ": tensor " + format::shown(name) + " is missing; " +
                          format::kIndexFile + " lists it");
      }
    }
  }
  files.push_back(std::move(file));
}

Checkpoint::Checkpoint(const std::filesystem::path& directory, std::vector<int> precisions)
    : state_(std::make_unique<State>(directory, std::move(precisions))) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

const std::filesystem::path& Checkpoint::directory() const { return state_->directory; }
const CheckpointConfig& Checkpoint::config() const { return state_->layout.config(); }
const std::string& Checkpoint::config_json() const { return state_->config_json; }
const std::vector<int>& Checkpoint::precisions() const { return state_->precisions; }
const std::vector<int>& Checkpoint::available_precisions() const { return state_->available; }
std::uint64_t Checkpoint::bytes_mapped() const { return state_->bytes_mapped; }

std::vector<std::string> Checkpoint::tensor_names() const {
  std::vector<std::string> names;
  names.reserve(state_->tensors.size());
  for (const auto& item : state_->tensors) names.push_back(item.first);
  return names;
}

bool Checkpoint::contains(const std::string& name) const { return state_->tensors.contains(name); }

TensorView Checkpoint::tensor(const std::string& name) const {
  const auto it = state_->tensors.find(name);
  if (it == state_->tensors.end()) {
    throw InvalidArgument(state_->directory.string() + ": no tensor " + format::shown(name) +
                          " is open at precisions " + joined(state_->precisions));
  }
  return it->second;
}

std::vector<std::filesystem::path> Checkpoint::files() const {
  std::vector<std::filesystem::path> paths;
  for (const MappedFile& file : state_->files) paths.push_back(file.path());
  return paths;
}

}  // namespace anyprec
