#pragma once

#include <cstdint>
#include <stdexcept>

#include "tests/cpp/kernels/emulated/fibers.h"

namespace anyprec::testing::emulated {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

/// Where a number of threads wait for one another.
struct Meeting {
  int arrived = 0;
  long generation = 0;
  Waiting waiting;

  void arrive(int count, Fibers& fibers) {
    if (++arrived < count) return;
    arrived = 0;
    ++generation;
    waiting.wake_all(fibers);
  }
  void wait_past(long past, Fibers& fibers) {
    while (generation == past) waiting.wait(fibers);
  }
  void meet(int count, Fibers& fibers) {
    const long past = generation;
    arrive(count, fibers);
    wait_past(past, fibers);
  }
};

/// An mbarrier: a phase ends when all have arrived and all bytes have come.
struct Barrier {
  int arrivals = 0, pending = 0;
  std::int64_t bytes = 0;  ///< expected, and not here yet
  std::uint32_t phase = 0;
  Waiting waiting;

  void count(int arrived, std::int64_t more_bytes, Fibers& fibers) {
    pending -= arrived;
    bytes += more_bytes;
    require(pending >= 0, "more arrivals than a barrier has");
    if (pending > 0 || bytes != 0) return;
    pending = arrivals;
    ++phase;
    waiting.wake_all(fibers);
  }
  void wait(std::uint32_t parity, Fibers& fibers) {
    while ((phase & 1) == parity) waiting.wait(fibers);
  }
};

}  // namespace anyprec::testing::emulated
