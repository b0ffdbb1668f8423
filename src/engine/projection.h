#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "anyprec/codebook.h"
#include "anyprec/weights.h"
#include "src/engine/ops/ops.h"
#include "src/engine/precisions.h"

namespace anyprec::engine {

/// One linear layer's weight: bit planes with codebooks of the loaded precisions, or a dense
/// matrix.
struct Projection {
  std::int64_t out_features = 0;  ///< N
  std::int64_t in_features = 0;   ///< K
  at::Tensor bias;                ///< [N] in the activations' dtype, or undefined
  at::Tensor dense;               ///< [N, K], may be `narrowed`; undefined where quantized

  std::size_t index = 0;  ///< of the quantized linear, in an Assignment
  CodebookForm form;
  at::Tensor planes;                              ///< packed for its device
  std::array<at::Tensor, kMaxPrecision + 1> lut;  ///< by precision; undefined: not loaded
  std::array<at::Tensor, kMaxPrecision + 1> alpha;

  bool quantized() const { return planes.defined(); }
  /// What kernels take of it at a precision.
  Weights weights(int precision) const;
  /// Bytes of weights that a product reads: planes without padding, codebooks, bias.
  std::int64_t bytes(int precision) const;
};

/// A tensor that may be undefined, as operators take it.
inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// A dense fp32 matrix on the CPU in half precision, where all its values are of such (a
/// checkpoint's own dtype): the same products for half the bytes. Any other as it is.
at::Tensor narrowed(const at::Tensor& weight);

/// What the launch of a group computes beside the products (kernels/cuda/fused.h).
struct Fusion {
  at::Tensor norm_weight = {};  ///< [K]: x is normalized first; undefined: it is not
  double norm_eps = 0;
  double norm_offset = 0;
  at::Tensor sum = {};  ///< [M, N], to which the products are added; undefined: they are stored
};

/// Linear layers of one input, whose results lie side by side: Q, K and V, or gate and up.
class ProjectionGroup {
 public:
  ProjectionGroup() = default;
  /// Dense ones become one matrix. All have one K and one device.
  explicit ProjectionGroup(std::vector<Projection> projections);

  /// x [M, K] -> [M, sum of N]. On CUDA those of one precision and form go in one launch. planes:
  /// x's bit planes where its producer left them, or null.
  at::Tensor operator()(const at::Tensor& x, const Assignment& assignment,
                        const BitPlanes* planes = nullptr) const;
  /// The same with what is fused to it, or fusion.sum; an undefined tensor, and nothing done, where
  /// no kernel does so.
  at::Tensor fused(const at::Tensor& x, const Assignment& assignment, const Fusion& fusion,
                   const BitPlanes* planes = nullptr) const;
  /// Whether bit planes of `rows` rows like x's would be read.
  bool takes_planes(const at::Tensor& like, std::int64_t rows, const Assignment& assignment) const;

  std::int64_t out_features() const { return out_features_; }
  std::int64_t bytes(const Assignment& assignment) const;

 private:
  std::vector<Projection> projections_;
  std::int64_t out_features_ = 0;
};

/// A quantized projection's part of a group's result.
struct Part {
  const Projection* projection;
  int precision;
  std::int64_t offset;  ///< first column of y
};

/// y[:, offset:] of every part. x, y: contiguous.
void multiply_cuda(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
                   const BitPlanes* planes);
/// multiply_cuda in one launch with what is fused to it; false, and nothing done, where that is not
/// to be had. y: fusion.sum where that is defined.
bool multiply_fused_cuda(const at::Tensor& x, std::span<const Part> parts, const at::Tensor& y,
                         const Fusion& fusion, const BitPlanes* planes);
/// Whether a product with `rows` rows of this dtype can be made of their bit planes.
bool takes_planes_cuda(const Part& part, at::ScalarType type, std::int64_t rows);

}  // namespace anyprec::engine
