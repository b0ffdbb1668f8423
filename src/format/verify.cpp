#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <system_error>

#include "anyprec/checkpoint.h"
#include "anyprec/error.h"
#include "src/format/content.h"
#include "src/format/file.h"
#include "src/format/json.h"
#include "src/format/layout.h"
#include "src/format/manifest.h"
#include "src/format/safetensors.h"
#include "src/format/sha256.h"

namespace anyprec {
namespace {

using format::Layout;
using format::Manifest;
using format::MappedFile;
using format::shown;

class Verifier {
 public:
  explicit Verifier(const std::filesystem::path& directory) : directory_(directory) {}

  VerifyReport run() {
    if (!read_manifest()) return report_;
    for (const auto& [name, file] : manifest_.files) check_file(name, file);
    for (const char* name : {format::kConfigFile, format::kIndexFile}) {
      if (!manifest_.files.contains(name)) problem(name, "not in the manifest");
    }
    read_config();
    for (const auto& [name, file] : manifest_.tensor_files) check_tensor_file(name, file);
    check_all_tensors_seen();
    check_index();
    check_strangers();
    // What is left to fail here is a checkpoint that was made wrong, not one that was damaged.
    if (report_.problems.empty()) attempt([&] { Checkpoint opened(directory_); });
    return report_;
  }

 private:
  void problem(const std::string& file, const std::string& text) {
    report_.problems.push_back((directory_ / file).string() + ": " + text);
  }

  /// Runs a step; an error in it becomes a problem.
  template <typename Step>
  bool attempt(Step step) {
    try {
      step();
      return true;
    } catch (const Error& error) {
      report_.problems.emplace_back(error.what());
      return false;
    }
  }

  bool read_manifest() {
    return attempt([&] {
      const auto path = directory_ / format::kManifestFile;
      manifest_ = format::parse_manifest(format::read_text(path), path.string());
    });
  }

  void check_file(const std::string& name, const Manifest::File& wanted) {
    attempt([&] {
      const MappedFile file(directory_ / name);
      file.advise_sequential();
      report_.bytes += file.bytes().size();
      if (file.bytes().size() != wanted.bytes) {
        problem(name, std::to_string(file.bytes().size()) + " bytes, the manifest says " +
                          std::to_string(wanted.bytes));
      } else if (format::sha256_hex(file.bytes()) != wanted.sha256) {
        problem(name, "SHA-256 differs from the manifest's");
      }
    });
  }

  void read_config() {
    attempt([&] {
      const auto path = directory_ / format::kConfigFile;
      layout_.emplace(format::parse_config(format::read_text(path), path.string()), path.string());
    });
  }

  void check_tensor_file(const std::string& name, const Manifest::TensorFile& wanted) {
    const bool parsed = attempt([&] {
      const MappedFile file(directory_ / name);
      file.advise_sequential();
      if (file.bytes().size() != wanted.bytes) {
        problem(name, std::to_string(file.bytes().size()) + " bytes, the manifest says " +
                          std::to_string(wanted.bytes));
      }
      const auto header = format::parse_safetensors(file.bytes(), file.path().string());
      report_.bytes += file.bytes().size();
      if (format::sha256_hex(file.bytes().first(header.data_begin)) != wanted.header_sha256) {
        problem(name, "SHA-256 of the header differs from the manifest's");
      }
      for (const format::TensorEntry& entry : header.tensors) {
        check_tensor(name, entry,
                     file.bytes().subspan(header.data_begin + entry.begin, entry.bytes()));
      }
    });
    if (!parsed) unreadable_.insert(name);
  }

  void check_tensor(const std::string& file, const format::TensorEntry& entry,
                    std::span<const std::byte> data) {
    ++report_.tensors;
    const std::string what = "tensor " + shown(entry.name);
    const auto wanted = manifest_.tensors.find(entry.name);
    if (wanted == manifest_.tensors.end() || wanted->second.file != file) {
      problem(file, what + " is not in the manifest for this file");
      return;
    }
    seen_.insert(entry.name);
    const Manifest::Tensor& tensor = wanted->second;
    if (entry.dtype != tensor.dtype || entry.shape != tensor.shape ||
        entry.bytes() != tensor.bytes) {
      problem(file, what + ": dtype, shape or size differ from the manifest's");
    } else if (format::sha256_hex(data) != tensor.sha256) {
      problem(file, what + ": SHA-256 differs from the manifest's");
    }
    const format::ExpectedTensor* expected = layout_ ? layout_->find(entry.name) : nullptr;
    if (expected == nullptr) return;
    attempt([&] {
      Layout::check(entry.name, *expected, entry.dtype, entry.shape, (directory_ / file).string());
      const std::string wrong = format::content_problem(*expected, data);
      if (!wrong.empty()) problem(file, what + ": " + wrong);
    });
  }

  void check_all_tensors_seen() {
    for (const auto& [name, tensor] : manifest_.tensors) {
      if (seen_.contains(name) || unreadable_.contains(tensor.file)) continue;
      problem(tensor.file, "tensor " + shown(name) + " is missing; the manifest lists it");
    }
  }

  void check_index() {
    if (!layout_) return;
    attempt([&] {
      const format::Index index = format::read_index(directory_, *layout_);
      std::uint64_t total = 0;
      std::map<std::string, std::string> files;
      for (const auto& [name, tensor] : manifest_.tensors) {
        total += tensor.bytes;
        files.emplace(name, tensor.file);
      }
      if (index.files != files) {
        problem(format::kIndexFile, "weight_map differs from the manifest's tensors");
      }
      if (index.total_bytes != total) {
        problem(format::kIndexFile, "total_size " + std::to_string(index.total_bytes) +
                                        ", the manifest's tensors have " + std::to_string(total));
      }
    });
  }

  /// Tensor files that nobody vouches for. Other files (a README, say) are none of our business.
  void check_strangers() {
    std::error_code error;
    std::set<std::string> strangers;  // a directory's own order varies
    for (std::filesystem::directory_iterator it(directory_, error), end; !error && it != end;
         it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.ends_with(".safetensors") && !manifest_.tensor_files.contains(name)) {
        strangers.insert(name);
      }
    }
    for (const std::string& name : strangers) problem(name, "not in the manifest");
    if (error) problem("", "cannot list: " + error.message());
  }

  std::filesystem::path directory_;
  VerifyReport report_;
  Manifest manifest_;
  std::optional<Layout> layout_;
  std::set<std::string> seen_;
  std::set<std::string> unreadable_;  ///< tensor files whose headers could not be read
};

}  // namespace

VerifyReport verify_checkpoint(const std::filesystem::path& directory) {
  return Verifier(directory).run();
}

}  // namespace anyprec
