#pragma once

#include <cstdint>

#include "kernels/cuda/plane_operands.h"
#include "kernels/cuda/table_mma_args.h"

namespace anyprec::cuda {

struct PlaneMmaArgs : TableMmaArgs {
  int groups;               ///< G
  GroupOfSegment group_of;  ///< may be past the last for columns past K
};

/// The longest run of tiles of a block.
inline constexpr int kMaxPlaneTiles = 64;

/// One kernel and what its launch needs.
struct PlaneMmaKernel {
  void (*kernel)(PlaneMmaArgs);
  int threads;
  int chunk_units;  ///< the most that its warps hold of x
  int shared_bytes;
};

/// The kernel of precision b for `rows` rows of x. parts: of 128 columns that may have codebooks of
/// their own, 1, 2 or 4. One source a precision (plane_mma_b*.cu).
template <int kBits>
PlaneMmaKernel plane_mma_kernel(std::int64_t rows, int parts);

}  // namespace anyprec::cuda
