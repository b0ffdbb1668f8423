#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "anyprec/parallel.h"

namespace anyprec::ops {

// libtorch's own intra-op threads, so that torch.set_num_threads holds for our kernels too.
class TorchExecutor final : public Executor {
 public:
  int concurrency() const override { return at::get_num_threads(); }
  void parallel_for(std::int64_t n, std::int64_t grain,
                    const std::function<void(std::int64_t, std::int64_t)>& body) const override {
    if (n <= 0) return;
    const std::int64_t threads = concurrency();
    const std::int64_t chunk = std::max<std::int64_t>({grain, (n + threads - 1) / threads, 1});
    at::parallel_for(0, (n + chunk - 1) / chunk, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) body(i * chunk, std::min(n, (i + 1) * chunk));
    });
  }
};

}  // namespace anyprec::ops
