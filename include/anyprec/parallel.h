#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace anyprec {

/// Where the library's loops run. Kernels and the quantizer never make threads of their own: they
/// take an Executor, so that an application (or libtorch) can lend its own pool.
class Executor {
 public:
  virtual ~Executor() = default;

  /// Number of chunks that can run at the same time, at least 1.
  virtual int concurrency() const = 0;

  /// Calls body(begin, end) for disjoint ranges that cover [0, n), none shorter than `grain` but
  /// the last, and returns when all are done. The first exception that a body throws is rethrown.
  virtual void parallel_for(std::int64_t n, std::int64_t grain,
                            const std::function<void(std::int64_t, std::int64_t)>& body) const = 0;
};

/// Runs everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  int concurrency() const override { return 1; }
  void parallel_for(std::int64_t n, std::int64_t grain,
                    const std::function<void(std::int64_t, std::int64_t)>& body) const override;
};

/// A fixed set of threads that sleep between calls. Work is handed out in chunks as threads get
/// free, so uneven rows balance. Calls from several threads are served one after the other.
class ThreadPool final : public Executor {
 public:
  /// threads: at least 1; 0 means one per hardware thread. The caller counts as one of them.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int concurrency() const override;
  void parallel_for(std::int64_t n, std::int64_t grain,
                    const std::function<void(std::int64_t, std::int64_t)>& body) const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace anyprec
