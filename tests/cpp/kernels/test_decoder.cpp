#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "anyprec/error.h"
#include "kernels/cpu/decoder.h"
#include "kernels/cpu/float_types.h"
#include "kernels/reference/decoder.h"

namespace anyprec::testing {
namespace {

/// Random numbers of a type in host memory.
class Elements {
 public:
  Elements(std::int64_t count, ScalarType type, unsigned seed, float scale = 1.0f)
      : type_(type), count_(count), bytes_(static_cast<std::size_t>(count * 4)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> floats(static_cast<std::size_t>(count));
    for (float& value : floats) value = normal(random);
    cpu::store_floats(floats.data(), count, type, bytes_.data(), 0);
  }
  void* data() { return bytes_.data(); }
  const std::vector<std::uint8_t>& bytes() const { return bytes_; }

  /// Within the type's precision of `wanted`, from element `first` on.
  void expect_near(const std::vector<double>& wanted, const std::string& name,
                   std::int64_t first = 0) const {
    const double step = type_ == ScalarType::kFloat32    ? 0x1p-19
                        : type_ == ScalarType::kBFloat16 ? 0x1p-8
                                                         : 0x1p-10;
    ASSERT_LE(first + static_cast<std::int64_t>(wanted.size()), count_);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const double found =
          reference::element(bytes_.data(), type_, first + static_cast<std::int64_t>(i));
      ASSERT_NEAR(found, wanted[i], step * (std::abs(wanted[i]) + 0.5)) << name << " at " << i;
    }
  }

 private:
  ScalarType type_;
  std::int64_t count_;
  std::vector<std::uint8_t> bytes_;
};

/// On every instruction set of the machine and every type.
template <class Body>
void for_each_kernel(const Body& body) {
  for (const cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (!cpu::isa_supported(isa)) continue;
    for (const ScalarType type :
         {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16}) {
      body(isa, type,
           cpu::to_string(isa) + ", type " + std::to_string(static_cast<int>(type)) + ", ");
    }
  }
}

TEST(Decoder, NormIsThatOfTheSumWhichBecomesTheResidual) {
  for_each_kernel([](cpu::Isa isa, ScalarType type, const std::string& name) {
    for (const std::int64_t columns : {1, 15, 16, 100, 576}) {
      constexpr std::int64_t kRows = 3;
      Elements x(kRows * columns, type, 1), residual(kRows * columns, type, 2);
      Elements weight(columns, type, 3), y(kRows * columns, type, 4);
      for (void* const sum : {static_cast<void*>(nullptr), residual.data()}) {
        const decoder::RmsNorm norm{.type = type,
                                    .rows = kRows,
                                    .columns = columns,
                                    .x = x.data(),
                                    .residual = sum,
                                    .weight = weight.data(),
                                    .eps = 1e-5f,
                                    .offset = 1.0f,
                                    .y = y.data()};
        const reference::Norm wanted = reference::rms_norm(norm);
        cpu::rms_norm(norm, SerialExecutor(), isa);
        y.expect_near(wanted.y, name + std::to_string(columns) + " columns");
        residual.expect_near(wanted.residual, name + "residual");
      }
    }
  });
}

TEST(Decoder, GateIsActivatedAndMultiplied) {
  for_each_kernel([](cpu::Isa isa, ScalarType type, const std::string& name) {
    for (const auto activation : {decoder::Activation::kSilu, decoder::Activation::kGeluTanh}) {
      for (const std::int64_t columns : {1, 37, 128}) {
        constexpr std::int64_t kRows = 2;
        Elements gate_up(kRows * 2 * columns, type, 5, 4.0f), y(kRows * columns, type, 6);
        const decoder::Gated gated{.type = type,
                                   .rows = kRows,
                                   .columns = columns,
                                   .activation = activation,
                                   .gate_up = gate_up.data(),
                                   .y = y.data()};
        cpu::gated(gated, SerialExecutor(), isa);
        y.expect_near(reference::gated(gated), name + std::to_string(columns) + " columns");
      }
    }
  });
}

TEST(Decoder, QueriesAndKeysTurnAndGoToTheCache) {
  for_each_kernel([](cpu::Isa isa, ScalarType type, const std::string& name) {
    for (const auto& [size, rotary] : {std::pair{64, 64}, {80, 20}, {6, 2}}) {
      const decoder::CacheShape cache{.blocks = 2, .block_size = 4, .heads = 2, .head_size = size};
      constexpr int kRows = 3, kQueryHeads = 4;
      Elements qkv(kRows * (kQueryHeads + 4) * size, type, 7),
          q(kRows * kQueryHeads * size, type, 8);
      Elements keys(8 * 2 * size, type, 9), values(8 * 2 * size, type, 10), norm(size, type, 11);
      Elements angles(5 * rotary, ScalarType::kFloat32, 12);
      const std::int32_t positions[kRows] = {4, 0, 2};
      const std::int64_t slots[kRows] = {7, -1, 0};
      const decoder::RotaryToCache rotate{
          .type = type,
          .rows = kRows,
          .query_heads = kQueryHeads,
          .table_rows = 5,
          .rotary = rotary,
          .qkv = qkv.data(),
          .positions = positions,
          .slots = slots,
          .cos = static_cast<const float*>(angles.data()),
          .sin = static_cast<const float*>(angles.data()) + 5 * rotary / 2,
          .q_norm = norm.data(),
          .k_norm = nullptr,
          .eps = 1e-6f,
          .offset = 0.0f,
          .cache = cache,
          .key_cache = keys.data(),
          .value_cache = values.data(),
          .q = q.data()};
      const reference::Heads wanted = reference::rotary_to_cache(rotate);
      cpu::rotary_to_cache(rotate, SerialExecutor(), isa);
      q.expect_near(wanted.q, name + "queries");
      for (const int row : {0, 2}) {
        const auto of_row = [&](const std::vector<double>& all) {
          return std::vector<double>(all.begin() + row * 2 * size,
                                     all.begin() + (row + 1) * 2 * size);
        };
        keys.expect_near(of_row(wanted.keys), name + "keys", slots[row] * 2 * size);
        values.expect_near(of_row(wanted.values), name + "values", slots[row] * 2 * size);
      }
    }
  });
}

/// Three sequences: a prompt, one row, and a chunk after others; a row of none.
struct AttentionCase {
  static constexpr int kRows = 40, kQueryHeads = 6, kHeads = 2, kBlockSize = 12, kBlocks = 20;
  Elements q, keys, values, y;
  std::vector<std::int32_t> table{3, 1, 4, 15, 9, 2, 6, 5, 0, 18, 7, 19};
  std::vector<std::int32_t> start{0, 20, 21, 39};
  std::vector<std::int32_t> lengths{20, 33, 48};
  decoder::Attention attention;

