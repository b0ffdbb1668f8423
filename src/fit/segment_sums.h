#pragma once

#include "src/fit/rows.h"

namespace anyprec::fit {

/// P^T H P with P the selection of values by codes: the sums of H over the columns of each pair of
/// slots, fp32 [n, G, 2^b, G, 2^b]. On a CPU.
at::Tensor segment_sums(const Rows& rows, const Metric& metric, int precision);

}  // namespace anyprec::fit
