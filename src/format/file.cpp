#include "src/format/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "anyprec/error.h"

namespace anyprec::format {
namespace {

/// Closes on scope exit; for the paths that throw.
struct Descriptor {
  int value;
  ~Descriptor() { ::close(value); }
};

Descriptor open_for_reading(const std::filesystem::path& path, std::uint64_t& size) {
  // O_NONBLOCK: a named pipe in the file's place must not hang us.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_io_error(path, "open", errno);
  struct stat status;
  if (::fstat(descriptor, &status) != 0) {
    const int error = errno;
    ::close(descriptor);
    throw_io_error(path, "stat", error);
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw IoError(path.string() + ": not a regular file");
  }
  size = static_cast<std::uint64_t>(status.st_size);
  return {descriptor};
}

}  // namespace

void throw_io_error(const std::filesystem::path& path, const std::string& action, int error) {
  throw IoError(path.string() + ": cannot " + action + ": " +
                std::error_code(error, std::generic_category()).message());
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  std::uint64_t size = 0;
  const Descriptor file = open_for_reading(path, size);
  if (size == 0) return;  // an empty mapping is an error to mmap
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value, 0);
  if (data == MAP_FAILED) throw_io_error(path, "map", errno);
  data_ = static_cast<const std::byte*>(data);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::advise_sequential() const {
  if (data_ != nullptr) ::madvise(const_cast<std::byte*>(data_), size_, MADV_SEQUENTIAL);
}

std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes) {
  std::uint64_t size = 0;
  const Descriptor file = open_for_reading(path, size);
  if (size > max_bytes) {
    throw FormatError(path.string() + ": " + std::to_string(size) + " bytes, at most " +
                      std::to_string(max_bytes) + " are read");
  }
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(file.value, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_io_error(path, "read", errno);
    if (count == 0) throw IoError(path.string() + ": became shorter while it was read");
    done += static_cast<std::size_t>(count);
  }
  return text;
}

OutputFile::OutputFile(const std::filesystem::path& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_io_error(path, "create", errno);
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

OutputFile& OutputFile::operator=(OutputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  return *this;
}

void OutputFile::append(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t count = ::write(descriptor_, data.data(), data.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_io_error(path_, "write", errno);
    size_ += static_cast<std::uint64_t>(count);
    data = data.subspan(static_cast<std::size_t>(count));
  }
}

void OutputFile::append(std::string_view text) { append(std::as_bytes(std::span(text))); }

void OutputFile::append_range(const OutputFile& source, std::uint64_t offset, std::uint64_t bytes) {
  auto position = static_cast<off_t>(offset);
  while (bytes > 0) {
    const std::size_t step = std::min<std::uint64_t>(bytes, std::uint64_t{1} << 30);
    const ssize_t count =
        ::copy_file_range(source.descriptor_, &position, descriptor_, nullptr, step, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;  // not on this file system; a true error shows in the loop below
    size_ += static_cast<std::uint64_t>(count);
    bytes -= static_cast<std::uint64_t>(count);
  }
  std::vector<std::byte> buffer(std::min<std::uint64_t>(bytes, std::uint64_t{1} << 20));
  while (bytes > 0) {
    const std::size_t step = std::min<std::uint64_t>(bytes, buffer.size());
    const ssize_t count = ::pread(source.descriptor_, buffer.data(), step, position);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_io_error(source.path_, "read", errno);
    if (count == 0) throw IoError(source.path_.string() + ": became shorter while it was read");
    append(std::span(buffer).first(static_cast<std::size_t>(count)));
    position += count;
    bytes -= static_cast<std::uint64_t>(count);
  }
}

void OutputFile::sync_and_close() {
  if (::fsync(descriptor_) != 0) throw_io_error(path_, "sync", errno);
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_io_error(path_, "close", errno);
}

void sync_directory(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_io_error(path, "open", errno);
  const Descriptor directory{descriptor};
  // EINVAL: a file system that cannot sync directories, and has nothing to lose there.
  if (::fsync(directory.value) != 0 && errno != EINVAL) throw_io_error(path, "sync", errno);
}

}  // namespace anyprec::format
