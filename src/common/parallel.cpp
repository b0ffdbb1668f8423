#include "anyprec/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "anyprec/error.h"

namespace anyprec {

using Body = std::function<void(std::int64_t, std::int64_t)>;

void SerialExecutor::parallel_for(std::int64_t n, std::int64_t, const Body& body) const {
  if (n > 0) body(0, n);
}

namespace {

// Set on a thread that runs a body: a parallel_for from inside one runs serially, since the
// threads that could help are busy with the outer loop.
thread_local bool inside_body = false;

// One parallel_for: threads take chunks until none is left.
struct Loop {
  std::int64_t n;
  std::int64_t chunk;
  const Body& body;
  std::atomic<std::int64_t> next{0};
  std::mutex error_mutex{};
  std::exception_ptr error{};

  void work() {
    inside_body = true;
    for (;;) {
      const std::int64_t begin = next.fetch_add(chunk);
      if (begin >= n) break;
      try {
        body(begin, std::min(begin + chunk, n));
      } catch (...) {
        const std::scoped_lock lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n);
      }
    }
    inside_body = false;
  }
};

}  // namespace

struct ThreadPool::State {
  std::mutex call_mutex;  // one loop at a time
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  Loop* loop = nullptr;
  std::uint64_t generation = 0;
  int busy = 0;
  bool stop = false;
  std::vector<std::jthread> workers;

  void run_worker() {
    std::uint64_t seen = 0;
    for (;;) {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      Loop* const current = loop;
      lock.unlock();
      current->work();
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads < 0) {
    throw InvalidArgument("threads: found " + std::to_string(threads) +
                          ", wanted 0 (one per hardware thread) or more");
  }
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int i = 1; i < threads; ++i) {
    state_->workers.emplace_back([state = state_.get()] { state->run_worker(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  state_->workers.clear();
}

int ThreadPool::concurrency() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::parallel_for(std::int64_t n, std::int64_t grain, const Body& body) const {
  if (n <= 0) return;
  // Four chunks a thread: uneven rows balance, and handing out stays cheap.
  const std::int64_t parts = 4 * static_cast<std::int64_t>(concurrency());
  const std::int64_t chunk = std::max<std::int64_t>({grain, (n + parts - 1) / parts, 1});
  if (inside_body || state_->workers.empty() || chunk >= n) {
    body(0, n);
    return;
  }
  Loop loop{.n = n, .chunk = chunk, .body = body};
  const std::scoped_lock call_lock(state_->call_mutex);
  {
    const std::scoped_lock lock(state_->mutex);
    state_->loop = &loop;
    state_->busy = static_cast<int>(state_->workers.size());
    ++state_->generation;
  }
  state_->wake.notify_all();
  loop.work();
  {
    std::unique_lock lock(state_->mutex);
    state_->done.wait(lock, [&] { return state_->busy == 0; });
    state_->loop = nullptr;
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace anyprec
