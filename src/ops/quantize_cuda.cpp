// The quantizer's tree and its planes on a GPU; on a CPU they are the C++ library's.
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "anyprec/planes.h"
#include "kernels/cuda/code_planes.h"
#include "kernels/cuda/tree.h"
#include "src/ops/checks.h"
#include "src/ops/errors.h"
#include "src/quantize/validate.h"

namespace anyprec::ops {
namespace {

using Quantized = std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor>;

void check_tensors(const std::string& name, const at::Tensor& weight,
                   const std::optional<at::Tensor>& sensitivities) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), name,
                    ": wanted a contiguous weight [N, K], found shape ", weight.sizes());
  if (!sensitivities.has_value()) return;
  TORCH_CHECK_TYPE(sensitivities->scalar_type() == at::kFloat, name, ": sensitivities of dtype ",
                   sensitivities->scalar_type(), ", wanted float32");
  TORCH_CHECK_VALUE(sensitivities->is_contiguous() && sensitivities->sizes() == weight.sizes(),
                    name, ": sensitivities of shape ", sensitivities->sizes(),
                    ", wanted a contiguous ", weight.sizes(), " like weight");
  TORCH_CHECK_VALUE(sensitivities->device() == weight.device(), name, ": sensitivities on ",
                    sensitivities->device(), ", weight on ", weight.device());
}

/// Waits for the stream.
void check_values(const std::string& name, const cuda::TreeInput& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& sensitivities, cudaStream_t stream) {
  const at::Tensor found = at::empty({2}, weight.options().dtype(at::kLong));
  C10_CUDA_CHECK(cuda::find_bad_values(
      input, reinterpret_cast<std::uint64_t*>(found.mutable_data_ptr<std::int64_t>()), stream));
  const at::Tensor on_cpu = found.cpu();
  const auto* const index = on_cpu.const_data_ptr<std::int64_t>();
  const auto value = [](const at::Tensor& matrix, std::int64_t at) {
    return matrix.view({-1})[at].to(at::kFloat).item<float>();
  };
  constexpr std::int64_t kNone = -1;  // all bits
  if (index[0] != kNone) {
    quantize::throw_bad_weight(name, value(weight, index[0]), index[0], input.columns);
  }
  if (index[1] != kNone) {
    quantize::throw_bad_sensitivity(name, value(*sensitivities, index[1]), index[1], input.columns);
  }
}

Quantized quantize_matrix(std::string_view name_view, const at::Tensor& weight,
                          const std::optional<at::Tensor>& sensitivities,
                          std::int64_t lowest_precision, std::int64_t seed_precision,
                          std::int64_t parent_precision, std::int64_t group_size) {
  const std::string name(name_view);
  check_tensors(name, weight, sensitivities);
  const c10::cuda::CUDAGuard guard(weight.device());
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const auto bits = [](std::int64_t precision) {
    return static_cast<int>(std::clamp<std::int64_t>(precision, 0, 64));
  };
  const cuda::TreeInput input{
      .weights = weight.const_data_ptr(),
      .type = to_scalar_type(weight.scalar_type()),
      .sensitivities = sensitivities.has_value() ? sensitivities->const_data_ptr<float>() : nullptr,
      .rows = weight.size(0),
      .columns = weight.size(1),
      .options = {.lowest_precision = bits(lowest_precision),
                  .seed_precision = bits(seed_precision),
                  .parent_precision = bits(parent_precision),
                  .group_size = group_size}};
  as_value_error([&] {
    quantize::validate_options(name, input.rows, input.columns, input.options);
    TORCH_CHECK_VALUE(input.columns <= cuda::kMaxTreeColumns, name, ": in_features is ",
                      input.columns, "; wanted up to ", cuda::kMaxTreeColumns, " on a GPU");
    check_values(name, input, weight, sensitivities, stream);
  });

  const std::int64_t n = input.rows;
  const at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kByte));
  cuda::TreeResult result{.codes = codes.mutable_data_ptr<std::uint8_t>()};
  std::vector<at::Tensor> luts;
  for (std::int64_t b = lowest_precision; b <= parent_precision; ++b) {
    luts.push_back(
        at::empty({n, input.groups(), std::int64_t{1} << b}, weight.options().dtype(at::kFloat)));
    result.luts[b - kMinPrecision] = luts.back().mutable_data_ptr<float>();
  }
  const at::Tensor errors = at::empty({n * input.groups(), parent_precision - lowest_precision + 1},
                                      weight.options().dtype(at::kDouble));
  result.errors = errors.mutable_data_ptr<double>();
  std::size_t bytes = 0;
  C10_CUDA_CHECK(cuda::tree_workspace_bytes(input, bytes));
  const at::Tensor workspace =
      at::empty({static_cast<std::int64_t>(bytes)}, weight.options().dtype(at::kByte));
  C10_CUDA_CHECK(cuda::build_tree(input, result, workspace.mutable_data_ptr(), stream));
  return {codes, luts, errors.sum(0)};
}

at::Tensor codes_to_planes(const at::Tensor& codes, std::int64_t parent_precision) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes: found dtype ", codes.scalar_type(),
                   ", wanted uint8");
  TORCH_CHECK_VALUE(codes.dim() == 2 && codes.is_contiguous(),
                    "codes: wanted a contiguous tensor [N, K], found shape ", codes.sizes());
  TORCH_CHECK_VALUE(parent_precision >= 1 && parent_precision <= kMaxPrecision,
                    "parent_precision: found ", parent_precision, ", wanted 1 to 8");
  const c10::cuda::CUDAGuard guard(codes.device());
  at::Tensor planes =
      at::empty({parent_precision, codes.size(0), plane_row_bytes(codes.size(1))}, codes.options());
  C10_CUDA_CHECK(cuda::codes_to_planes(codes.const_data_ptr<std::uint8_t>(), codes.size(0),
                                       codes.size(1), static_cast<int>(parent_precision),
                                       planes.mutable_data_ptr<std::uint8_t>(),
                                       at::cuda::getCurrentCUDAStream()));
  return planes;
}

}  // namespace
}  // namespace anyprec::ops

TORCH_LIBRARY_IMPL(anyprec, CUDA, m) {
  m.impl("quantize_matrix", &anyprec::ops::quantize_matrix);
  m.impl("codes_to_planes", &anyprec::ops::codes_to_planes);
}
