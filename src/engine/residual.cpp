#include "src/engine/residual.h"

#include <ATen/ATen.h>

#include <utility>

namespace anyprec::engine {

ResidualStream::ResidualStream(at::Tensor rows, const ModelConfig& config,
                               const Assignment& assignment)
    : config_(config), assignment_(assignment), rows_(std::move(rows)) {}

at::Tensor ResidualStream::norm(const at::Tensor& weight) {
  if (!pending_.defined()) return rms_norm(rows_, weight, config_.norm_eps, config_.norm_offset);
  return add_rms_norm(std::exchange(pending_, {}), rows_, weight, config_.norm_eps,
                      config_.norm_offset);
}

at::Tensor ResidualStream::normed(const ProjectionGroup& group, const at::Tensor& weight) {
  if (!pending_.defined()) {
    at::Tensor y = group.fused(
        rows_, assignment_,
        {.norm_weight = weight, .norm_eps = config_.norm_eps, .norm_offset = config_.norm_offset});
    if (y.defined()) return y;
  }
  return group(norm(weight), assignment_);
}

void ResidualStream::add(const ProjectionGroup& group, const at::Tensor& x,
                         const at::Tensor& post_norm, const BitPlanes* planes) {
  if (!post_norm.defined() && group.fused(x, assignment_, {.sum = rows_}, planes).defined()) {
    return;
  }
  pending_ = group(x, assignment_, planes);
  if (post_norm.defined()) {
    pending_ = rms_norm(pending_, post_norm, config_.norm_eps, config_.norm_offset);
  }
}

at::Tensor ResidualStream::norm_of(const at::Tensor& rows, const at::Tensor& weight) {
  if (rows.defined()) {
    rows_ = rows_.index_select(0, rows);
    if (pending_.defined()) pending_ = pending_.index_select(0, rows);
  }
  return norm(weight);
}

}  // namespace anyprec::engine
