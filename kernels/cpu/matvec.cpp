#include <algorithm>
#include <cmath>

#include "kernels/cpu/paths.h"
#include "kernels/cpu/row_tables.h"

namespace anyprec::cpu {
namespace {

constexpr std::int64_t kGrainWeights = 65536;  // fewer are not worth another thread

/// One row of W whose tables fixed point cannot hold, in fp32 tables and double sums.
void multiply_unbounded_row(const Weights& w, const KernelSet& kernels, std::int64_t row,
                            const Activations& x, const Output& y) {
  const std::int64_t groups = group_count(w);
  const std::int64_t table_size = groups * table_bytes(w.precision);
  const int width = kernels.step_units * kUnitColumns;
  const Scratch<std::uint8_t> high(table_size);
  const Scratch<std::uint8_t> low(table_size);
  const Scratch<float> columns(2 * width);
  make_exact_tables(kernels, w, row, high.data(), low.data());
  const DecodeKernel decode =
      kernels.decode(w.precision, has_half_tables(w), w.form.group_size > 0);
  float* x_columns = columns.data() + width;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double sum = 0;
    for (std::int64_t first = 0; first < x.columns; first += width) {
      decode(plane_row(w, row), first / kUnitColumns,
             {high.data(), nullptr, groups, blocks_per_group(w)},
             {low.data(), nullptr, groups, blocks_per_group(w)}, columns.data());
      const std::int64_t count = std::min<std::int64_t>(width, x.columns - first);
      load_floats(x.data, i * x.stride + first, count, x.type, x_columns);
      for (std::int64_t c = 0; c < count; ++c)
        sum += static_cast<double>(columns.data()[c]) * x_columns[c];
    }
    y.store(i, row, static_cast<float>(sum));
  }
}

/// Rows [begin, end) of one matrix.
void multiply_rows(const Weights& weights, const KernelSet& kernels, const Activations& x,
                   const FixedActivations& fixed, const Output& y, std::int64_t begin,
                   std::int64_t end) {
  const int rows = static_cast<int>(x.rows);
  const MatvecKernel matvec = kernels.matvec(weights.precision, rows, weights.form.group_size > 0);
  const std::int64_t group_blocks = blocks_per_group(weights);
  const std::int64_t groups = group_count(weights);
  const std::int64_t table_size = groups * table_bytes(weights.precision);
  const Scratch<std::uint8_t> tables(kRowBatch * table_size);
  const Scratch<float> scales(kRowBatch * groups);
  for (std::int64_t first = begin; first < end; first += kRowBatch) {
    const int count = static_cast<int>(std::min<std::int64_t>(kRowBatch, end - first));
    make_fixed_tables(kernels, weights, first, count, tables.data(), scales.data());
    float results[kMatvecRows][kRowBatch];
    matvec(plane_row(weights, first), {tables.data(), scales.data(), groups, group_blocks},
           fixed.rows(), count, results[0]);
    for (int i = 0; i < rows; ++i) y.store(i, first, results[i], count);
    for (int r = 0; r < count; ++r) {
      const float* const of_row = scales.data() + r * groups;
      if (std::any_of(of_row, of_row + groups, [](float scale) { return std::isnan(scale); }))
        multiply_unbounded_row(weights, kernels, first + r, x, y);
    }
  }
}

}  // namespace

void multiply_few(std::span<const Product> products, const KernelSet& kernels, const Activations& x,
                  const Executor& executor) {
  std::int64_t all_rows = 0;
  for (const Product& product : products) all_rows += product.weights.out_features;
  if (all_rows == 0) return;
  const FixedActivations fixed(kernels, x);
  const std::int64_t batch_weights = kRowBatch * std::max<std::int64_t>(1, x.columns);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainWeights / batch_weights);
  const std::int64_t batches = (all_rows + kRowBatch - 1) / kRowBatch;
  executor.parallel_for(batches, grain, [&](std::int64_t first_batch, std::int64_t last_batch) {
    const std::int64_t begin = first_batch * kRowBatch;
    const std::int64_t end = std::min(last_batch * kRowBatch, all_rows);
    std::int64_t before = 0;  // rows of the products that came already
    for (const Product& product : products) {
      const std::int64_t rows = product.weights.out_features;
      const std::int64_t first = std::max<std::int64_t>(begin - before, 0);
      const std::int64_t last = std::min(end - before, rows);
      if (first < last) {
        multiply_rows(product.weights, kernels, x, fixed,
                      {product.y, product.y_stride, product.bias, x.type}, first, last);
      }
      before += rows;
    }
  });
}

}  // namespace anyprec::cpu
