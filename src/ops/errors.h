#pragma once

#include <c10/util/Exception.h>

#include "anyprec/error.h"

namespace anyprec::ops {

/// Runs `body`; what it finds wrong with its arguments becomes libtorch's error, Python's
/// ValueError.
template <class Body>
auto as_value_error(const Body& body) {
  try {
    return body();
  } catch (const InvalidArgument& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

}  // namespace anyprec::ops
