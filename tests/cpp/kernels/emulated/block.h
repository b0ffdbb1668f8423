#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

/// A block of a CUDA kernel on the CPU, from the kernel's own source, so that its indices, its ring
/// of copies and its barriers are tested where there is no GPU. Threads are fibers that run in turn
/// until they meet a barrier. CMakeLists.txt includes this before a source, as nvcc does with its
/// runtime, and puts `emulated/` first on the include path, where the headers with PTX have their
/// counterparts.
namespace anyprec::testing::emulated {

/// When an asynchronous copy lands: as late as its group is waited for, or as early as it is
/// started. A kernel must not depend on either.
enum class Landing { kLate, kEarly };

inline constexpr int kWarpLanes = 32;
inline constexpr std::size_t kSharedBytes = 228 * 1024;

class Block {
 public:
  using Words = std::array<std::uint32_t, 6>;

  uint3 index{}, grid{1, 1, 1};
  Landing landing = Landing::kLate;

  /// body: of every thread.
  void run(int threads, const std::function<void()>& body) {
    body_ = &body;
    fibers_.resize(static_cast<std::size_t>(threads));
    warps_.assign(fibers_.size() / kWarpLanes, Meeting{});
    all_ = {};
    barriers_.clear();
    unsigned number = 0;
    for (Fiber& fiber : fibers_) {
      fiber.thread = {number++, 0, 0};
      fiber.done = false;
      fiber.open.clear();
      fiber.groups.clear();
      fiber.stack.resize(128 * 1024);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    for (std::size_t left = fibers_.size(); left > 0;) {
      progress_ = false;
      left = 0;
      for (Fiber& fiber : fibers_) {
        if (fiber.done) continue;
        now_ = &fiber;
        swapcontext(&scheduler_, &fiber.context);
        left += !fiber.done;
      }
      if (left > 0 && !progress_) throw std::runtime_error("all threads wait for one another");
    }
  }

  const uint3& thread() const { return now_->thread; }
  int lane() const { return static_cast<int>(now_->thread.x % kWarpLanes); }

  void meet_warp() { meet(warps_[now_->thread.x / kWarpLanes], kWarpLanes); }
  void meet_block() { meet(all_, static_cast<int>(fibers_.size())); }

  /// What the lanes of a warp show one another, until they meet again.
  void publish(const Words& words) {
    now_->words = words;
    meet_warp();
  }
  const Words& published(int lane) const {
    return fibers_[now_->thread.x / kWarpLanes * kWarpLanes + static_cast<unsigned>(lane)].words;
  }
  std::uint32_t exchange(std::uint32_t value, int from) {
    publish({value});
    const std::uint32_t result = published(from)[0];
    meet_warp();
    return result;
  }

  /// `size` bytes to shared memory, of which the first `bytes` are read and the others zeros.
  void copy(std::uint32_t to, const void* from, std::uint32_t size, int bytes);
  void commit_copies() {
    now_->groups.push_back(std::move(now_->open));
    now_->open.clear();
  }

  // mbarriers, by their addresses in shared memory.
  void init_barrier(std::uint32_t at, int arrivals) { barriers_[at] = {arrivals, arrivals, 0, {}}; }
  /// With the thread's copies that no group or barrier has yet.
  void arrive_after_copies(std::uint32_t at) {
    Barrier& barrier = barriers_.at(at);
    barrier.copies.insert(barrier.copies.end(), now_->open.begin(), now_->open.end());
    now_->open.clear();
    progress_ = true;
    if (--barrier.pending == 0) {
      barrier.pending = barrier.arrivals;
      ++barrier.phase;
    }
  }
  void wait_barrier(std::uint32_t at, std::uint32_t parity) {
    Barrier& barrier = barriers_.at(at);
    while ((barrier.phase & 1) == parity) swapcontext(&now_->context, &scheduler_);
    for (const Copy& copy : barrier.copies) land(copy);
    barrier.copies.clear();
  }

  void wait_for_copies(std::size_t pending) {
    while (now_->groups.size() > pending) {
      for (const Copy& copy : now_->groups.front()) land(copy);
      now_->groups.pop_front();
    }
  }

 private:
  struct Copy {
    char* to;
    const void* from;
    std::size_t size, bytes;
  };
  struct Barrier {
    int arrivals, pending;
    std::uint32_t phase;
    std::vector<Copy> copies;
  };
  struct Meeting {
    int arrived = 0;
    long generation = 0;
  };
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    uint3 thread;
    bool done;
    Words words;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
  };

