#pragma once

#include <ATen/core/Tensor.h>

#include "src/engine/config.h"
#include "src/engine/ops/ops.h"
#include "src/engine/precisions.h"
#include "src/engine/projection.h"

namespace anyprec::engine {

/// The rows that a decoder's layers read and add to. Norms and sums go with the linear layers'
/// launches where these can take them, else they are launches of their own.
class ResidualStream {
 public:
  /// rows [M, hidden]: embeddings; is written.
  ResidualStream(at::Tensor rows, const ModelConfig& config, const Assignment& assignment);

  /// Linear layers of the rows' norm.
  at::Tensor normed(const ProjectionGroup& group, const at::Tensor& weight);
  /// Adds the linear layer of x. post_norm: of its result, or undefined. planes: of x, or null.
  void add(const ProjectionGroup& group, const at::Tensor& x, const at::Tensor& post_norm,
           const BitPlanes* planes = nullptr);
  /// The norm of some rows, by number, or of all.
  at::Tensor norm_of(const at::Tensor& rows, const at::Tensor& weight);

 private:
  at::Tensor norm(const at::Tensor& weight);

  const ModelConfig& config_;
  const Assignment& assignment_;
  at::Tensor rows_;
  at::Tensor pending_;  ///< what rows_ does not have yet; undefined: nothing
};

}  // namespace anyprec::engine
