#pragma once

#include <cstdint>

#include "anyprec/codebook.h"
#include "anyprec/cuda.h"
#include "kernels/cuda/fused.h"

namespace anyprec::cuda {

inline constexpr int kPrecisions = kMaxPrecision - kMinPrecision + 1;

/// One matrix, as the mask-dot kernel takes it.
struct MaskDotProduct {
  const std::uint8_t* planes;
  std::int64_t plane_stride;
  const std::uint16_t* lut[kPrecisions];  ///< of precision b at b - 2; those that may be asked for
  const std::uint16_t* alpha[kPrecisions];  ///< likewise
  const void* bias;
  void* y;
  std::int64_t y_stride;
  int rows;        ///< N
  int tile_begin;  ///< among the tiles of all products
};

struct MaskDotArgs {
  const void* x;
  std::int64_t x_stride;
  ScalarType type;
  const void* x_planes;   ///< [M][units][kUnitPlaneBytes] and
  const float* x_scales;  ///< [M] PlaneScale, or both null: x is turned into planes here
  Fused fused;            ///< a norm only of one row, of up to kMaskDotNormColumns
  int columns;            ///< K
  int units;
  int tiles;  ///< of all products
  int products;
  const int* precision_at;  ///< device memory; read by MaskDotKernels::any_precision
  int ring_bytes;           ///< shared memory for weights in flight
  MaskDotProduct product[kMaxProducts];
};

/// What a kernel keeps in shared memory at one precision.
struct MaskDotShape {
  int coefficients;  ///< of a row of W
  int partial_sums;  ///< of a row of W and one of x
  int stage_bytes;   ///< of weights, one step of every team, with its codebooks
  int unit_groups;   ///< groups of a unit whose sums of x are kept, or 0
};

inline constexpr int kMaskDotThreads = 256;
/// The most columns of a row that is normalized: a chunk (activation_planes.cuh) a thread.
inline constexpr int kMaskDotNormColumns = 16 * kMaskDotThreads;

/// The kernels of one codebook form; those of precision b at b - 2, null where it is not served.
struct MaskDotKernels {
  using Kernel = void (*)(MaskDotArgs);
  Kernel precision[kPrecisions];
  Kernel any_precision;
  MaskDotShape shape[kPrecisions];
  int tile_bytes;  ///< in shared memory
};

// One source a codebook form (mask_dot_*.cu); rows: 1 or 2 rows of x.
MaskDotKernels mask_dot_full(int rows);  ///< L = 8, b <= 4
MaskDotKernels mask_dot_bcq(int rows);   ///< L = 0
/// L = 0 with groups of 128 columns: K a multiple of 256.
MaskDotKernels mask_dot_bcq_g128(int rows);
MaskDotKernels mask_dot_l2(int rows);      ///< L = 2, one class
MaskDotKernels mask_dot_l3(int rows);      ///< L = 3, one class
MaskDotKernels mask_dot_l3_io(int rows);   ///< L = 3, io
MaskDotKernels mask_dot_l3_sym(int rows);  ///< L = 3, sym
MaskDotKernels mask_dot_l4(int rows);      ///< L = 4, one class
MaskDotKernels mask_dot_l4_io(int rows);   ///< L = 4, io
MaskDotKernels mask_dot_l4_qu(int rows);   ///< L = 4, qu

}  // namespace anyprec::cuda
