#pragma once

#include <cstdint>

/// Least squares of codebooks by conjugate gradients (src/fit/refit), by raw pointers.
///
/// Rows are independent, and so are the precisions of a row. Between these kernels lies one product
/// of matrices: moved times H. Codes are bit-reversed as in fit_sweep.h.
namespace anyprec::cpu {

inline constexpr int kRefitWidths = 7;  ///< the most precisions at once

/// The codebooks of all rows at a precision. U numbers a codebook, G codebooks a row.
struct RefitWidth {
  int precision;
  int unknowns;         ///< U
  const float* basis;   ///< [2^b, U]: values = basis @ coefficients; null for the identity
  float* coefficients;  ///< [rows, G U]
  float* gradient;      ///< [rows, G U]: basis^T P^T H (w - q)
  float* left;          ///< [rows, G U]: what is left of the ridged equations
  float* direction;     ///< [rows, G U]
  float* scale;         ///< [rows, G U]: the preconditioner
  float* turned;        ///< [rows, G U]: basis^T P^T H P basis @ direction
  float* ridge;         ///< [rows]
  float* unit;          ///< [rows]: of what is in `moved`, a power of two
  double* energies;     ///< [rows]: (w - q)^T H (w - q)
};

struct RefitRows {
  int widths;  ///< W, 1..7
  int first;   ///< of them; those before it are left as they are
  RefitWidth width[kRefitWidths];
  const float* weight;         ///< [rows, K]
  const std::uint8_t* codes;   ///< [rows, K]
  const float* diagonal;       ///< [K], of H
  const std::int64_t* places;  ///< [K]: columns, one codebook's after another's; null: as they are
  std::int64_t rows;
  std::int64_t columns;     ///< K
  std::int64_t group_size;  ///< columns of a codebook, the last one's may be fewer
  int codebooks;            ///< G
  float* error;             ///< [W, rows, K]: w - q
  float* pulled;            ///< [W, rows, K]: H (w - q)
  /// [W, rows, K]: values of the direction over the row's unit. fp32 on a CPU, where that is 1,
  /// fp16 on a GPU, with as many digits as TF32 has.
  void* moved;
  const float* product;  ///< [W, rows, K]: moved @ H
};

/// Writes w - q to `error`.
using RefitError = void (*)(const RefitRows& rows);
/// From `pulled`, which is error @ H: energies, gradient and the first direction, written to
/// `moved`. ridge_share: of the mean diagonal of the normal matrix; least_ridge is added to that.
using RefitBegin = void (*)(const RefitRows& rows, float ridge_share, float least_ridge);
/// From `product`: one step in the rows whose energy it lowers, on coefficients, energies and
/// `pulled`; unless it is the last, the next direction too. A row that takes no step stays there.
using RefitStep = void (*)(const RefitRows& rows, bool last);

struct RefitKernels {
  RefitError error;
  RefitBegin begin;
  RefitStep step;
};

const RefitKernels& refit_kernels();

}  // namespace anyprec::cpu
