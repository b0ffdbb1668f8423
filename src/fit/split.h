#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "src/fit/rows.h"

namespace anyprec::fit {

/// The weighted mean of each slot at precisions 0, 1, ..., `precision`, weights being diag(H): fp32
/// [n, G, 2^b] each. An empty slot has the mean of the slot that it is a part of at one bit less.
std::vector<at::Tensor> slot_means(const Rows& rows, const Metric& metric, int precision);

/// Cuts every slot at precision b in two by value, so that the sum of diag(H) (w - mean of half)^2
/// is least (Any-Precision LLM's upscaling, arXiv 2402.10517, exactly): the codes at b + 1. A slot
/// of one weight stays left.
at::Tensor split(const Rows& rows, const Metric& metric, int precision);

}  // namespace anyprec::fit
