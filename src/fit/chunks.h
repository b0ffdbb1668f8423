#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cstdint>

namespace anyprec::fit {

/// Rows that one thread of a CPU does from beginning to end: the bytes do not depend on threads.
inline constexpr std::int64_t kThreadRows = 64;

/// Runs `body` on chunks of rows. On a CPU each chunk is one thread's: libtorch's operators run
/// serially inside of a parallel region, so that their sums do not depend on the number of threads.
template <class Body>
void for_chunks(bool on_cpu, std::int64_t rows, std::int64_t chunk, const Body& body) {
  const std::int64_t chunks = (rows + chunk - 1) / chunk;
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const at::AutoDispatchBelowAutograd below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    for (std::int64_t i = begin; i < end; ++i) body(i * chunk, std::min(chunk, rows - i * chunk));
  };
  if (on_cpu) {
    at::parallel_for(0, chunks, 1, run);
  } else {
    run(0, chunks);
  }
}

}  // namespace anyprec::fit
