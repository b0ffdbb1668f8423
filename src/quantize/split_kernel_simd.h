#pragma once

#include <cstdint>

#include "src/quantize/lanes.h"

/// The search for the best cut of a cluster, over kLanes points at a time.
namespace anyprec::quantize {
namespace {

/// Left sums of a cluster up to a cut.
struct CutSums {
  double mass;
  double moment;
};

/// The best cut seen so far, in every lane.
template <class S>
struct BestCut {
  typename S::Vec score = S::set(-1.0);
  typename S::Vec position = S::set(0.0);

  /// With the moment t of the left half about the centroid (the right half's is -t), its mass w and
  /// the mass W of both, a cut lowers the sum of squares by t^2 / w + t^2 / (W - w), which is W
  /// times the score. Position is that of the cuts, of which only those below `end` count.
  ANYPREC_LANES_INLINE void offer(typename S::Vec mass, typename S::Vec moment, double centroid,
                                  double total_mass, double at, double end) {
    const auto positions = S::add(S::lanes(), S::set(at));
    const auto t = S::sub(moment, S::mul(S::set(centroid), mass));
    const auto product = S::mul(mass, S::sub(S::set(total_mass), mass));
    const auto scores = S::div(S::mul(t, t), product);
    const auto better = S::both(S::less(score, scores), S::less(positions, S::set(end)));
    score = S::select(better, scores, score);
    position = S::select(better, positions, position);
  }
  /// The leftmost of the best.
  ANYPREC_LANES_INLINE std::int64_t leftmost() const {
    const auto others = S::less(score, S::set(S::reduce_max(score)));
    return static_cast<std::int64_t>(
        S::reduce_min(S::select(others, S::set(__builtin_inf()), position)));
  }
};

/// Left sums at the cuts after each of kLanes points, `before` being those left of the points.
template <class S>
struct CutLanes {
  typename S::Vec mass, moment;

