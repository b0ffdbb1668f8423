// The wgmma table kernel (kernels/cuda/table_wgmma.cuh) and the one that makes x's tiles for it
// (activation_tiles.cuh), their own sources on emulated blocks, against the reference.
// test_cuda_tables.cpp has them on a GPU.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/cpp/kernels/emulated/table_wgmma_case.h"

namespace anyprec::testing {
namespace {

using emulated::Landing;
using emulated::run;
using emulated::TableWgmmaCase;

constexpr ScalarType kHalf = ScalarType::kFloat16, kBrain = ScalarType::kBFloat16;
constexpr CodebookForm kBinary{0, CellGroups::kOne, 0}, kIo{3, CellGroups::kIo, 0};

/// When copies land, and the order of threads.
class EmulatedTableWgmma : public ::testing::TestWithParam<std::tuple<Landing, unsigned>> {
 protected:
  template <int kBits>
  void run(TableWgmmaCase of) {
    std::tie(of.landing, of.order) = GetParam();
    emulated::run<kBits>(of);
  }
};

TEST_P(EmulatedTableWgmma, FullTables) {
  run<2>({.n = {37}, .k = 300, .m = 3});
  run<3>({.n = {70}, .k = 264, .m = 33, .type = kBrain});
  run<4>({.n = {20}, .k = 130, .m = 5, .with_bias = false});
  run<5>({.n = {64}, .k = 256, .m = 65, .padding = 3});
  run<2>({.n = {50}, .k = 410, .m = 70, .type = kBrain});
  run<6>({.n = {20}, .k = 600, .m = 17, .type = kBrain, .padding = 1});
  run<7>({.n = {33}, .k = 257, .m = 40, .padding = 2});
  run<8>({.n = {20}, .k = 384, .m = 66});
}

TEST_P(EmulatedTableWgmma, ClustersOfBlocks) {
  run<3>({.n = {70}, .k = 300, .m = 9, .cluster = 2});
  run<4>({.n = {70}, .k = 1100, .m = 16, .form = kIo, .type = kBrain, .cluster = 4});
  run<2>({.n = {200}, .k = 1030, .m = 5, .cluster = 8});
  run<6>({.n = {70}, .k = 520, .m = 11, .cluster = 2});
  run<3>({.n = {70}, .k = 520, .m = 37, .cluster = 4});
}

TEST_P(EmulatedTableWgmma, SeveralRunsAndProducts) {
  run<4>({.n = {250}, .k = 300, .m = 17, .clusters = 2, .padding = 8});
  run<5>({.n = {70, 9, 130}, .k = 520, .m = 34, .type = kBrain, .cluster = 2});
  run<3>({.n = {9, 400}, .k = 256, .m = 8, .form = kIo, .cluster = 2, .clusters = 2, .padding = 5});
}

TEST_P(EmulatedTableWgmma, RingsShorterThanARun) {
  run<3>({.n = {20}, .k = 2300, .m = 5});
  run<4>({.n = {70}, .k = 2100, .m = 70, .type = kBrain, .cluster = 2});
}

INSTANTIATE_TEST_SUITE_P(Orders, EmulatedTableWgmma,
                         ::testing::Values(std::tuple{Landing::kLate, 0u},
                                           std::tuple{Landing::kEarly, 1u},
                                           std::tuple{Landing::kLate, 2u}),
                         [](const auto& info) {
                           const bool late = std::get<Landing>(info.param) == Landing::kLate;
                           return (late ? "LandLateOrder" : "LandEarlyOrder") +
                                  std::to_string(std::get<unsigned>(info.param));
                         });

template <int kBits>
void run_form(const CodebookForm& form) {
  run<kBits>({.n = {20}, .k = 264, .m = 4, .form = form, .order = 3});
}

TEST(EmulatedTableWgmmaForms, BinaryCoding) {
  run_form<2>(kBinary);
  run_form<3>(kBinary);
  run_form<5>(kBinary);
  run_form<8>(kBinary);
  run<4>({.n = {37}, .k = 300, .m = 70, .form = kBinary, .type = kBrain, .order = 4});
}

TEST(EmulatedTableWgmmaForms, Hybrids) {
  run_form<4>({2, CellGroups::kOne, 0});
  run_form<8>({2, CellGroups::kSym, 0});
  run_form<4>({3, CellGroups::kSym, 0});
  run_form<5>({3, CellGroups::kCell, 0});
  run_form<7>(kIo);
  run_form<2>(kIo);
  run_form<3>({2, CellGroups::kOne, 0});
  run_form<3>({2, CellGroups::kSym, 0});
  run_form<3>({1, CellGroups::kOne, 0});
  run_form<2>({1, CellGroups::kOne, 0});
  run_form<5>({4, CellGroups::kQu, 0});
  run_form<6>({4, CellGroups::kQu, 0});
  run<8>({.n = {37}, .k = 300, .m = 100, .form = {4, CellGroups::kQu, 0}, .order = 5});
}

TEST(EmulatedTableWgmmaForms, SeveralCellsARun) {
  run_form<7>({6, CellGroups::kOne, 0});
  run_form<8>({6, CellGroups::kSym, 0});
  run_form<8>({7, CellGroups::kIo, 0});
  run_form<8>({7, CellGroups::kCell, 0});
}

TEST(EmulatedTableWgmmaRows, OfX) {
  for (const std::int64_t m : {1, 2, 8, 9, 16, 32, 64, 128}) {
    run<3>({.n = {20}, .k = 200, .m = m, .type = m % 3 == 1 ? kBrain : kHalf});
    run<5>({.n = {20}, .k = 200, .m = m, .type = m % 3 == 1 ? kBrain : kHalf});
  }
}

}  // namespace
}  // namespace anyprec::testing
