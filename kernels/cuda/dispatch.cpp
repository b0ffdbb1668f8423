#include "kernels/cuda/dispatch.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cuda/mask_dot.h"
#include "kernels/cuda/plane_mma.h"
#include "kernels/cuda/table_mma.h"
#include "kernels/cuda/table_wgmma.h"

namespace anyprec::cuda {
namespace {

/// The most masks of a row (mask_set.h) with which mask-dot beats the table kernel, by precision 2
/// to 8, for one and for two rows of x. One row: from decoding steps of Llama-3.1-8B's shapes on an
/// H100 (docs/codebooks.md), where 15 masks and more lose a fifth that replays of one product do
/// not show; the ninth at 4 bits makes no difference there, so replays decide (12.7 us to 15.8).
/// Two: from `make gpu-bench` at 14336 x 4096 (benchmarks/RESULTS.md).
constexpr int kMostMasks[2][kMaxPrecision - kMinPrecision + 1] = {
    {3, 7, 9, 11, 13, 11, 12},
    {3, 4, 6, 9, 7, 8, 9},
};

/// From how many rows of x tiles and wgmma beat the table kernel that reads x as it is, by the
/// length of a row of W and precision 2 to 8. What that kernel's warps hold of x is 4096 columns;
/// where a row of W is longer, it looks W up in pieces of K and makes every table again. Full
/// tables, us of the two: 14336 x 4096, 9 rows, 17.1 / 15.6 at 2 bits, 21.9 / 20.8 at 4, 28.4
/// / 32.5 at 8; 57344 x 8192, 8 rows, 105 / 122 and, 9 rows, 168 / 125 at 4; 8192 x 28672, 5
/// rows, 47.9 / 43.6, 61.6 / 57.5. With 8 rows at 8 bits 4096 x 14336 takes 31.5 / 27.3, but a
/// decoding step is no shorter: what follows the table kernel starts sooner.
struct FewestWgmmaRows {
  std::int64_t most_columns;
  int rows[kMaxPrecision - kMinPrecision + 1];
};
constexpr FewestWgmmaRows kFewestWgmmaRows[] = {
    {4096, {9, 9, 9, 9, 9, 9, 17}},
    {8192, {9, 9, 9, 9, 9, 9, 9}},
    {std::numeric_limits<std::int64_t>::max(), {5, 5, 5, 3, 3, 5, 9}},
};

int fewest_wgmma_rows(const Weights& weights) {
  const auto* place = std::ranges::find_if(kFewestWgmmaRows, [&](const FewestWgmmaRows& fewest) {
    return weights.in_features <= fewest.most_columns;
  });
  return place->rows[weights.precision - kMinPrecision];
}

/// The plane kernel's places with groups along K: beyond the two rows that mask-dot serves, and up
/// to so many columns of its mma, by precision 2 to 8, from which dequantization and cuBLAS take
/// less. At 14336 x 4096 with groups of 128 it takes 87 / 109 / 127 / 203 us for 64 rows at 2 / 3 /
/// 4 / 8 bits, in proportion to them from 16 on, and those 105 / 112 / 121 / 151 for any number.
/// Without groups the table kernel keeps its place.
constexpr std::int64_t kFewestPlaneRows = 3;
constexpr int kMostPlaneColumns[kMaxPrecision - kMinPrecision + 1] = {64, 64, 48, 48, 48, 48, 32};

/// Whether the plane kernel, which serves these products, beats all that come after mask-dot.
bool few_plane_columns(const Input& input, const Weights& weights) {
  return weights.form.groups(weights.in_features) > 1 &&
         input.rows * plane_mma_parts(weights) <=
             kMostPlaneColumns[weights.precision - kMinPrecision];
}

int mask_count(const Weights& weights) {
  const int signs = weights.form.sign_planes(weights.precision);
  return (1 << (weights.precision - signs)) - 1 + signs * weights.form.classes();
}

bool few_masks(const Input& input, const Weights& weights) {
  return input.rows <= 2 &&
         mask_count(weights) <= kMostMasks[input.rows - 1][weights.precision - kMinPrecision];
}

}  // namespace

LinearPath choose_path(const Input& input, std::span<const Product> products,
                       const Device& device) {
  const Weights& first = products.front().weights;
  const bool planes = plane_mma_serves(input, products, device) && few_plane_columns(input, first);
  if (planes && input.rows >= kFewestPlaneRows) return LinearPath::kPlaneMma;
  const bool masks = mask_dot_serves(input, {}, products, device);
  if (masks && few_masks(input, first)) return LinearPath::kMaskDot;
  if (input.rows >= fewest_wgmma_rows(first) && table_wgmma_serves(input, products, device)) {
    return LinearPath::kTableWgmma;
  }
  if (table_mma_serves(input, {}, products, device)) return LinearPath::kTableMma;
  if (masks) return LinearPath::kMaskDot;
  return planes ? LinearPath::kPlaneMma : LinearPath::kDequantize;
}

}  // namespace anyprec::cuda
