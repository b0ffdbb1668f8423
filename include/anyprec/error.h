#pragma once

#include <stdexcept>
#include <string>

namespace anyprec {

/// Base of every error that anyprec throws. The message names the thing, what was found and what
/// was wanted.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller passed a value that the function's contract excludes.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A file is not a well-formed anyprec checkpoint: truncated, inconsistent or corrupt.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused to open, map, write or rename a file.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A precision was asked for that is not in the checkpoint, or was not loaded.
class PrecisionError : public Error {
 public:
  using Error::Error;
};

/// A model's config asks for something that the decode engine does not implement.
class UnsupportedModel : public Error {
 public:
  using Error::Error;
};

}  // namespace anyprec
