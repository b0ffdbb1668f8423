#pragma once

#include <cstdint>

/// What the algorithms of the tree (clusters of a row, nested by precision) take of a block of
/// threads. They are written as phases, `block.each(body)`: body(thread) once for every thread, and
/// then a barrier. A phase reads what earlier phases wrote and writes what no other thread reads or
/// writes in it. So the same source runs on a GPU, a phase at a time, and on a CPU with a loop over
/// threads, where it is tested beside src/quantize.
///
/// A Block has `int threads()`, `each(body)` and `static double ratio(x, y)`, about x / y for
/// positive normal y.
#ifdef __CUDACC__
#define ANYPREC_TREE __device__ __forceinline__
#else
#define ANYPREC_TREE inline
#endif

namespace anyprec::cuda::tree {

/// Threads are summed over in groups of so many: threads() is a multiple of twice this.
inline constexpr int kGroup = 32;
inline constexpr int kMaxThreads = 512;

/// A cost and where it was found.
struct Candidate {
  double cost;
  int index;
};

/// Ties go to the lower index.
ANYPREC_TREE bool better(const Candidate& a, const Candidate& b) {
  return a.cost < b.cost || (a.cost == b.cost && a.index < b.index);
}

/// Shared memory for what threads tell each other.
struct Exchange {
  Candidate head[kMaxThreads];
  Candidate tail[kMaxThreads];
  int run[kMaxThreads];
  double group_sum[2][kMaxThreads / kGroup];
  int group_count[kMaxThreads / kGroup];
  double sums[2][kMaxThreads];
};

/// The sum of part[first .. thread): threads of [first, ...) up to this one, in a fixed order.
/// first: a multiple of kGroup; group: the sums of part over each kGroup threads.
template <class T>
ANYPREC_TREE T sum_before(const T* part, const T* group, int first, int thread) {
  T sum = 0;
  const int own = thread / kGroup * kGroup;
  for (int g = first / kGroup; g < own / kGroup; ++g) sum += group[g];
  for (int t = own; t < thread; ++t) sum += part[t];
  return sum;
}

/// A phase of its own: the sums over each kGroup threads.
template <class Block, class T>
ANYPREC_TREE void sum_groups(const Block& block, const T* part, T* group) {
  block.each([&](int thread) {
    if (thread >= block.threads() / kGroup) return;
    T sum = 0;
    for (int t = thread * kGroup; t < (thread + 1) * kGroup; ++t) sum += part[t];
    group[thread] = sum;
  });
}

/// The last entry of begins[0 .. count), which rise, that is at most x: where entries are equal the
/// last of them. begins(0) <= x.
template <class Begin>
ANYPREC_TREE int run_of(const Begin& begins, int count, int x) {
  int low = 0;
  int high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (begins(middle) <= x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// The best candidate of each of `runs` runs of [0, begins(runs)), run r being
/// [begins(r), begins(r + 1)), whatever their lengths: every thread looks at an equal share, in
/// order, and the pieces of a run that lie with several threads are compared afterwards. Runs of no
/// candidates are passed over. Two phases.
///
/// cost_of(r): a function from a position of run r to its cost; write(r, best): the leftmost of the
/// best. begins and cost_of must not depend on what `write` writes.
template <class Block, class Begin, class CostOf, class Write>
ANYPREC_TREE void best_of_runs(const Block& block, Exchange& exchange, int runs,
                               const Begin& begins, const CostOf& cost_of, const Write& write) {
  constexpr double kInfinity = __builtin_huge_val();
  const int total = begins(runs);
  // Odd: threads that walk side by side then read from different banks of shared memory.
  const int share = (total + block.threads() - 1) / block.threads() | 1;
  block.each([&](int thread) {
    exchange.run[thread] = -1;
    const int begin = thread * share;
    const int end = begin + share < total ? begin + share : total;
    if (begin >= end) return;
    int run = run_of(begins, runs, begin);
    for (int at = begin; at < end;) {
      const int run_end = begins(run + 1);
      const int stop = run_end < end ? run_end : end;
      const bool from_before = begins(run) < begin;
      const auto cost = cost_of(run);
      Candidate best{kInfinity, at};
      for (; at < stop; ++at) {
        const double found = cost(at);
        if (found < best.cost) best = {found, at};
      }
      if (from_before) {
        exchange.head[thread] = best;
      } else if (run_end > end) {
        exchange.tail[thread] = best;
        exchange.run[thread] = run;
      } else {
        write(run, best);
      }
      for (++run; at < end && begins(run + 1) <= at; ++run) {
      }
    }
  });
  block.each([&](int thread) {
    const int run = exchange.run[thread];
    if (run < 0) return;
    Candidate best = exchange.tail[thread];
    const int run_end = begins(run + 1);
    for (int t = thread + 1; t * share < run_end; ++t) {
      if (exchange.head[t].cost < best.cost) best = exchange.head[t];
    }
    write(run, best);
  });
}

/// The best candidate of [0, count(target)) for each of `targets` <= threads() / kGroup targets, a
/// group of threads for each. Two phases. cost_of and write as above.
template <class Block, class Count, class CostOf, class Write>
ANYPREC_TREE void best_of_few(const Block& block, Exchange& exchange, int targets,
                              const Count& count, const CostOf& cost_of, const Write& write) {
  block.each([&](int thread) {
    const int target = thread / kGroup;
    if (target >= targets) return;
    const auto cost = cost_of(target);
    Candidate best{__builtin_huge_val(), thread % kGroup};
    for (int at = thread % kGroup; at < count(target); at += kGroup) {
      const double found = cost(at);
      if (found < best.cost) best = {found, at};
    }
    exchange.head[thread] = best;
  });
  block.each([&](int thread) {
    if (thread >= targets) return;
    Candidate best = exchange.head[thread * kGroup];
    for (int t = 1; t < kGroup && t < count(thread); ++t) {
      if (better(exchange.head[thread * kGroup + t], best)) {
        best = exchange.head[thread * kGroup + t];
      }
    }
    write(thread, best);
  });
}

}  // namespace anyprec::cuda::tree
