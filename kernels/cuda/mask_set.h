#pragma once

#include "anyprec/codebook.h"

namespace anyprec::cuda {

/// A Boolean function of a row's planes whose dot product with x the mask-dot kernel takes.
struct Mask {
  /// Product of planes of the table: bit kTableBits - 1 - p for plane p, as in a cell's number. 0:
  /// none.
  int product;
  int plane;  ///< a signed plane, or -1
  int klass;  ///< cells of this class only, or -1 for all
};

/// The masks that make up W_b of one codebook form at b = kTableBits + kSigns, with kTableBits =
/// min(b, L): for every row
///
///   w = c[0] + sum over masks i of c[1 + i] * mask_i.
///
/// The table is written in the basis of products of its planes (its Moebius transform), 2^T - 1
/// masks. A signed plane is +-alpha = 2 alpha p - alpha, whose constant goes into the table; by
/// classes it is 2 alpha_last p + sum over the other classes of 2 (alpha_class - alpha_last) p
/// [class].
template <int kTableBits, int kSigns, CellGroups kGroups>
struct MaskSet {
  static constexpr CodebookForm kForm{kTableBits, kGroups, 0};
  static constexpr int kBits = kTableBits;
  static constexpr int kSignPlanes = kSigns;
  static constexpr int kPrecision = kTableBits + kSigns;
  static constexpr int kClasses = kForm.classes();
  static constexpr int kCells = 1 << kTableBits;
  static constexpr int kProducts = kCells - 1;
  static constexpr int kMasks = kProducts + kSigns * kClasses;
  static constexpr int kCoefficients = 1 + kMasks;

  /// Products of many planes first: they are the dearest to make.
  static constexpr Mask mask(int i) {
    if (i >= kProducts) {
      const int sign = i - kProducts;
      const int klass = sign % kClasses;
      return {0, kTableBits + sign / kClasses, klass == kClasses - 1 ? -1 : klass};
    }
    for (int planes = kTableBits; planes >= 1; --planes) {
      for (int product = 1; product < kCells; ++product) {
        if (ones(product) != planes) continue;
        if (i-- == 0) return {product, -1, -1};
      }
    }
    return {0, -1, -1};
  }

  /// The place of mask i's coefficient among those of a row: that of a product is its number.
  static constexpr int coefficient(int i) {
    return i < kProducts ? mask(i).product : kCells + i - kProducts;
  }

  /// Whether plane p is a factor of mask i.
  static constexpr bool has_factor(int i, int p) {
    const Mask m = mask(i);
    return p < kTableBits ? (m.product >> (kTableBits - 1 - p)) & 1 : p == m.plane;
  }

  /// Whether masks [first, last) read plane p, be it through the indicator of a class.
  static constexpr bool reads_plane(int first, int last, int p) {
    for (int i = first; i < last; ++i) {
      if (has_factor(i, p) || (p < kTableBits && mask(i).klass >= 0)) return true;
    }
    return false;
  }

  /// Whether masks [first, last) need the indicator of a class.
  static constexpr bool needs_class(int first, int last, int klass) {
    for (int i = first; i < last; ++i) {
      if (mask(i).klass == klass) return true;
    }
    return false;
  }

 private:
  static constexpr int ones(int v) {
    int count = 0;
    for (; v != 0; v &= v - 1) ++count;
    return count;
  }
};

/// The cells of a class, as the truth table (ptx::boolean) of three bits. For two or three bits of
/// table they are the table's planes; for four they are planes 1 to 3, each xor plane 0, since such
/// classes are of mirrored pairs of cells.
template <class Set>
constexpr int class_truth(int klass) {
  int truth = 0;
  for (int i = 0; i < 8; ++i) {
    const int cell = Set::kBits == 2 ? i >> 1 : i;
    if (Set::kForm.class_of(cell) == klass) truth |= 1 << i;
  }
  return truth;
}

}  // namespace anyprec::cuda
