#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "anyprec/engine.h"

namespace anyprec::engine {

/// The precision of every quantized linear, in the order of the checkpoint's list of modules.
using Assignment = std::vector<int>;
using SharedAssignment = std::shared_ptr<const Assignment>;

/// What a Precision stands for in one model. Throws PrecisionError where a precision is not loaded,
/// a linear matches no pattern or a pattern no linear: the rules of anyprec/precision.py.
SharedAssignment resolve(const Precision& precision, const std::vector<std::string>& names,
                         const std::vector<int>& loaded);

}  // namespace anyprec::engine
