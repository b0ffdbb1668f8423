#include "src/engine/projection.h"

#include <ATen/ATen.h>

#include <utility>

#include "anyprec/linear.h"
#include "kernels/cpu/dense.h"
#include "src/ops/checks.h"
#include "src/ops/executor.h"

namespace anyprec::engine {
namespace {

void multiply_cpu(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y) {
  auto* const bytes = static_cast<std::byte*>(y.mutable_data_ptr());
  std::vector<cpu::Product> products;
  for (const Part& part : parts) {
    const at::Tensor& bias = part.projection->bias;
    products.push_back({.weights = part.projection->weights(part.precision),
                        .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
                        .y = bytes + part.offset * static_cast<std::int64_t>(y.element_size()),
                        .y_stride = y.size(1)});
  }
  cpu::linear(products, x.const_data_ptr(), x.size(1), x.size(0),
              ops::to_scalar_type(x.scalar_type()), ops::TorchExecutor());
}

void multiply(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
              [[maybe_unused]] const BitPlanes* planes) {
#ifdef ANYPREC_ENGINE_ON_CUDA
  if (x.is_cuda()) return multiply_cuda(x, parts, y, planes);
#endif
  multiply_cpu(x, parts, y);
}

// Rows of x up to which reading half the bytes is faster than libtorch's fp32 product.
constexpr std::int64_t kFewRows = 16;

at::Tensor dense_product(const Projection& projection, const at::Tensor& x) {
  const at::Tensor& weight = projection.dense;
  if (weight.scalar_type() == x.scalar_type()) {
    return at::linear(x, weight, optional(projection.bias));
  }
  if (x.size(0) > kFewRows) {
    return at::linear(x, weight.to(x.scalar_type()), optional(projection.bias));
  }
  at::Tensor y = at::empty({x.size(0), projection.out_features}, x.options());
  const cpu::DenseProduct product{
      .weight_type = ops::to_scalar_type(weight.scalar_type()),
      .rows = x.size(0),
      .out_features = projection.out_features,
      .in_features = projection.in_features,
      .x = x.const_data_ptr<float>(),
      .weight = weight.const_data_ptr(),
      .bias = projection.bias.defined() ? projection.bias.const_data_ptr<float>() : nullptr,
      .y = y.mutable_data_ptr<float>()};
  cpu::dense_product(product, ops::TorchExecutor());
  return y;
}

}  // namespace

at::Tensor narrowed(const at::Tensor& weight) {
  if (!weight.is_cpu() || weight.scalar_type() != at::kFloat) return weight;
  for (const at::ScalarType half : {at::kHalf, at::kBFloat16}) {
    at::Tensor narrow = weight.to(half);
    if (at::equal(narrow.to(at::kFloat), weight)) return narrow;
  }
  return weight;
}

Weights Projection::weights(int precision) const {
  const auto b = static_cast<std::size_t>(precision);
  // Without signed planes it is a full table, whatever the wider precisions are (see checks.h).
  CodebookForm own = form;
  if (!alpha[b].defined()) own = {.group_size = form.group_size};
  return {.out_features = out_features,
          .in_features = in_features,
          .form = own,
          .precision = precision,
          .planes = planes.const_data_ptr<std::uint8_t>(),
          .lut = static_cast<const std::uint16_t*>(lut[b].const_data_ptr()),
          .alpha = alpha[b].defined() ? static_cast<const std::uint16_t*>(alpha[b].const_data_ptr())
                                      : nullptr};
}

std::int64_t Projection::bytes(int precision) const {
  const auto size = [](const at::Tensor& t) {
    return t.defined() ? static_cast<std::int64_t>(t.nbytes()) : 0;
  };
  if (!quantized()) return size(dense) + size(bias);
  const auto b = static_cast<std::size_t>(precision);
  return precision * out_features * ((in_features + 7) / 8) + size(lut[b]) + size(alpha[b]) +
         size(bias);
}

ProjectionGroup::ProjectionGroup(std::vector<Projection> projections)
    : projections_(std::move(projections)) {
  for (const Projection& each : projections_) out_features_ += each.out_features;
  for (const Projection& each : projections_) {
    if (each.quantized() || projections_.size() == 1) return;
    if (each.bias.defined() != projections_.front().bias.defined()) return;
  }
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> biases;
  for (Projection& each : projections_) {
    weights.push_back(std::exchange(each.dense, {}));
    if (each.bias.defined()) biases.push_back(std::exchange(each.bias, {}));
  }
  Projection all;
  all.out_features = out_features_;
  all.in_features = projections_.front().in_features;
  all.dense = at::cat(weights);
  if (!biases.empty()) all.bias = at::cat(biases);
  projections_ = {std::move(all)};
}

bool ProjectionGroup::takes_planes(const at::Tensor& like, std::int64_t rows,
                                   const Assignment& assignment) const {
#ifdef ANYPREC_ENGINE_ON_CUDA
  if (!can_write_planes(like.device(), rows)) return false;
  for (const Projection& each : projections_) {
    if (!each.quantized()) continue;
    return takes_planes_cuda({&each, assignment[each.index], 0}, like.scalar_type(), rows);
  }
#else
  (void)like, (void)rows, (void)assignment;
#endif
  return false;
}

at::Tensor ProjectionGroup::operator()(const at::Tensor& x, const Assignment& assignment,
                                       const BitPlanes* planes) const {
  if (projections_.size() == 1 && !projections_[0].quantized()) {
    return dense_product(projections_[0], x);
  }
  at::Tensor y = at::empty({x.size(0), out_features_}, x.options());
  std::array<Part, 4> parts;
  std::size_t count = 0;
  std::int64_t offset = 0;
  for (const Projection& each : projections_) {
    if (each.quantized()) {
      parts[count++] = {&each, assignment[each.index], offset};
    } else {
      y.narrow(1, offset, each.out_features).copy_(dense_product(each, x));
    }
    offset += each.out_features;
  }
  multiply(x, {parts.data(), count}, y, planes);
  return y;
}

at::Tensor ProjectionGroup::fused(const at::Tensor& x, const Assignment& assignment,
                                  const Fusion& fusion, const BitPlanes* planes) const {
#ifdef ANYPREC_ENGINE_ON_CUDA
  if (!x.is_cuda() || !x.is_contiguous()) return {};
  std::array<Part, 4> parts;
  std::size_t count = 0;
  std::int64_t offset = 0;
  for (const Projection& each : projections_) {
    if (!each.quantized()) return {};
    parts[count++] = {&each, assignment[each.index], offset};
    offset += each.out_features;
  }
  const at::Tensor y =
      fusion.sum.defined() ? fusion.sum : at::empty({x.size(0), out_features_}, x.options());
  if (multiply_fused_cuda(x, {parts.data(), count}, y, fusion, planes)) return y;
#else
  (void)x, (void)assignment, (void)fusion, (void)planes;
#endif
  return {};
}

std::int64_t ProjectionGroup::bytes(const Assignment& assignment) const {
  std::int64_t total = 0;
  for (const Projection& each : projections_) {
    total += each.bytes(each.quantized() ? assignment[each.index] : 0);
  }
  return total;
}

}  // namespace anyprec::engine
