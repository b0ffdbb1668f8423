#pragma once

#include <vector_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "tests/cpp/kernels/emulated/fibers.h"
#include "tests/cpp/kernels/emulated/meetings.h"
#include "tests/cpp/kernels/emulated/thread.h"

/// Blocks of a CUDA kernel on the CPU, from the kernel's own source, so that its indices, its ring
/// of copies and its barriers are tested where there is no GPU. Threads are fibers that take turns
/// where they wait: those of a block, or of all blocks of a cluster. CMakeLists.txt includes nvcc.h
/// before a source, as nvcc does with its runtime, and puts `emulated/` first on the include path,
/// where the headers with PTX have their counterparts.
namespace anyprec::testing::emulated {

inline constexpr std::size_t kSharedBytes = 228 * 1024;
inline constexpr int kMostBlocks = 8;  ///< of a cluster

}  // namespace anyprec::testing::emulated

namespace anyprec::cuda {
namespace emulated = ::anyprec::testing::emulated;
/// The shared memories of a cluster's blocks. By this name a kernel without clusters has its own.
alignas(1024) inline char shared[emulated::kMostBlocks * emulated::kSharedBytes];
}  // namespace anyprec::cuda

namespace anyprec::testing::emulated {

/// When something asynchronous is done: as early as it is started, or as late as it can be - a
/// thread's copies when it waits for them, what a barrier counts when all threads wait. A kernel
/// must not depend on either.
enum class Landing { kLate, kEarly };

class Cluster;

class Block {
 public:
  uint3 index{};
  char* memory = nullptr;
  int threads_left = 0;

  Block(Cluster& cluster, int rank, int threads);

  /// Of the thread that runs.
  Thread& thread() { return threads_[number()]; }
  int lane() const { return static_cast<int>(number() % kWarpLanes); }
  /// Of its warp.
  Thread& thread_of_lane(int lane) {
    return threads_[number() / kWarpLanes * kWarpLanes + static_cast<unsigned>(lane)];
  }

  void meet_warp();
  void meet_block();
  /// `count` threads of the block, at barrier `which`.
  void meet_some(int which, int count);

  /// Words that the lanes of a warp show one another, until they meet again.
  void publish(const std::array<std::uint32_t, 6>& words) {
    thread().words = words;
    meet_warp();
  }
  const std::array<std::uint32_t, 6>& published(int lane) { return thread_of_lane(lane).words; }
  std::uint32_t exchange(std::uint32_t value, int from) {
    publish({value});
    const std::uint32_t result = published(from)[0];
    meet_warp();
    return result;
  }

  /// Addresses of shared memory are the same in all blocks of a cluster.
  std::uint32_t address(const void* pointer) const {
    const std::ptrdiff_t at = static_cast<const char*>(pointer) - memory;
    require(at >= 0 && at < static_cast<std::ptrdiff_t>(kSharedBytes), "not in shared memory");
    return static_cast<std::uint32_t>(at);
  }

  /// `size` bytes to shared memory, by the thread that runs.
  void copy(std::uint32_t to, const void* from, std::uint32_t size);
  void commit_copies() {
    thread().copy_groups.push_back(std::move(thread().copies));
    thread().copies.clear();
  }
  void wait_for_copies(std::size_t pending);
  /// Counted by a barrier.
  void copy_bulk(std::uint32_t to, const void* from, std::uint32_t size, std::uint32_t barrier);
  /// To this block, by a thread of another; counted by a barrier of this block.
  void receive(std::uint32_t to, const std::array<float, 4>& four, std::uint32_t barrier);

  void init_barrier(std::uint32_t at, int arrivals) {
    require(at % 8 == 0 && arrivals > 0, "a barrier that is not aligned, or empty");
    barriers_[at] = {arrivals, arrivals, 0, 0, {}};
  }
  void arrive(std::uint32_t at, std::int64_t expected_bytes = 0);
  /// When the thread's copies that no group or barrier has yet are there.
  void arrive_after_copies(std::uint32_t at);
  void wait_barrier(std::uint32_t at, std::uint32_t parity);

 private:
  unsigned number() const;
  Barrier& barrier(std::uint32_t at) {
    const auto found = barriers_.find(at);
    require(found != barriers_.end(), "a barrier that is not initialized");
    return found->second;
  }

  Cluster& cluster_;
  std::vector<Thread> threads_;
  std::vector<Meeting> warps_;
  Meeting all_;
  std::map<int, Meeting> some_;
  std::map<std::uint32_t, Barrier> barriers_;
};

class Cluster {
 public:
  uint3 grid{1, 1, 1};
  Landing landing = Landing::kLate;
  Fibers fibers;

  /// Block `first` of the grid and those after it in x, each of `threads` threads, in some order
  /// (Fibers).
  void run(uint3 first, int blocks, int threads, unsigned order,
           const std::function<void()>& body) {
    require(blocks <= kMostBlocks, "a cluster of too many blocks");
    threads_ = threads;
    random_.seed(order);
    all_ = {};
    under_way_.clear();
    blocks_.clear();
    for (int rank = 0; rank < blocks; ++rank) {
      blocks_.emplace_back(*this, rank, threads);
      blocks_.back().index = {first.x + static_cast<unsigned>(rank), first.y, first.z};
    }
    const std::function<void()> thread = [&] {
      body();
      --block().threads_left;
    };
    fibers.run(blocks * threads, order, thread, [this] { return land_one(); });
    require(under_way_.empty(), "a block has ended before what was sent to it has come");
  }