  AttentionCase(ScalarType type, int size, int window, float softcap)
      : q(kRows * kQueryHeads * size, type, 13),
        keys(kBlocks * kBlockSize * kHeads * size, type, 14),
        values(kBlocks * kBlockSize * kHeads * size, type, 15),
        y(kRows * kQueryHeads * size, type, 16) {
    attention = {
        .type = type,
        .rows = kRows,
        .sequences = 3,
        .query_heads = kQueryHeads,
        .max_blocks = 4,
        .scale = 1.0f / std::sqrt(static_cast<float>(size)),
        .window = window,
        .softcap = softcap,
        .q = q.data(),
        .cache = {.blocks = kBlocks, .block_size = kBlockSize, .heads = kHeads, .head_size = size},
        .key_cache = keys.data(),
        .value_cache = values.data(),
        .block_table = table.data(),
        .sequence_start = start.data(),
        .lengths = lengths.data(),
        .y = y.data()};
  }
};

TEST(Decoder, AttentionIsCausalOverTheCache) {
  for_each_kernel([](cpu::Isa isa, ScalarType type, const std::string& name) {
    for (const auto& [size, window, softcap] :
         {std::tuple{64, 0, 0.0f}, {20, 7, 0.0f}, {48, 0, 3.0f}}) {
      AttentionCase c(type, size, window, softcap);
      cpu::attention(c.attention, SerialExecutor(), isa);
      c.y.expect_near(reference::attention(c.attention), name + std::to_string(size));
    }
  });
}

TEST(Decoder, AttentionGivesTheSameBytesOnAnyNumberOfThreads) {
  AttentionCase one(ScalarType::kBFloat16, 64, 0, 0.0f), many(ScalarType::kBFloat16, 64, 0, 0.0f);
  cpu::attention(one.attention, SerialExecutor());
  cpu::attention(many.attention, ThreadPool(3));
  EXPECT_EQ(one.y.bytes(), many.y.bytes());
}

TEST(Decoder, NamesEntriesThatPointOutOfTheCache) {
  AttentionCase c(ScalarType::kFloat32, 64, 0, 0.0f);
  c.table[1] = 20;
  try {
    cpu::attention(c.attention, SerialExecutor());
    FAIL() << "block 20 of 20 was taken";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "attention: block_table[0]: found block 20 of 20");
  }
}

}  // namespace
}  // namespace anyprec::testing
