#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "anyprec/weights.h"

namespace anyprec::cuda {

/// Logits of two models at the same positions, contiguous rows of one type. The vocabulary that
/// counts is the shorter of both: a checkpoint and its original may pad it differently.
struct Logits {
  const void* wanted = nullptr;  ///< [R, wanted_columns]
  void* found = nullptr;         ///< [R, found_columns]
  std::int64_t rows = 0;         ///< R
  std::int64_t wanted_columns = 0;
  std::int64_t found_columns = 0;
  ScalarType type = ScalarType::kFloat32;
};

/// found becomes scale * (softmax(found) - softmax(wanted)), zero beyond the vocabulary of both:
/// scale times the gradient of KL(wanted || found) with respect to it. divergences: fp32 [R], the
/// KL divergence of each row in nats. In fp32, summed in a fixed order.
cudaError_t kl_gradient(const Logits& logits, float scale, float* divergences, cudaStream_t stream);

}  // namespace anyprec::cuda