  static ANYPREC_LANES_INLINE CutLanes of(typename S::Vec value, typename S::Vec mass,
                                          double origin, CutSums before) {
    const auto moment = S::mul(mass, S::sub(value, S::set(origin)));
    return {S::add(S::running_sum(mass), S::set(before.mass)),
            S::add(S::running_sum(moment), S::set(before.moment))};
  }
  ANYPREC_LANES_INLINE CutSums last() const { return {S::last(mass), S::last(moment)}; }
};

/// Points [begin, end), of which there are up to kLanes.
template <class S>
ANYPREC_LANES_INLINE std::int64_t split_few(const double* value, const double* mass,
                                            std::int64_t begin, std::int64_t end) {
  const std::int64_t n = end - begin;
  const auto cuts = CutLanes<S>::of(S::load_first(value + begin, n), S::load_first(mass + begin, n),
                                    value[begin], {0.0, 0.0});
  const CutSums total = cuts.last();
  BestCut<S> best;
  best.offer(cuts.mass, cuts.moment, total.moment / total.mass, total.mass, 0.0,
             static_cast<double>(n - 1));
  return begin + 1 + best.leftmost();
}

/// Offers the cuts after the points [from, to), where `left` are the sums left of `from`.
template <class S>
ANYPREC_LANES_INLINE void scan_cuts(const double* value, const double* mass, std::int64_t from,
                                    std::int64_t to, double origin, double centroid,
                                    double total_mass, CutSums left, BestCut<S>& best) {
  for (std::int64_t i = from; i < to; i += kLanes) {
    const auto cuts = CutLanes<S>::of(S::load_first(value + i, to - i),
                                      S::load_first(mass + i, to - i), origin, left);
    left = cuts.last();
    best.offer(cuts.mass, cuts.moment, centroid, total_mass, static_cast<double>(i),
               static_cast<double>(to));
  }
}

constexpr std::int64_t kMaxDirect = 128;

/// Fewer than kMaxDirect points.
template <class S>
std::int64_t split_directly(const double* value, const double* mass, std::int64_t begin,
                            std::int64_t end) {
  const double origin = value[begin];
  CutLanes<S> cuts[kMaxDirect / kLanes];
  CutSums total{0.0, 0.0};
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; i += kLanes, ++count) {
    cuts[count] = CutLanes<S>::of(S::load_first(value + i, end - i),
                                  S::load_first(mass + i, end - i), origin, total);
    total = cuts[count].last();
  }
  const double centroid = total.moment / total.mass;
  BestCut<S> best;
  for (std::int64_t i = 0; i < count; ++i) {
    best.offer(cuts[i].mass, cuts[i].moment, centroid, total.mass, static_cast<double>(i * kLanes),
               static_cast<double>(end - begin - 1));
  }
  return begin + 1 + best.leftmost();
}

/// Sums at the borders of blocks bound what a cut inside can score, and few blocks need a look: the
/// left moment falls to the point where values pass the centroid and rises after it, and w (W - w)
/// is concave.
template <class S>
std::int64_t split_by_blocks(const double* value, const double* mass, std::int64_t begin,
                             std::int64_t end) {
  constexpr std::int64_t kMaxBlocks = 64;
  const std::int64_t n = end - begin;
  const double origin = value[begin];
  const std::int64_t runs = (n + kLanes - 1) / kLanes;
  const std::int64_t block =
      kLanes * (runs < 2 * kMaxBlocks ? 2 : (runs + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t blocks = (n + block - 1) / block;
  CutSums left[kMaxBlocks + 1];
  left[0] = {0.0, 0.0};
  for (std::int64_t j = 0; j < blocks; ++j) {
    const std::int64_t from = begin + j * block;
    const std::int64_t to = from + block < end ? from + block : end;
    auto masses = S::set(0.0);
    auto moments = masses;
    for (std::int64_t i = from; i < to; i += kLanes) {
      const auto w = S::load_first(mass + i, to - i);
      const auto x = S::load_first(value + i, to - i);
      masses = S::add(masses, w);
      moments = S::add(moments, S::mul(w, S::sub(x, S::set(origin))));
    }
    left[j + 1] = {left[j].mass + S::reduce_add(masses), left[j].moment + S::reduce_add(moments)};
  }
  const double total_mass = left[blocks].mass;
  const double centroid = left[blocks].moment / total_mass;
  double best_score = 0.0;
  double squares[kMaxBlocks + 1];   // of the left moment about the centroid
  double products[kMaxBlocks + 1];  // w (W - w)
  for (std::int64_t j = 0; j <= blocks; ++j) {
    const double moment = left[j].moment - centroid * left[j].mass;
    squares[j] = moment * moment;
    products[j] = left[j].mass * (total_mass - left[j].mass);
    if (j == 0 || j == blocks) continue;
    const double score = squares[j] / products[j];
    best_score = score > best_score ? score : best_score;
  }

  constexpr double kRoom = 1.0 + 1e-9;  // for rounding
  BestCut<S> best;
  for (std::int64_t j = 0; j < blocks; ++j) {
    const std::int64_t from = begin + j * block;
    const std::int64_t to = from + block < end ? from + block : end;
    const bool passes_centroid =
        value[from] - origin <= centroid && value[to - 1] - origin >= centroid;
    if (j > 0 && j + 1 < blocks && !passes_centroid) {
      const double square = squares[j] > squares[j + 1] ? squares[j] : squares[j + 1];
      const double product = products[j] < products[j + 1] ? products[j] : products[j + 1];
      if (square * kRoom < best_score * product) continue;
    }
    scan_cuts<S>(value, mass, from, to < end - 1 ? to : end - 1, origin, centroid, total_mass,
                 left[j], best);
  }
  return best.leftmost() + 1;
}

template <class S>
void split(const double* value, const double* mass, const std::int64_t* borders,
           std::int64_t clusters, std::int64_t* children) {
  for (std::int64_t c = 0; c < clusters; ++c) {
    const std::int64_t begin = borders[c];
    const std::int64_t end = borders[c + 1];
    const std::int64_t n = end - begin;
    std::int64_t cut = end;
    if (n > 1) {
      cut = n <= kLanes      ? split_few<S>(value, mass, begin, end)
            : n < kMaxDirect ? split_directly<S>(value, mass, begin, end)
                             : split_by_blocks<S>(value, mass, begin, end);
    }
    children[2 * c] = begin;
    children[2 * c + 1] = cut;
  }
  children[2 * clusters] = borders[clusters];
}

}  // namespace
}  // namespace anyprec::quantize
