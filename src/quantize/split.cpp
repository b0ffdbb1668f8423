#include "src/quantize/split.h"

#include <algorithm>
#include <array>

namespace anyprec::quantize {
namespace {

// With the moment t of the left half about the centroid (the right half's is -t), its mass w and
// the mass W of both, a cut lowers the sum of squares by t^2 / w + t^2 / (W - w), which is W times
// this score.
double score_of(double moment, double left_mass, double total_mass) {
  return moment * moment / (left_mass * (total_mass - left_mass));
}

struct Sums {
  double mass = 0.0;
  double moment = 0.0;
};

/// Sums over points [begin, end) about `origin`, in a fixed order of four chains.
Sums sum_points(const double* value, const double* mass, std::int64_t begin, std::int64_t end,
                double origin) {
  std::array<Sums, 4> chains{};
  std::int64_t i = begin;
  for (; i + 4 <= end; i += 4) {
    for (std::int64_t c = 0; c < 4; ++c) {
      chains[c].mass += mass[i + c];
      chains[c].moment += mass[i + c] * (value[i + c] - origin);
    }
  }
  for (; i < end; ++i) {
    chains[0].mass += mass[i];
    chains[0].moment += mass[i] * (value[i] - origin);
  }
  return {(chains[0].mass + chains[1].mass) + (chains[2].mass + chains[3].mass),
          (chains[0].moment + chains[1].moment) + (chains[2].moment + chains[3].moment)};
}

struct Cut {
  double score = -1.0;
  std::int64_t position = 0;
};

/// Offers every cut in (begin, end] to `best`; `left` are the sums left of `begin`, the moment
/// about the centroid.
void scan(const double* value, const double* mass, std::int64_t begin, std::int64_t end,
          double origin, double centroid, double total_mass, Sums left, Cut& best) {
  for (std::int64_t i = begin; i < end; ++i) {
    left.mass += mass[i];
    left.moment += mass[i] * ((value[i] - origin) - centroid);
    const double score = score_of(left.moment, left.mass, total_mass);
    if (score > best.score) best = {score, i + 1};
  }
}

}  // namespace

std::int64_t best_split(std::span<const double> values, std::span<const double> masses,
                        std::int64_t begin, std::int64_t end) {
  const std::int64_t n = end - begin;
  if (n <= 1) return end;
  if (n == 2) return begin + 1;
  const double* value = values.data();
  const double* mass = masses.data();
  // Everything is summed about the first point: a tight cluster far from zero loses nothing.
  const double origin = value[begin];

  constexpr std::int64_t kDirect = 128;
  constexpr std::int64_t kBlock = 16;
  constexpr std::int64_t kMaxBlocks = 64;
  if (n < kDirect) {
    std::array<double, kDirect> left_mass;
    std::array<double, kDirect> score;  // first the left moments about the origin
    Sums sums;
    for (std::int64_t i = 0; i < n; ++i) {
      sums.mass += mass[begin + i];
      sums.moment += mass[begin + i] * (value[begin + i] - origin);
      left_mass[i] = sums.mass;
      score[i] = sums.moment;
    }
    const double centroid = sums.moment / sums.mass;
    for (std::int64_t i = 0; i < n - 1; ++i) {
      score[i] = score_of(score[i] - centroid * left_mass[i], left_mass[i], sums.mass);
    }
    std::int64_t best = 0;
    for (std::int64_t i = 1; i < n - 1; ++i) best = score[i] > score[best] ? i : best;
    return begin + best + 1;
  }

  // Sums at the borders of blocks bound what a cut inside can score, and few blocks need a look:
  // the left moment falls to the point where values pass the centroid and rises after it, and
  // w (W - w) is concave.
  const std::int64_t block = std::max(kBlock, (n + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t blocks = (n + block - 1) / block;
  std::array<Sums, kMaxBlocks + 1> left;
  left[0] = {};
  for (std::int64_t j = 0; j < blocks; ++j) {
    const std::int64_t from = begin + j * block;
    const Sums sums = sum_points(value, mass, from, std::min(from + block, end), origin);
    left[j + 1] = {left[j].mass + sums.mass, left[j].moment + sums.moment};
  }
  const double total_mass = left[blocks].mass;
  const double centroid = left[blocks].moment / total_mass;
  double best_score = 0.0;
  for (std::int64_t j = 1; j < blocks; ++j) {
    left[j].moment -= centroid * left[j].mass;
    best_score = std::max(best_score, score_of(left[j].moment, left[j].mass, total_mass));
  }
  left[blocks].moment = 0.0;

  constexpr double kRoom = 1.0 + 1e-9;  // for rounding
  Cut best{-1.0, begin + 1};
  for (std::int64_t j = 0; j < blocks; ++j) {
    const std::int64_t from = begin + j * block;
    const std::int64_t to = std::min(from + block, end);
    const bool passes_centroid =
        value[from] - origin <= centroid && value[to - 1] - origin >= centroid;
    if (j > 0 && j + 1 < blocks && !passes_centroid) {
      const double moment =
          std::max(left[j].moment * left[j].moment, left[j + 1].moment * left[j + 1].moment);
      const double product = std::min(left[j].mass * (total_mass - left[j].mass),
                                      left[j + 1].mass * (total_mass - left[j + 1].mass));
      if (moment * kRoom < best_score * product) continue;
    }
    scan(value, mass, from, std::min(to, end - 1), origin, centroid, total_mass, left[j], best);
  }
  return best.position;
}

}  // namespace anyprec::quantize
