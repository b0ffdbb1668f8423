#include <ATen/core/dispatch/Dispatcher.h>

#include "anyprec/torch.h"

namespace anyprec::torch {
namespace {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size,
                  std::string_view cell_groups) {
  static const auto op = find<decltype(linear)>("anyprec::linear");
  return op.call(x, planes, lut, alpha, bias, precision, in_features, group_size, cell_groups);
}

at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size,
                      std::string_view cell_groups, at::ScalarType dtype) {
  static const auto op = find<decltype(dequantize)>("anyprec::dequantize");
  return op.call(planes, lut, alpha, precision, in_features, group_size, cell_groups, dtype);
}

at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features) {
  static const auto op = find<decltype(pack_planes)>("anyprec::pack_planes");
  return op.call(planes, in_features);
}

at::Tensor unpack_planes(const at::Tensor& planes, std::int64_t out_features,
                         std::int64_t in_features) {
  static const auto op = find<decltype(unpack_planes)>("anyprec::unpack_planes");
  return op.call(planes, out_features, in_features);
}

at::Tensor sum_by_code(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                       std::int64_t group_size) {
  static const auto op = find<decltype(sum_by_code)>("anyprec::sum_by_code");
  return op.call(values, codes, precision, group_size);
}

}  // namespace anyprec::torch
