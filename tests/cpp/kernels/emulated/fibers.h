#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace anyprec::testing::emulated {

inline constexpr int kWarpLanes = 32;

/// Threads as fibers: one at a time, until it waits; then another that need not. Which one, an
/// order says: 0 prefers early warps and lanes, every other number ranks the warps at random, and
/// anew from time to time, so that some run far ahead of others.
class Fibers {
 public:
  /// Runs `body` as `count` fibers, whole warps. when_all_wait: wakes one, or returns false.
  void run(int count, unsigned order, const std::function<void()>& body,
           const std::function<bool()>& when_all_wait) {
    body_ = &body;
    when_all_wait_ = &when_all_wait;
    random_.seed(order);
    shuffles_ = order != 0;
    failure_ = nullptr;
    left_ = count;
    ready_.assign(static_cast<std::size_t>(count / kWarpLanes), ~0u);
    rank_.resize(ready_.size());
    std::iota(rank_.begin(), rank_.end(), 0);
    warp_ = 0;
    picks_left_ = 0;
    fibers_.resize(static_cast<std::size_t>(count));
    for (Fiber& fiber : fibers_) {
      fiber.begun = false;
      if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    }
    if (_setjmp(scheduler_) == 0) go_on();
    if (failure_) std::rethrow_exception(failure_);
  }

  int running() const { return running_; }

  /// The fiber that runs waits until it is woken.
  void wait() {
    if (_setjmp(fibers_[static_cast<std::size_t>(running_)].context) == 0) go_on();
  }
  void wake(int fiber) {
    ready_[static_cast<std::size_t>(fiber / kWarpLanes)] |= 1u << fiber % kWarpLanes;
  }

 private:
  static constexpr std::size_t kStackBytes = 128 * 1024;

  struct Fiber {
    jmp_buf context;
    std::unique_ptr<char[]> stack;
    bool begun = false;
  };

  /// To the next fiber.
  [[noreturn]] void go_on() {
    if (left_ > 0 && !failure_) {
      try {
        running_ = next();
      } catch (...) {
        failure_ = std::current_exception();
      }
    }
    if (left_ == 0 || failure_) _longjmp(scheduler_, 1);
    Fiber& fiber = fibers_[static_cast<std::size_t>(running_)];
    if (fiber.begun) _longjmp(fiber.context, 1);
    fiber.begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    starting_ = this;
    makecontext(&context, &Fibers::enter, 0);
    setcontext(&context);
    std::terminate();
  }

  static void enter() {
    Fibers& self = *starting_;
    try {
      (*self.body_)();
    } catch (...) {
      self.failure_ = std::current_exception();
    }
    --self.left_;
    self.go_on();
  }

  /// Stays with a warp as long as one of its lanes need not wait.
  int next() {
    while (ready_[warp_] == 0 && !choose_warp()) {
      if (!(*when_all_wait_)()) throw std::runtime_error("all threads wait for one another");
    }
    std::uint32_t& lanes = ready_[warp_];
    const int turn = shuffles_ ? static_cast<int>(random_() % kWarpLanes) : 0;
    const int lane = (std::countr_zero(std::rotr(lanes, turn)) + turn) % kWarpLanes;
    lanes &= ~(1u << lane);
    return static_cast<int>(warp_) * kWarpLanes + lane;
  }
  bool choose_warp() {
    if (shuffles_ && --picks_left_ < 0) {
      std::shuffle(rank_.begin(), rank_.end(), random_);
      picks_left_ = static_cast<int>(random_() % 256);
    }
    const auto found = std::find_if(rank_.begin(), rank_.end(),
                                    [&](std::size_t warp) { return ready_[warp] != 0; });
    if (found == rank_.end()) return false;
    warp_ = *found;
    return true;
  }

  static inline Fibers* starting_ = nullptr;

  const std::function<void()>* body_ = nullptr;
  const std::function<bool()>* when_all_wait_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<std::uint32_t> ready_;  // of a warp: a bit a lane
  std::vector<std::size_t> rank_;
  std::size_t warp_ = 0;
  int running_ = 0, left_ = 0, picks_left_ = 0;
  bool shuffles_ = false;
  std::minstd_rand random_;
  std::exception_ptr failure_;
  jmp_buf scheduler_;
};

/// Fibers that wait for the same.
class Waiting {
 public:
  void wait(Fibers& fibers) {
    waiting_.push_back(fibers.running());
    fibers.wait();
  }
  void wake_all(Fibers& fibers) {
    for (const int fiber : waiting_) fibers.wake(fiber);
    waiting_.clear();
  }

 private:
  std::vector<int> waiting_;
};

}  // namespace anyprec::testing::emulated
