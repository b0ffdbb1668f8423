#include "anyprec/codebook.h"

#include <array>
#include <utility>

#include "anyprec/error.h"

namespace anyprec {
namespace {

constexpr std::array<std::pair<CellGroups, std::string_view>, 5> kNames{{
    {CellGroups::kOne, "one"},
    {CellGroups::kIo, "io"},
    {CellGroups::kSym, "sym"},
    {CellGroups::kQu, "qu"},
    {CellGroups::kCell, "cell"},
}};

}  // namespace

CellGroups parse_cell_groups(std::string_view name) {
  for (const auto& [groups, text] : kNames) {
    if (text == name) return groups;
  }
  throw InvalidArgument("cell_groups: found \"" + std::string(name) +
                        "\", wanted one of one, io, sym, qu, cell");
}

std::string_view to_string(CellGroups groups) {
  for (const auto& [value, text] : kNames) {
    if (value == groups) return text;
  }
  throw InvalidArgument("cell_groups: unknown value " + std::to_string(static_cast<int>(groups)));
}

void CodebookForm::validate() const {
  if (lut_bits < 0 || lut_bits > kMaxPrecision) {
    throw InvalidArgument("lut_bits: found " + std::to_string(lut_bits) + ", wanted 0 to 8");
  }
  if (group_size < 0 || group_size % 32 != 0) {
    throw InvalidArgument("group_size: found " + std::to_string(group_size) +
                          ", wanted 0 (the whole row) or a positive multiple of 32");
  }
  const bool needs_pair = cell_groups == CellGroups::kIo || cell_groups == CellGroups::kSym;
  if (needs_pair && lut_bits < 1) {
    throw InvalidArgument("cell_groups: \"" + std::string(to_string(cell_groups)) +
                          "\" needs lut_bits of at least 1, found " + std::to_string(lut_bits));
  }
  if (cell_groups == CellGroups::kQu && lut_bits != 4) {
    throw InvalidArgument("cell_groups: \"qu\" needs lut_bits 4, found " +
                          std::to_string(lut_bits));
  }
}

void expand_codebook(const CodebookForm& form, int precision, const float* lut, const float* alpha,
                     float* table) {
  const int planes = form.sign_planes(precision);
  const int classes = form.classes();
  for (int code = 0; code < (1 << precision); ++code) {
    const int cell = code >> planes;
    float value = lut[cell];
    for (int i = 0; i < planes; ++i) {
      const float a = alpha[i * classes + form.class_of(cell)];
      value += (code >> (planes - 1 - i)) & 1 ? a : -a;
    }
    table[code] = value;
  }
}

}  // namespace anyprec