  static void enter();
  static void land(const Copy& copy) {
    std::memset(copy.to, 0, copy.size);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  void meet(Meeting& meeting, int count) {
    const long generation = meeting.generation;
    progress_ = true;
    if (++meeting.arrived == count) {
      meeting.arrived = 0;
      ++meeting.generation;
      return;
    }
    while (meeting.generation == generation) swapcontext(&now_->context, &scheduler_);
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Meeting> warps_;
  Meeting all_;
  std::map<std::uint32_t, Barrier> barriers_;
  Fiber* now_ = nullptr;
  ucontext_t scheduler_;
  bool progress_ = false;
};

inline Block& block() {
  static Block one;
  return one;
}

inline void Block::enter() {
  Block& self = block();
  (*self.body_)();
  self.now_->done = true;
  self.progress_ = true;
}

}  // namespace anyprec::testing::emulated

namespace anyprec::cuda {
namespace emulated = ::anyprec::testing::emulated;
/// The block's shared memory, by the name that kernels give it.
alignas(128) inline char shared[emulated::kSharedBytes];
}  // namespace anyprec::cuda

namespace anyprec::testing::emulated {

inline void Block::copy(std::uint32_t to, const void* from, std::uint32_t size, int bytes) {
  if (to % size != 0 || reinterpret_cast<std::uintptr_t>(from) % size != 0) {
    throw std::runtime_error("a copy is not aligned to its size");
  }
  if (bytes < 1 || to + size > kSharedBytes) throw std::runtime_error("a copy of nothing, or past");
  const Copy copy{cuda::shared + to, from, size, static_cast<std::size_t>(bytes)};
  if (landing == Landing::kEarly) {
    land(copy);
  } else {
    now_->open.push_back(copy);
  }
}

}  // namespace anyprec::testing::emulated

// What nvcc gives a kernel.
#undef __noinline__
#define __noinline__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define threadIdx (::anyprec::testing::emulated::block().thread())
#define blockIdx (::anyprec::testing::emulated::block().index)
#define gridDim (::anyprec::testing::emulated::block().grid)

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline void __syncwarp() { anyprec::testing::emulated::block().meet_warp(); }
inline void __syncthreads() { anyprec::testing::emulated::block().meet_block(); }
inline unsigned __shfl_sync(unsigned /*mask*/, unsigned value, int lane) {
  return anyprec::testing::emulated::block().exchange(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int mask) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  return std::bit_cast<T>(block.exchange(std::bit_cast<std::uint32_t>(value), block.lane() ^ mask));
}
inline bool __any_sync(unsigned /*mask*/, bool value) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  block.publish({value});
  bool any = false;
  for (int lane = 0; lane < anyprec::testing::emulated::kWarpLanes; ++lane) {
    any = any || block.published(lane)[0] != 0;
  }
  block.meet_warp();
  return any;
}
template <class T, class Join>
T reduce_warp(T value, const Join& join) {
  anyprec::testing::emulated::Block& block = anyprec::testing::emulated::block();
  block.publish({std::bit_cast<std::uint32_t>(value)});
  T result = std::bit_cast<T>(block.published(0)[0]);
  for (int lane = 1; lane < anyprec::testing::emulated::kWarpLanes; ++lane) {
    result = join(result, std::bit_cast<T>(block.published(lane)[0]));
  }
  block.meet_warp();
  return result;
}
inline std::uint32_t __reduce_max_sync(unsigned /*mask*/, std::uint32_t value) {
  return reduce_warp(value, max<std::uint32_t>);
}
inline int __reduce_add_sync(unsigned /*mask*/, int value) {
  return reduce_warp(value, [](int a, int b) { return a + b; });
}
inline int __float2int_rn(float value) {
  return value == value ? static_cast<int>(std::nearbyint(value)) : 0;
}
inline std::uint32_t __vmaxu2(std::uint32_t a, std::uint32_t b) {
  return max(a & 0xffffu, b & 0xffffu) | max(a >> 16, b >> 16) << 16;
}
inline std::uint32_t __byte_perm(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint64_t bytes = low | std::uint64_t{high} << 32;
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = selector >> 4 * i & 7;
    result |= static_cast<std::uint32_t>(bytes >> 8 * from & 0xff) << 8 * i;
  }
  return result;
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
