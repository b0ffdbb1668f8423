#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

namespace anyprec::fit {

/// Products of fp32 matrices in fp32, not TF32, while it lives.
class FullPrecision {
 public:
  explicit FullPrecision(const at::Tensor& tensor)
      : changed_(tensor.is_cuda() && at::globalContext().allowTF32CuBLAS()) {
    if (changed_) at::globalContext().setAllowTF32CuBLAS(false);
  }
  ~FullPrecision() {
    if (changed_) at::globalContext().setAllowTF32CuBLAS(true);
  }
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  bool changed_;
};

}  // namespace anyprec::fit
