#include "anyprec/linear.h"

#include <string>

#include "anyprec/error.h"
#include "kernels/cpu/float_types.h"
#include "kernels/cpu/paths.h"
#include "kernels/cpu/row_tables.h"

namespace anyprec::cpu {
namespace {

void check(const char* function, bool condition, const std::string& message) {
  if (!condition) throw InvalidArgument(std::string(function) + ": " + message);
}

void check_weights(const char* function, const Weights& w) {
  w.form.validate();
  check(function, w.precision >= kMinPrecision && w.precision <= kMaxPrecision,
        "precision is " + std::to_string(w.precision) + ", wanted 2 to 8");
  check(function, w.out_features >= 0 && w.in_features >= 0,
        "shape is [" + std::to_string(w.out_features) + ", " + std::to_string(w.in_features) +
            "], wanted no negative size");
  if (w.out_features == 0) return;
  check(function, w.lut != nullptr, "lut is null");
  check(function, w.planes != nullptr || w.in_features == 0, "planes is null");
  check(function, w.alpha != nullptr || w.form.sign_planes(w.precision) == 0,
        "alpha is null, but precision " + std::to_string(w.precision) + " has " +
            std::to_string(w.form.sign_planes(w.precision)) + " signed planes");
}

}  // namespace

const KernelSet& kernels_for(Isa isa) {
  if (!isa_supported(isa)) throw InvalidArgument("this machine has no " + to_string(isa));
#ifdef ANYPREC_CPU_X86
  if (isa == Isa::kAvx512Vbmi) return avx512vbmi_kernels();
  if (isa == Isa::kAvx512) return avx512_kernels();
  if (isa == Isa::kAvx2) return avx2_kernels();
#endif
  return scalar_kernels();
}

void linear(std::span<const Product> products, const void* x, std::int64_t x_stride, std::int64_t m,
            ScalarType type, const Executor& executor, Isa isa) {
  check("linear", m >= 0, "m is " + std::to_string(m) + ", wanted at least 0");
  const KernelSet& kernels = kernels_for(isa);
  for (const Product& product : products) {
    const Weights& weights = product.weights;
    check_weights("linear", weights);
    check("linear", weights.in_features == products.front().weights.in_features,
          "in_features is " + std::to_string(weights.in_features) +
              ", wanted the first product's " +
              std::to_string(products.front().weights.in_features));
    if (m == 0 || weights.out_features == 0) continue;
    check("linear", x != nullptr || weights.in_features == 0, "x is null");
    check("linear", product.y != nullptr, "y is null");
    check("linear", m == 1 || product.y_stride >= weights.out_features,
          "y_stride is " + std::to_string(product.y_stride) +
              ", wanted at least out_features = " + std::to_string(weights.out_features));
  }
  if (m == 0 || products.empty()) return;
  const Activations activations{x, x_stride, m, products.front().weights.in_features, type};
  if (m <= kMatvecRows) return multiply_few(products, kernels, activations, executor);
  for (const Product& product : products) {
    if (product.weights.out_features == 0) continue;
    multiply_many(product.weights, kernels, activations,
                  {product.y, product.y_stride, product.bias, type}, executor);
  }
}

void linear(const Weights& weights, const void* x, std::int64_t x_stride, std::int64_t m,
            const void* bias, void* y, std::int64_t y_stride, ScalarType type,
            const Executor& executor, Isa isa) {
  const Product product{weights, bias, y, y_stride};
  linear({&product, 1}, x, x_stride, m, type, executor, isa);
}

void dequantize(const Weights& weights, std::int64_t row_begin, std::int64_t row_end, void* out,
                ScalarType type, Isa isa) {
  check_weights("dequantize", weights);
  check("dequantize", 0 <= row_begin && row_begin <= row_end && row_end <= weights.out_features,
        "rows [" + std::to_string(row_begin) + ", " + std::to_string(row_end) + ") of " +
            std::to_string(weights.out_features));
  const KernelSet& kernels = kernels_for(isa);
  const std::int64_t columns = weights.in_features;
  if (row_begin == row_end || columns == 0) return;
  check("dequantize", out != nullptr, "out is null");

  const std::int64_t width = kernels.step_units * kUnitColumns;
  const std::int64_t groups = group_count(weights);
  const std::int64_t table_size = groups * table_bytes(weights.precision);
  const Scratch<std::uint8_t> high(table_size);
  const Scratch<std::uint8_t> low(table_size);
  const Scratch<float> decoded(width);
  const DecodeKernel decode =
      kernels.decode(weights.precision, has_half_tables(weights), weights.form.group_size > 0);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    make_exact_tables(kernels, weights, row, high.data(), low.data());
    for (std::int64_t first = 0; first < columns; first += width) {
      decode(plane_row(weights, row), first / kUnitColumns,
             {high.data(), nullptr, groups, blocks_per_group(weights)},
             {low.data(), nullptr, groups, blocks_per_group(weights)}, decoded.data());
      const std::int64_t count = width < columns - first ? width : columns - first;
      store_floats(decoded.data(), count, type, out, (row - row_begin) * columns + first);
    }
  }
}

}  // namespace anyprec::cpu
