#include "src/format/publish.h"

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <random>
#include <system_error>

#include "anyprec/error.h"
#include "src/format/file.h"
#include "src/format/layout.h"

namespace anyprec::format {
namespace {

namespace fs = std::filesystem;

/// 0, or the error number.
int rename_with(const fs::path& from, const fs::path& to, unsigned flags) {
  const int result = flags == 0 ? ::rename(from.c_str(), to.c_str())
                                : ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
  return result == 0 ? 0 : errno;
}

bool flag_unsupported(int error) {
  return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

/// `path` with a suffix that no other process uses.
fs::path beside(const fs::path& path, const char* word) {
  std::random_device random;
  return path.string() + "." + word + "-" + std::to_string(::getpid()) + "-" +
         std::to_string(random());
}

void remove_replaced(const fs::path& old, const fs::path& directory) {
  std::error_code error;
  fs::remove_all(old, error);
  if (error) {
    throw IoError(directory.string() + " is in place, but the one it replaced is left as " +
                  old.string() + ": " + error.message());
  }
}

/// Forces the renames to the disk; where that fails, takes them back and throws.
void sync_or_undo(const fs::path& directory, const std::function<void()>& undo) {
  try {
    sync_directory(directory.parent_path());
  } catch (const IoError&) {
    undo();
    throw;
  }
}

/// For file systems that cannot exchange: the old one steps aside first, and comes back if the new
/// one cannot take its place.
void replace_in_two_steps(const fs::path& partial, const fs::path& directory) {
  const fs::path aside = beside(directory, "replaced");
  if (const int error = rename_with(directory, aside, 0))
    throw_io_error(directory, "rename", error);
  if (const int error = rename_with(partial, directory, 0)) {
    if (rename_with(aside, directory, 0) != 0) {
      throw IoError(directory.string() + ": cannot replace it, and it is left as " +
                    aside.string());
    }
    throw_io_error(partial, "rename to " + directory.string(), error);
  }
  sync_or_undo(directory, [&] {
    if (rename_with(directory, partial, 0) == 0) rename_with(aside, directory, 0);
  });
  remove_replaced(aside, directory);
}

}  // namespace

fs::path resolve_directory(const fs::path& directory) {
  std::error_code error;
  fs::path path = fs::absolute(directory, error).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (error || path.empty() || path == path.root_path()) {
    throw InvalidArgument("\"" + directory.string() + "\" is not a directory to write into");
  }
  if (fs::is_symlink(path, error)) {
    path = fs::weakly_canonical(path, error);
    if (error) throw IoError(directory.string() + ": cannot resolve: " + error.message());
  }
  return path;
}

void check_replaceable(const fs::path& directory, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(directory, error);
  if (status.type() == fs::file_type::not_found) return;
  if (!overwrite) {
    throw InvalidArgument(directory.string() + ": exists; pass overwrite to replace it");
  }
  const bool replaceable =
      fs::is_directory(status) &&
      (fs::is_empty(directory, error) || fs::exists(directory / kManifestFile, error));
  if (!replaceable || error) {
    throw InvalidArgument(directory.string() + ": is neither a checkpoint (no " + kManifestFile +
                          ") nor an empty directory; not overwriting it");
  }
}

fs::path make_partial_directory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory.parent_path(), error);
  if (error) {
    throw IoError(directory.parent_path().string() + ": cannot create: " + error.message());
  }
  for (;;) {
    const fs::path partial = beside(directory, "partial");
    if (::mkdir(partial.c_str(), 0777) == 0) return partial;
    if (errno != EEXIST) throw_io_error(partial, "create", errno);
  }
}

void publish_directory(const fs::path& partial, const fs::path& directory, bool overwrite) {
  check_replaceable(directory, overwrite);
  int error = rename_with(partial, directory, RENAME_NOREPLACE);
  if (flag_unsupported(error)) {
    // rename() replaces nothing but an empty directory.
    error = rename_with(partial, directory, 0);
  }
  if (error == 0) {
    sync_or_undo(directory, [&] { rename_with(directory, partial, 0); });
    return;
  }
  if (!overwrite || (error != EEXIST && error != ENOTEMPTY)) {
    throw_io_error(partial, "rename to " + directory.string(), error);
  }
  error = rename_with(partial, directory, RENAME_EXCHANGE);
  if (flag_unsupported(error)) {
    replace_in_two_steps(partial, directory);
    return;
  }
  if (error != 0) throw_io_error(partial, "exchange with " + directory.string(), error);
  sync_or_undo(directory, [&] { rename_with(partial, directory, RENAME_EXCHANGE); });
  remove_replaced(partial, directory);
}

}  // namespace anyprec::format
