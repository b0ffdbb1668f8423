#pragma once

#include <cstdint>
#include <string>

#include "anyprec/parallel.h"
#include "anyprec/quantize.h"

namespace anyprec::quantize {

/// Throws InvalidArgument, naming the matrix, unless N and K are at least 1 and
/// 2 <= lowest <= seed <= parent <= 8 and group_size is 0 or a positive multiple of 32.
void validate_options(const std::string& name, std::int64_t out_features, std::int64_t in_features,
                      const QuantizeOptions& options);

/// Throws InvalidArgument naming the first offending element, in row-major order, unless every
/// weight is finite and every sensitivity (may be null) is finite and not negative.
void validate_values(const std::string& name, const float* weights, const float* sensitivities,
                     std::int64_t out_features, std::int64_t in_features, const Executor& executor);

/// What validate_values throws for the element at a row-major index.
[[noreturn]] void throw_bad_weight(const std::string& name, float value, std::int64_t index,
                                   std::int64_t in_features);
[[noreturn]] void throw_bad_sensitivity(const std::string& name, float value, std::int64_t index,
                                        std::int64_t in_features);

}  // namespace anyprec::quantize
