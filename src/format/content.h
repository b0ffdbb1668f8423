#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "src/format/layout.h"

namespace anyprec::format {

/// What is wrong with the data of a quantized tensor of the right size: a padding bit of a plane
/// that is set, a NaN or infinity in a codebook, each with where. Empty when nothing is.
std::string content_problem(const ExpectedTensor& tensor, std::span<const std::byte> data);

}  // namespace anyprec::format
