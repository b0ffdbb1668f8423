#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

// The libtorch operators for C++. The same as torch.ops.anyprec.* in Python: they dispatch by
// device, check their arguments, and throw c10::Error. Link anyprec::torch.
namespace anyprec::torch {

/// y = x W_b^T + bias.
///   x: [..., K], float32, bfloat16 or float16; the result is [..., N] in x's dtype.
///   planes: packed planes uint8 [>= b, packed_rows(N), packed_row_bytes(K)] (see pack_planes).
///   lut: fp16 [N, G, 2^min(b, L)]; alpha: fp16 [N, G, b - L, C] where b > L, else nullopt.
///   bias: [N] in x's dtype, or nullopt.
///   group_size: columns that share a codebook, 0 for the whole row; cell_groups: see codebook.h.
at::Tensor linear(const at::Tensor& x, const at::Tensor& planes, const at::Tensor& lut,
                  const std::optional<at::Tensor>& alpha, const std::optional<at::Tensor>& bias,
                  std::int64_t precision, std::int64_t in_features, std::int64_t group_size = 0,
                  std::string_view cell_groups = "one");

/// W_b as a dense matrix [N, K] of `dtype`.
at::Tensor dequantize(const at::Tensor& planes, const at::Tensor& lut,
                      const std::optional<at::Tensor>& alpha, std::int64_t precision,
                      std::int64_t in_features, std::int64_t group_size = 0,
                      std::string_view cell_groups = "one",
                      at::ScalarType dtype = at::ScalarType::Float);

/// Canonical planes uint8 [P, N, ceil(K/8)] (docs/format.md) to the layout of the tensor's device.
at::Tensor pack_planes(const at::Tensor& planes, std::int64_t in_features);
/// The inverse of pack_planes.
at::Tensor unpack_planes(const at::Tensor& planes, std::int64_t out_features,
                         std::int64_t in_features);

/// Sums of values [N, K] (float32, bfloat16 or float16) over the columns of a group that have one
/// code: fp32 [N, G, 2^precision]. codes: uint8 [N, K], of which the lowest `precision` bits count.
at::Tensor sum_by_code(const at::Tensor& values, const at::Tensor& codes, std::int64_t precision,
                       std::int64_t group_size = 0);

}  // namespace anyprec::torch
