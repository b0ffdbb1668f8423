#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace anyprec::format {

/// The largest JSON text (config, index, manifest, safetensors header) that is read: the limit
/// that safetensors itself sets for a header.
inline constexpr std::uint64_t kMaxJsonBytes = 100'000'000;

/// A file, memory-mapped for reading. Its size is taken once, at opening: a file that another
/// process truncates while it is mapped raises SIGBUS at access, as with any mapping.
class MappedFile {
 public:
  /// Throws IoError when the file cannot be opened or mapped, or is not a regular file.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Tells the kernel that the whole file will be read once, from front to back.
  void advise_sequential() const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The whole of a text file. Throws IoError, or FormatError beyond `max_bytes`.
std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes = kMaxJsonBytes);

/// A new file, written from front to back. Errors are IoErrors that name it.
class OutputFile {
 public:
  /// Creates the file; it must not exist.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;

  std::uint64_t size() const { return size_; }
  void append(std::span<const std::byte> data);
  void append(std::string_view text);
  /// Appends `bytes` bytes of another file, from `offset`; in the kernel where it can.
  void append_range(const OutputFile& source, std::uint64_t offset, std::uint64_t bytes);
  /// Forces everything to the disk and closes the file.
  void sync_and_close();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// Forces a directory's entries to the disk.
void sync_directory(const std::filesystem::path& path);

/// Throws IoError "<path>: cannot <action>: <text of error>".
[[noreturn]] void throw_io_error(const std::filesystem::path& path, const std::string& action,
                                 int error);

}  // namespace anyprec::format
