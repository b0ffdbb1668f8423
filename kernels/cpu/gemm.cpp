#include <algorithm>
#include <cstring>

#include "kernels/cpu/paths.h"
#include "kernels/cpu/row_tables.h"

namespace anyprec::cpu {
namespace {

/// Rows of x that are multiplied before the next ones are looked at: every tile of W reads them
/// all, so they should stay in a cache, and W is decoded again for each pass.
constexpr std::int64_t kPassRows = 128;

/// Up to kTileRows rows of W and the memory to multiply them.
class Tile {
 public:
  Tile(const Weights& weights, const KernelSet& kernels, std::int64_t m)
      : weights_(weights),
        kernels_(kernels),
        width_(kernels.step_units * kUnitColumns),
        table_stride_(group_count(weights) * table_bytes(weights.precision)),
        decode_(kernels.decode(weights.precision, has_half_tables(weights),
                               weights.form.group_size > 0)),
        high_(kTileRows * table_stride_),
        low_(has_half_tables(weights) ? 0 : kTileRows * table_stride_),
        decoded_(kTileRows * width_),
        sums_(m * kTileRows * (kernels.lanes + 1)) {}

  void multiply(std::int64_t first_row, int rows, const SteppedActivations& x, std::int64_t m,
                const Output& y) {
    for (int r = 0; r < rows; ++r) {
      make_exact_tables(kernels_, weights_, first_row + r, high_.data() + r * table_stride_,
                        low_.data() + (has_half_tables(weights_) ? 0 : r * table_stride_));
    }
    const std::int64_t vectors = m * kTileRows;
    std::memset(sums_.data(), 0, vectors * kernels_.lanes * sizeof(float));
    for (std::int64_t s = 0; s < step_count(kernels_, weights_.in_features); ++s) {
      const std::int64_t real = std::min(width_, weights_.in_features - s * width_);
      const std::int64_t columns = (real + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes;
      decode_step(first_row, rows, s, real, columns);
      kernels_.multiply(decoded_.data(), rows, x.step(s), m, static_cast<int>(columns),
                        sums_.data());
    }
    float* totals = sums_.data() + vectors * kernels_.lanes;
    kernels_.reduce(sums_.data(), vectors, totals);
    for (std::int64_t i = 0; i < m; ++i)
      for (int r = 0; r < rows; ++r) y.store(i, first_row + r, totals[i * kTileRows + r]);
  }

 private:
  /// `real` columns of a step, and padding up to `columns`.
  void decode_step(std::int64_t first_row, int rows, std::int64_t step, std::int64_t real,
                   std::int64_t columns) {
    const std::int64_t groups = group_count(weights_);
    const std::int64_t group_blocks = blocks_per_group(weights_);
    for (int r = 0; r < rows; ++r) {
      float* out = decoded_.data() + r * width_;
      const std::int64_t table = r * table_stride_;
      decode_(
          plane_row(weights_, first_row + r), step * kernels_.step_units,
          {high_.data() + table, nullptr, groups, group_blocks},
          {low_.data() + (has_half_tables(weights_) ? 0 : table), nullptr, groups, group_blocks},
          out);
      // Padding decodes to a value of code 0, which may be infinite: make it count for nothing.
      std::fill(out + real, out + columns, 0.0f);
    }
  }

  const Weights& weights_;
  const KernelSet& kernels_;
  const std::int64_t width_;
  const std::int64_t table_stride_;
  const DecodeKernel decode_;
  const Scratch<std::uint8_t> high_;
  const Scratch<std::uint8_t> low_;
  const Scratch<float> decoded_;  // [kTileRows, width_]
  const Scratch<float> sums_;     // [M, kTileRows, lanes], then [M, kTileRows]
};

}  // namespace

void multiply_many(const Weights& weights, const KernelSet& kernels, const Activations& x,
                   const Output& y, const Executor& executor) {
  const std::int64_t n = weights.out_features;
  const std::int64_t tiles = (n + kTileRows - 1) / kTileRows;
  for (std::int64_t first = 0; first < x.rows; first += kPassRows) {
    const Activations rows = x.slice(first, std::min(kPassRows, x.rows - first));
    const Output results = y.from(first);
    const SteppedActivations stepped(kernels, rows, executor);
    executor.parallel_for(tiles, 1, [&](std::int64_t begin, std::int64_t end) {
      Tile tile(weights, kernels, rows.rows);
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t row = t * kTileRows;
        tile.multiply(row, static_cast<int>(std::min<std::int64_t>(kTileRows, n - row)), stepped,
                      rows.rows, results);
      }
    });
  }
}

}  // namespace anyprec::cpu
