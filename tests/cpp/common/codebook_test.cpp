#include "anyprec/codebook.h"

#include <gtest/gtest.h>

#include <vector>

#include "anyprec/error.h"

namespace anyprec {
namespace {

TEST(Codebook, FullTableExpandsToItself) {
  const CodebookForm form{};
  const std::vector<float> lut{-3, -1, 2, 5};
  std::vector<float> table(4);
  expand_codebook(form, 2, lut.data(), nullptr, table.data());
  EXPECT_EQ(table, lut);
}

TEST(Codebook, BinaryCodingIsOffsetPlusSignedPlanes) {
  const CodebookForm form{.lut_bits = 0};
  const float offset = 10;
  const std::vector<float> alpha{4, 1};
  std::vector<float> table(4);
  expand_codebook(form, 2, &offset, alpha.data(), table.data());
  EXPECT_EQ(table, (std::vector<float>{5, 7, 13, 15}));
}

TEST(Codebook, HybridTakesTheCoefficientOfItsCellsClass) {
  const CodebookForm form{.lut_bits = 2, .cell_groups = CellGroups::kIo};
  const std::vector<float> lut{-10, -1, 1, 10};
  const std::vector<float> alpha{3, 0.5};  // outermost pair, inner pair
  std::vector<float> table(8);
  expand_codebook(form, 3, lut.data(), alpha.data(), table.data());
  EXPECT_EQ(table, (std::vector<float>{-13, -7, -1.5, -0.5, 0.5, 1.5, 7, 13}));
}

TEST(Codebook, ClassesPartitionTheCells) {
  for (const auto groups :
       {CellGroups::kOne, CellGroups::kIo, CellGroups::kSym, CellGroups::kCell, CellGroups::kQu}) {
    for (int lut_bits = 1; lut_bits <= 8; ++lut_bits) {
      const CodebookForm form{.lut_bits = lut_bits, .cell_groups = groups};
      if (groups == CellGroups::kQu && lut_bits != 4) continue;
      std::vector<int> seen(form.classes());
      for (int cell = 0; cell < (1 << lut_bits); ++cell) {
        ASSERT_GE(form.class_of(cell), 0);
        ASSERT_LT(form.class_of(cell), form.classes());
        ++seen[form.class_of(cell)];
      }
      for (const int count : seen) EXPECT_GT(count, 0) << to_string(groups) << " L=" << lut_bits;
    }
  }
}

TEST(Codebook, NamesRoundTripAndUnknownOnesAreRefused) {
  for (const char* name : {"one", "io", "sym", "qu", "cell"}) {
    EXPECT_EQ(to_string(parse_cell_groups(name)), name);
  }
  EXPECT_THROW(parse_cell_groups("none"), InvalidArgument);
}

TEST(Codebook, ValidateRefusesWhatNoInstanceHas) {
  EXPECT_THROW((CodebookForm{.lut_bits = 9}.validate()), InvalidArgument);
  EXPECT_THROW((CodebookForm{.lut_bits = -1}.validate()), InvalidArgument);
  EXPECT_THROW((CodebookForm{.group_size = 100}.validate()), InvalidArgument);
  EXPECT_THROW((CodebookForm{.lut_bits = 3, .cell_groups = CellGroups::kQu}.validate()),
               InvalidArgument);
  EXPECT_THROW((CodebookForm{.lut_bits = 0, .cell_groups = CellGroups::kIo}.validate()),
               InvalidArgument);
  EXPECT_NO_THROW((CodebookForm{.lut_bits = 0, .group_size = 128}.validate()));
}

TEST(Codebook, TheLastGroupMayBeShort) {
  EXPECT_EQ((CodebookForm{.group_size = 128}.groups(576)), 5);
  EXPECT_EQ((CodebookForm{.group_size = 0}.groups(576)), 1);
}

}  // namespace
}  // namespace anyprec
