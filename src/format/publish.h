#pragma once

#include <filesystem>

namespace anyprec::format {

/// The directory as an absolute path without "." or trailing slash; where it is a symbolic link,
/// what it points to.
std::filesystem::path resolve_directory(const std::filesystem::path& directory);

/// Throws InvalidArgument when something is at `directory` that may not be replaced: anything at
/// all without `overwrite`; with it, anything but a checkpoint (it has a manifest) or an empty
/// directory, so that a mistyped name destroys nobody's files.
void check_replaceable(const std::filesystem::path& directory, bool overwrite);

/// Makes a new directory `<directory>.partial-<pid>-<random>` beside `directory`, and the parents
/// it lacks.
std::filesystem::path make_partial_directory(const std::filesystem::path& directory);

/// Renames a finished, synced directory to its final name. With `overwrite`, what is there is
/// removed after the new one has taken its place; at no time is neither of them whole on disk.
void publish_directory(const std::filesystem::path& partial, const std::filesystem::path& directory,
                       bool overwrite);

}  // namespace anyprec::format
