#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace anyprec {

inline constexpr int kMinPrecision = 2;
inline constexpr int kMaxPrecision = 8;

/// How the 2^L cells of the table part of a codebook share the coefficients of the signed planes
/// below it. The class of cell t, for t in [0, 2^L):
///   kOne   one class for all cells                                        ("one",  C = 1)
///   kIo    0 for the outermost pair of cells {0, 2^L - 1}, 1 for the rest ("io",   C = 2)
///   kSym   min(t, 2^L - 1 - t): mirrored pairs                            ("sym",  C = 2^(L-1))
///   kQu    L = 4 only: {0,15}, {1,14}, {2,3,12,13}, the rest              ("qu",   C = 4)
///   kCell  t: every cell has its own                                      ("cell", C = 2^L)
enum class CellGroups { kOne, kIo, kSym, kQu, kCell };

/// Parses "one", "io", "sym", "qu" or "cell". Throws InvalidArgument on anything else.
CellGroups parse_cell_groups(std::string_view name);
std::string_view to_string(CellGroups groups);

/// The one codebook form. The value of a weight with (b-bit) code c in output channel n and group
/// g:
///
///   value_b(c) = lut[top min(b, L) bits of c]
///              + sum over bits i = L+1 .. b of alpha[i - L - 1][class(top L bits)] * s_i,
///
/// with s_i = +1 when bit i of c (counted from the most significant, from 1) is set, and -1 when it
/// is not. L = lut_bits. L = 8 is a full table per channel (Any-Precision LLM, arXiv 2402.10517),
/// L = 0 is binary coding with an offset (AnyBCQ), values between are hybrids.
struct CodebookForm {
  int lut_bits = kMaxPrecision;  ///< L, 0..8
  CellGroups cell_groups = CellGroups::kOne;
  std::int64_t group_size = 0;  ///< weights along K that share a codebook; 0: the whole row

  /// Throws InvalidArgument unless 0 <= L <= 8, the cell groups exist for that L, and group_size is
  /// 0 or a positive multiple of 32.
  void validate() const;

  /// 2^min(b, L)
  constexpr int lut_entries(int precision) const {
    return 1 << (precision < lut_bits ? precision : lut_bits);
  }
  /// max(0, b - L)
  constexpr int sign_planes(int precision) const {
    return precision < lut_bits ? 0 : precision - lut_bits;
  }
  /// C
  constexpr int classes() const {
    switch (cell_groups) {
      case CellGroups::kOne:
        return 1;
      case CellGroups::kIo:
        return lut_bits > 1 ? 2 : 1;  // a table of two cells has no inner ones
      case CellGroups::kSym:
        return 1 << (lut_bits - 1);
      case CellGroups::kQu:
        return 4;
      case CellGroups::kCell:
        return 1 << lut_bits;
    }
    return 0;
  }
  /// The class of a cell in [0, 2^L).
  constexpr int class_of(int cell) const {
    const int opposite = (1 << lut_bits) - 1 - cell;
    const int mirrored = cell < opposite ? cell : opposite;
    switch (cell_groups) {
      case CellGroups::kOne:
        return 0;
      case CellGroups::kIo:
        return mirrored == 0 ? 0 : 1;
      case CellGroups::kSym:
        return mirrored;
      case CellGroups::kQu:
        return mirrored < 2 ? mirrored : (mirrored < 4 ? 2 : 3);
      case CellGroups::kCell:
        return cell;
    }
    return 0;
  }
  /// G = ceil(K / group_size), or 1
  constexpr std::int64_t groups(std::int64_t in_features) const {
    return group_size == 0 ? 1 : (in_features + group_size - 1) / group_size;
  }

  bool operator==(const CodebookForm&) const = default;
};

/// Expands one (channel, group) codebook at precision b into the table of its 2^b values.
/// lut: [2^min(b, L)], alpha: [max(0, b - L), C] (unused where b <= L), table: [2^b].
void expand_codebook(const CodebookForm& form, int precision, const float* lut, const float* alpha,
                     float* table);

}  // namespace anyprec