  /// Of the thread that runs.
  Block& block() { return blocks_[static_cast<std::size_t>(fibers.running() / threads_)]; }
  /// For access to its shared memory. It must be there, and its barriers seen.
  Block& other_block(int rank) {
    require(all_.generation > 0, "access to a block before the cluster has met");
    Block& other = blocks_.at(static_cast<std::size_t>(rank));
    require(other.threads_left > 0, "access to a block that has ended");
    return other;
  }
  int threads_of_block() const { return threads_; }

  /// Something asynchronous, to be done once.
  void start(std::function<void()> landing_of_it) {
    if (landing == Landing::kEarly) {
      landing_of_it();
    } else {
      under_way_.push_back(std::move(landing_of_it));
    }
  }

  void arrive() {
    Thread& thread = block().thread();
    require(!thread.at_cluster, "a thread arrives twice");
    thread.at_cluster = true;
    thread.cluster_generation = all_.generation;
    all_.arrive(static_cast<int>(blocks_.size()) * threads_, fibers);
  }
  void wait() {
    Thread& thread = block().thread();
    require(thread.at_cluster, "a thread waits where it has not arrived");
    all_.wait_past(thread.cluster_generation, fibers);
    thread.at_cluster = false;
  }

 private:
  bool land_one() {
    if (under_way_.empty()) return false;
    std::swap(under_way_[random_() % under_way_.size()], under_way_.back());
    const std::function<void()> landing_of_it = std::move(under_way_.back());
    under_way_.pop_back();
    landing_of_it();
    return true;
  }

  int threads_ = 1;
  std::deque<Block> blocks_;
  Meeting all_;
  std::vector<std::function<void()>> under_way_;
  std::minstd_rand random_;
};

inline Cluster& cluster() {
  static Cluster one;
  return one;
}
inline Block& block() { return cluster().block(); }
inline Thread& thread() { return block().thread(); }

inline Block::Block(Cluster& cluster, int rank, int threads)
    : memory(cuda::shared + static_cast<std::size_t>(rank) * kSharedBytes),
      threads_left(threads),
      cluster_(cluster),
      threads_(static_cast<std::size_t>(threads)),
      warps_(threads_.size() / kWarpLanes) {
  for (std::size_t i = 0; i < threads_.size(); ++i) threads_[i].index.x = static_cast<unsigned>(i);
}

inline unsigned Block::number() const {
  return static_cast<unsigned>(cluster_.fibers.running() % cluster_.threads_of_block());
}
inline void Block::meet_warp() { warps_[number() / kWarpLanes].meet(kWarpLanes, cluster_.fibers); }
inline void Block::meet_block() { all_.meet(static_cast<int>(threads_.size()), cluster_.fibers); }
inline void Block::meet_some(int which, int count) { some_[which].meet(count, cluster_.fibers); }

inline void Block::copy(std::uint32_t to, const void* from, std::uint32_t size) {
  require(to % size == 0 && reinterpret_cast<std::uintptr_t>(from) % size == 0,
          "a copy is not aligned to its size");
  require(to + size <= kSharedBytes, "a copy past shared memory");
  const Copy copy{memory + to, from, size, size};
  if (cluster_.landing == Landing::kEarly) {
    copy.land();
  } else {
    thread().copies.push_back(copy);
  }
}
inline void Block::wait_for_copies(std::size_t pending) {
  std::deque<std::vector<Copy>>& groups = thread().copy_groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (const Copy& copy : groups.front()) copy.land();
  }
}
inline void Block::copy_bulk(std::uint32_t to, const void* from, std::uint32_t size,
                             std::uint32_t barrier) {
  require(to % 16 == 0 && reinterpret_cast<std::uintptr_t>(from) % 16 == 0 && size % 16 == 0,
          "a bulk copy is not aligned");
  require(to + size <= kSharedBytes, "a bulk copy past shared memory");
  cluster_.start([=, this] {
    std::memcpy(memory + to, from, size);
    this->barrier(barrier).count(0, -std::int64_t{size}, cluster_.fibers);
  });
}
inline void Block::receive(std::uint32_t to, const std::array<float, 4>& four,
                           std::uint32_t barrier) {
  require(to % sizeof(four) == 0 && to + sizeof(four) <= kSharedBytes,
          "a store that is not aligned");
  cluster_.start([=, this] {
    require(threads_left > 0, "a store to a block that has ended");
    std::memcpy(memory + to, four.data(), sizeof(four));
    this->barrier(barrier).count(0, -std::int64_t{sizeof(four)}, cluster_.fibers);
  });
}

inline void Block::arrive(std::uint32_t at, std::int64_t expected_bytes) {
  barrier(at).count(1, expected_bytes, cluster_.fibers);
}
inline void Block::arrive_after_copies(std::uint32_t at) {
  cluster_.start([at, copies = std::move(thread().copies), this] {
    for (const Copy& copy : copies) copy.land();
    arrive(at);
  });
  thread().copies.clear();
}
inline void Block::wait_barrier(std::uint32_t at, std::uint32_t parity) {
  barrier(at).wait(parity, cluster_.fibers);
}

}  // namespace anyprec::testing::emulated
