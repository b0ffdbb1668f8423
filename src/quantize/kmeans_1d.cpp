#include "src/quantize/kmeans_1d.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace anyprec::quantize {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Bounds are compared with this much room for rounding: relative to the known cost, and to the
/// sum of squares that the costs are differences of.
constexpr double kRelativeRoom = 1e-9;
constexpr double kRoundingRoom = 1e-12;

/// Up to this many clusters the first grid computes the costs between any two of its edges.
constexpr std::int64_t kMaxClustersOfPairs = 16;
/// Beyond so many a grid that costs less than the exact program narrows nothing.
constexpr std::int64_t kMaxClustersOfGrid = 64;

/// Bins of the first grid for each cluster, the fewest, and points for one more; of a later grid
/// for each cluster and for each window; and the width of windows that the exact program takes as
/// they are: the fastest by measurement.
constexpr std::int64_t kBinsPerCluster = 8;
constexpr std::int64_t kFewestBins = 59;
constexpr std::int64_t kPointsPerExtraBin = 256;
constexpr std::int64_t kRefinedBins = 12;
constexpr std::int64_t kBinsPerWindow = 24;
constexpr std::int64_t kExactWidth = 256;

/// Fewer candidates than this are not worth a search for where the best ones of a run lie.
constexpr std::int64_t kBlockCandidates = 8;

/// The first position of a value that is not less than x, looked for from `near` outwards.
std::int64_t first_from(std::span<const double> value, std::int64_t near, double x) {
  const auto m = static_cast<std::int64_t>(value.size());
  std::int64_t low = near;
  std::int64_t high = near;
  for (std::int64_t step = 1; low > 0 && value[low - 1] >= x; step *= 2) {
    high = low - 1;
    low = std::max<std::int64_t>(high - step, 0);
  }
  for (std::int64_t step = 1; high < m && value[high] < x; step *= 2) {
    low = high + 1;
    high = std::min(low + step, m);
  }
  return std::lower_bound(value.begin() + low, value.begin() + high, x) - value.begin();
}

/// One layer of a shortest path: from each b in `to`, the best a in `from` with a <= b - gap, at
/// from_cost(a) + the cost of the segment a .. b, which is nothing up to a length b - a of `free`.
struct Layer {
  const Kernels& kernels;
  PrefixView prefix;        ///< at position 0
  const double* from_cost;  ///< of from_low
  std::int64_t from_low;
  std::int64_t gap;
  std::int64_t free;
  double* to_cost;  ///< of to_low
  std::int64_t to_low;

  /// The best a in [low, high] for b.
  std::int64_t best(std::int64_t b, std::int64_t low, std::int64_t high) const {
    high = std::min(high, b - gap);
    const std::int64_t last = std::min(high, b - 1 - free);
    Candidate best{kInfinity, 0};
    if (low <= last) {
      best = kernels.best(from_cost + (low - from_low), prefix + low, prefix[b], last - low + 1);
    }
    best.index += low;
    for (std::int64_t a = std::max(low, b - free); a <= high; ++a) {
      const double cost = from_cost[a - from_low];
      if (cost < best.cost) best = {cost, a};
    }
    return best.index;
  }

  /// All b in [first, last], whose best a are in [low, high]: they rise with b.
  void solve(std::int64_t first, std::int64_t last, std::int64_t low, std::int64_t high) const {
    while (last - first >= kLanes && high - low >= kBlockCandidates) {
      const std::int64_t half = (last - first + kLanes) / (2 * kLanes) * kLanes;
      const std::int64_t middle = best(first + half, low, high);
      solve(first, first + half - 1, low, middle);
      first += half;
      low = middle;
    }
    kernels.block(from_cost + (low - from_low), prefix + low, high - low + 1, prefix + first,
                  last - first + 1, first - low, gap, free, to_cost + (first - to_low));
  }
};

}  // namespace

KMeans1D::KMeans1D(const Kernels& kernels) : kernels_(kernels) {}

std::int64_t KMeans1D::total_width() const {
  std::int64_t total = 0;
  for (const Window& window : windows_) total += window.high - window.low;
  return total;
}

std::int64_t KMeans1D::widest_window() const {
  std::int64_t widest = 0;
  for (const Window& window : windows_) widest = std::max(widest, window.high - window.low);
  return widest;
}

void KMeans1D::build_prefix(std::span<const double> value, std::span<const double> mass) {
  // Sums run outwards from the middle point, with values about it: a huge outlier then spoils only
  // the sums beyond it, and neighbours are told apart as finely as their distance from the middle.
  const std::size_t m = value.size();
  const std::size_t middle = m / 2;
  const double centre = value[middle];
  points_.resize(m + 1);
  PrefixPoint sum{0.0, 0.0, 0.0};
  points_.put(static_cast<std::int64_t>(middle), sum);
  for (std::size_t i = middle; i < m; ++i) {
    const double x = value[i] - centre;
    const double moment = mass[i] * x;
    sum = {sum.mass + mass[i], sum.moment + moment, sum.square + moment * x};
    points_.put(static_cast<std::int64_t>(i + 1), sum);
  }
  sum = {0.0, 0.0, 0.0};
  for (std::size_t i = middle; i-- > 0;) {
    const double x = value[i] - centre;
    const double moment = mass[i] * x;
    sum = {sum.mass - mass[i], sum.moment - moment, sum.square - moment * x};
    points_.put(static_cast<std::int64_t>(i), sum);
  }
}

void KMeans1D::choose_edges(std::span<const double> value, std::int64_t bins) {
  // A bin that a border cuts loosens the bound by its mass times the squared distance to the
  // centroids. At an optimum these stand with a density of f^(1/3) for a density f of mass, so that
  // all bins loosen it alike when each has an equal share of the integral of f^(1/3), which is
  // (mass * spacing^2)^(1/3) over a block of points. Half of the share goes by count, so that no
  // outlier takes all bins.
  constexpr std::int64_t kBlock = 16;
  const auto m = static_cast<std::int64_t>(value.size());
  const std::int64_t blocks = (m + kBlock - 1) / kBlock;
  block_.resize(static_cast<std::size_t>(blocks));
  double total = 0.0;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t begin = i * kBlock;
    const std::int64_t end = std::min(begin + kBlock, m);
    const double mass = points_.mass[end] - points_.mass[begin];
    const double spacing = value[std::min(end, m - 1)] - value[begin];
    block_[i] = std::cbrt(mass * spacing * spacing);
    total += block_[i];
  }

  edges_.clear();
  edges_.push_back(0);
  const double by_spacing = total > 0.0 ? 0.5 * static_cast<double>(bins) / total : 0.0;
  const double by_count = 0.5 * static_cast<double>(bins) / static_cast<double>(blocks);
  double share = 0.0;  // in bins, up to the block
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t begin = i * kBlock;
    const std::int64_t end = std::min(begin + kBlock, m);
    const double next = share + block_[i] * by_spacing + by_count;
    const double points_per_bin = static_cast<double>(end - begin) / (next - share);
    for (double edge = std::floor(share) + 1.0; edge <= next; edge += 1.0) {
      const auto offset = static_cast<std::int64_t>((edge - share) * points_per_bin);
      const std::int64_t position = std::min(begin + offset, end);
      if (position > edges_.back() && position < m) edges_.push_back(position);
    }
    share = next;
  }
  edges_.push_back(m);
}

void KMeans1D::refine_edges() {
  std::int64_t positions = 0;  // in any window
  std::int64_t next = 0;
  for (std::int64_t j = 1; j < clusters(); ++j) {
    positions += windows_[j].high + 1 - std::max(next, windows_[j].low);
    next = windows_[j].high + 1;
  }
  edges_.clear();
  for (std::int64_t j = 1; j < clusters(); ++j) {
    const Window window = windows_[j];
    const std::int64_t step = 1 + std::min((window.high - window.low) / kBinsPerWindow,
                                           positions / (kRefinedBins * clusters()));
    std::int64_t position = window.low;
    if (!edges_.empty() && edges_.back() >= position) position = edges_.back() + step;
    for (; position < window.high; position += step) edges_.push_back(position);
    if (edges_.empty() || edges_.back() < window.high) edges_.push_back(window.high);
  }
}

void KMeans1D::gather_edges(std::span<const double> value, std::span<const double> mass) {
  const auto edges = static_cast<std::int64_t>(edges_.size());
  const PrefixView prefix = points_.view();
  // Room for runs of pairs.
  edge_sums_.resize(edges_.size() + kPairRun);
  for (std::int64_t i = 0; i < edges; ++i) edge_sums_.put(i, prefix[edges_[i]]);
  spread_.resize(edges_.size());
  kernels_.spread(value.data(), mass.data(), value[value.size() / 2], edges_.data(),
                  edge_sums_.view(), edges - 1, spread_.data());
}

inline double KMeans1D::bin_slack(std::span<const double> value, std::int64_t i,
                                  std::int64_t leftmost, std::int64_t rightmost) const {
  // The border lies between edges i and i + 1, midway between the centroids, each of which is at
  // most as far out as the mean up to the bin of all that its cluster may have.
  const auto m = static_cast<std::int64_t>(value.size());
  const double centre = value[value.size() / 2];
  const double left_mass = edge_sums_.mass[i] - points_.mass[leftmost];
  const double right_mass = points_.mass[rightmost] - edge_sums_.mass[i + 1];
  const double left = left_mass > 0.0
                          ? (edge_sums_.moment[i] - points_.moment[leftmost]) / left_mass
                          : value[leftmost] - centre;
  const double right = right_mass > 0.0
                           ? (points_.moment[rightmost] - edge_sums_.moment[i + 1]) / right_mass
                           : value[rightmost - 1] - centre;
  const double low = value[std::max<std::int64_t>(edges_[i] - 1, 0)] - centre;
  const double high = value[std::min(edges_[i + 1], m - 1)] - centre;
  return 2.0 * std::max(0.0, std::min(high - left, right - low)) * spread_[i];
}

void KMeans1D::limit_reach(std::span<const double> value) {
  // No cluster of an optimum costs more than all of a partition into equally many bins.
  const std::int64_t last = static_cast<std::int64_t>(edges_.size()) - 1;
  const PrefixView sums = edge_sums_.view();
  double known = 0.0;
  for (std::int64_t j = 0; j < clusters(); ++j) {
    known += segment_cost(sums[j * last / clusters()], sums[(j + 1) * last / clusters()]);
  }
  const double limit =
      known * (1.0 + kRelativeRoom) + (sums.square[last] - sums.square[0]) * kRoundingRoom;

  // Clusters that end at edge i or after it do not begin before edge left_reach_[i], and clusters
  // that begin at edge i or before it do not end after edge right_reach_[i].
  left_reach_.resize(edges_.size());
  right_reach_.resize(edges_.size());
  std::int64_t left = 0;
  std::int64_t right = 0;
  for (std::int64_t i = 0; i <= last; ++i) {
    while (left + 1 < i && segment_cost(sums[left + 1], sums[i]) > limit) ++left;
    right = std::max(right, std::min(i + 1, last));
    while (right < last && segment_cost(sums[i], sums[right]) <= limit) ++right;
    left_reach_[i] = left;
    right_reach_[i] = right;
  }

  edge_slack_.resize(edges_.size());
  double before = 0.0;
  for (std::int64_t i = 0; i < last; ++i) {
    const double slack = bin_slack(value, i, edges_[left_reach_[i]], edges_[right_reach_[i + 1]]);
    edge_slack_[i] = std::max(before, slack);
    before = slack;
  }
  edge_slack_[last] = before;

  std::int64_t farthest = 0;
  std::int64_t nearest = last;
  for (std::int64_t j = 1; j < clusters(); ++j) {
    farthest = right_reach_[farthest];
    nearest = left_reach_[nearest];
    windows_[j].high = std::min(windows_[j].high, edges_[farthest]);
    Window& mirrored = windows_[clusters() - j];
    mirrored.low = std::max(mirrored.low, edges_[nearest]);
  }
}

void KMeans1D::bound_on_all_edges() {
  const auto edges = static_cast<std::int64_t>(edges_.size());
  // Copies of the last edge make the last run whole.
  const std::int64_t count = (edges + kPairRun - 1) / kPairRun * kPairRun;
  for (std::int64_t i = edges; i < count; ++i) edge_sums_.put(i, edge_sums_.view()[edges - 1]);
  pair_costs_.resize(static_cast<std::size_t>(count * count));
  kernels_.pairs(edge_sums_.view(), count, pair_costs_.data());

  slack_ = edge_slack_;
  slack_.resize(static_cast<std::size_t>(count), 0.0);
  ranges_.assign(windows_.size(), {0, edges - 1});
  offsets_.resize(windows_.size());
  for (std::int64_t j = 1; j <= clusters(); ++j) offsets_[j] = (j - 1) * count;
  const auto sweep = [&](bool rightwards, std::vector<double>& costs) {
    costs.resize(static_cast<std::size_t>(offsets_[clusters()]));
    const double* from = nullptr;
    for (std::int64_t r = 1; r < clusters(); ++r) {
      double* to = costs.data() + offsets_[rightwards ? r : clusters() - r];
      if (r == 1) {
        std::copy_n(pair_costs_.data() + (rightwards ? 0 : (edges - 1) * count), count, to);
      } else {
        kernels_.relax(from, pair_costs_.data(), count, rightwards, to);
      }
      for (std::int64_t i = 0; i < count; ++i) to[i] -= slack_[i];
      from = to;
    }
  };
  sweep(true, left_costs_);
  sweep(false, right_costs_);
  bounds_.resize(left_costs_.size());
  for (std::int64_t j = 1; j < clusters(); ++j) {
    const std::int64_t at = offsets_[j];
    for (std::int64_t i = 0; i < count; ++i) {
      bounds_[at + i] = left_costs_[at + i] + right_costs_[at + i] + slack_[i];
    }
  }
}

void KMeans1D::bound_in_windows(std::span<const double> value, bool first) {
  const auto m = static_cast<std::int64_t>(value.size());
  const auto edges = static_cast<std::int64_t>(edges_.size());
  ranges_.resize(windows_.size());
  mirror_ranges_.resize(windows_.size());
  offsets_.resize(windows_.size());
  offsets_[1] = 0;
  std::int64_t low = 0;
  std::int64_t high = 0;
  for (std::int64_t j = 1; j < clusters(); ++j) {
    while (low + 1 < edges && edges_[low + 1] <= windows_[j].low) ++low;
    while (high + 1 < edges && edges_[high] < windows_[j].high) ++high;
    ranges_[j] = {low, high};
    mirror_ranges_[clusters() - j] = {edges - 1 - high, edges - 1 - low};
    offsets_[j + 1] = offsets_[j] + high - low + 1;
  }
  slack_.resize(static_cast<std::size_t>(offsets_[clusters()]));
  for (std::int64_t j = 1; j < clusters(); ++j) {
    double* slack = slack_.data() + offsets_[j] - ranges_[j].low;
    if (first) {
      std::copy(edge_slack_.begin() + ranges_[j].low, edge_slack_.begin() + ranges_[j].high + 1,
                slack + ranges_[j].low);
      continue;
    }
    double last = 0.0;
    for (std::int64_t i = ranges_[j].low; i < ranges_[j].high; ++i) {
      const double next = bin_slack(value, i, windows_[j - 1].low, windows_[j + 1].high);
      slack[i] = std::max(last, next);
      last = next;
    }
    slack[ranges_[j].high] = last;
  }

  mirror_sums_.resize(edges_.size());
  for (std::int64_t i = 0; i < edges; ++i) {
    const PrefixPoint at = edge_sums_.view()[edges - 1 - i];
    mirror_sums_.put(i, {-at.mass, -at.moment, -at.square});
  }
  const PrefixPoint end = points_.view()[m];
  bound_side(edge_sums_, points_.view()[0], false, left_costs_);
  bound_side(mirror_sums_, {-end.mass, -end.moment, -end.square}, true, right_costs_);
  bounds_.resize(left_costs_.size());
  for (std::int64_t j = 1; j < clusters(); ++j) {
    const std::int64_t last = offsets_[j] + offsets_[j + 1] - 1;
    for (std::int64_t at = offsets_[j]; at < offsets_[j + 1]; ++at) {
      bounds_[at] = left_costs_[at] + right_costs_[last - at] + slack_[at];
    }
  }
}

void KMeans1D::bound_side(const Prefix& sums, const PrefixPoint& origin, bool mirrored,
                          std::vector<double>& costs) {
  const std::vector<Window>& ranges = mirrored ? mirror_ranges_ : ranges_;
  costs.resize(static_cast<std::size_t>(offsets_[clusters()] + kLanes - 1));
  const PrefixView ends = sums.view();
  // Offsets and slacks are those of border j read forwards; border r = clusters - j of the mirror
  // keeps its costs there too, in its own order.
  const auto at = [&](std::int64_t r) { return offsets_[mirrored ? clusters() - r : r]; };
  const auto relax = [&](std::int64_t r) {
    const std::int64_t size = ranges[r].high - ranges[r].low + 1;
    double* cost = costs.data() + at(r);
    const double* slack = slack_.data() + at(r);
    for (std::int64_t i = 0; i < size; ++i) cost[i] -= slack[mirrored ? size - 1 - i : i];
  };
  for (std::int64_t i = ranges[1].low; i <= ranges[1].high; ++i) {
    costs[at(1) + i - ranges[1].low] =
        ends.mass[i] > origin.mass ? segment_cost(origin, ends[i]) : 0.0;
  }
  relax(1);
  for (std::int64_t r = 2; r < clusters(); ++r) {
    const Layer layer{.kernels = kernels_,
                      .prefix = ends,
                      .from_cost = costs.data() + at(r - 1),
                      .from_low = ranges[r - 1].low,
                      .gap = 0,
                      .free = 0,
                      .to_cost = costs.data() + at(r),
                      .to_low = ranges[r].low};
    layer.solve(ranges[r].low, ranges[r].high, ranges[r - 1].low, ranges[r - 1].high);
    relax(r);
  }
}

void KMeans1D::narrow(std::span<const double> value) {
  const auto m = static_cast<std::int64_t>(value.size());
  const auto bound = [&](std::int64_t j, std::int64_t i) {
    return bounds_[offsets_[j] + i - ranges_[j].low];
  };
  // The best edge of each border, taken together, is nearly the optimum; Lloyd's iterations make a
  // better partition of it.
  for (std::int64_t j = 1; j < clusters(); ++j) {
    double least = kInfinity;
    std::int64_t best = ranges_[j].low;
    for (std::int64_t i = ranges_[j].low; i <= ranges_[j].high; ++i) {
      if (bound(j, i) < least) {
        least = bound(j, i);
        best = i;
      }
    }
    borders_[j] = std::clamp(edges_[best], borders_[j - 1], m);
  }
  known_cost_ = std::min(known_cost_, improve(value));

  const PrefixView prefix = points_.view();
  const double squares = prefix.square[m] - prefix.square[0];
  const double limit = known_cost_ * (1.0 + kRelativeRoom) + squares * kRoundingRoom;
  for (std::int64_t j = 1; j < clusters(); ++j) {
    Window kept = ranges_[j];
    while (kept.low < kept.high && bound(j, kept.low) > limit) ++kept.low;
    while (kept.low < kept.high && bound(j, kept.high) > limit) --kept.high;
    if (kept.low > ranges_[j].low) {
      windows_[j].low = std::max(windows_[j].low, edges_[kept.low - 1] + 1);
    }
    if (kept.high < ranges_[j].high) {
      windows_[j].high = std::min(windows_[j].high, edges_[kept.high + 1] - 1);
    }
  }
  // Borders rise strictly.
  for (std::int64_t j = 2; j < clusters(); ++j) {
    windows_[j].low = std::max(windows_[j].low, windows_[j - 1].low + 1);
  }
  for (std::int64_t j = clusters() - 2; j >= 1; --j) {
    windows_[j].high = std::min(windows_[j].high, windows_[j + 1].high - 1);
  }
}

double KMeans1D::improve(std::span<const double> value) {
  constexpr int kIterations = 10;
  const auto m = static_cast<std::int64_t>(value.size());
  const PrefixView prefix = points_.view();
  const double centre = value[value.size() / 2];
  centroids_.resize(windows_.size());
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    for (std::int64_t j = 0; j < clusters(); ++j) {
      const std::int64_t begin = borders_[j];
      const std::int64_t end = borders_[j + 1];
      centroids_[j] = begin == end ? value[std::min(begin, m - 1)] - centre
                                   : (prefix.moment[end] - prefix.moment[begin]) /
                                         (prefix.mass[end] - prefix.mass[begin]);
    }
    bool moved = false;
    for (std::int64_t j = 1; j < clusters(); ++j) {
      const double middle = centre + 0.5 * (centroids_[j - 1] + centroids_[j]);
      const std::int64_t border = std::max(first_from(value, borders_[j], middle), borders_[j - 1]);
      moved |= border != borders_[j];
      borders_[j] = border;
    }
    if (!moved) break;
  }
  double cost = 0.0;
  for (std::int64_t j = 0; j < clusters(); ++j) {
    if (borders_[j + 1] - borders_[j] > 1) {
      cost += segment_cost(prefix[borders_[j]], prefix[borders_[j + 1]]);
    }
  }
  return cost;
}

void KMeans1D::solve_exactly(std::span<std::int64_t> borders) {
  const PrefixView prefix = points_.view();
  offsets_.resize(windows_.size());
  offsets_[1] = 0;
  for (std::int64_t j = 1; j < clusters(); ++j) {
    offsets_[j + 1] = offsets_[j] + windows_[j].high - windows_[j].low + 1;
  }
  left_costs_.resize(static_cast<std::size_t>(offsets_[clusters()] + kLanes - 1));
  /// To border j.
  const auto layer = [&](std::int64_t j) {
    return Layer{.kernels = kernels_,
                 .prefix = prefix,
                 .from_cost = left_costs_.data() + offsets_[j - 1],
                 .from_low = windows_[j - 1].low,
                 .gap = 1,
                 .free = 1,
                 .to_cost = left_costs_.data() + offsets_[j],
                 .to_low = windows_[j].low};
  };
  for (std::int64_t p = windows_[1].low; p <= windows_[1].high; ++p) {
    left_costs_[p - windows_[1].low] = p == 1 ? 0.0 : segment_cost(prefix[0], prefix[p]);
  }
  for (std::int64_t j = 2; j < clusters(); ++j) {
    layer(j).solve(windows_[j].low, windows_[j].high, windows_[j - 1].low, windows_[j - 1].high);
  }
  for (std::int64_t j = clusters(); j >= 2; --j) {
    borders[j - 1] = layer(j).best(borders[j], windows_[j - 1].low, windows_[j - 1].high);
  }
}

void KMeans1D::narrow_by_grids(std::span<const double> value, std::span<const double> mass) {
  const auto m = static_cast<std::int64_t>(value.size());
  const std::int64_t fewest = clusters() <= 8 ? kFewestBins : kBinsPerCluster * clusters();
  const std::int64_t bins = fewest + m / kPointsPerExtraBin;
  if (2 * bins > m) return;
  choose_edges(value, bins);
  gather_edges(value, mass);
  limit_reach(value);
  for (bool first = true;; first = false) {
    const std::int64_t before = total_width();
    if (first && clusters() <= kMaxClustersOfPairs) {
      bound_on_all_edges();
    } else {
      bound_in_windows(value, first);
    }
    narrow(value);
    // A grid that did little is followed by one that does little.
    if (widest_window() < kExactWidth || 3 * total_width() > 2 * before) return;
    refine_edges();
    gather_edges(value, mass);
  }
}

void KMeans1D::fit(std::span<const double> value, std::span<const double> mass,
                   std::span<std::int64_t> borders) {
  const auto m = static_cast<std::int64_t>(value.size());
  const auto wanted = static_cast<std::int64_t>(borders.size()) - 1;
  if (m <= wanted || wanted == 1) {
    for (std::int64_t j = 0; j <= wanted; ++j) borders[j] = j == wanted ? m : std::min(j, m);
    return;
  }
  build_prefix(value, mass);
  windows_.resize(borders.size());
  windows_[0] = {0, 0};
  windows_[wanted] = {m, m};
  for (std::int64_t j = 1; j < wanted; ++j) windows_[j] = {j, m - (wanted - j)};
  borders_.assign(borders.size(), 0);
  borders_[wanted] = m;
  known_cost_ = kInfinity;

  if (wanted <= kMaxClustersOfGrid) narrow_by_grids(value, mass);
  borders[0] = 0;
  borders[wanted] = m;
  solve_exactly(borders);
}

}  // namespace anyprec::quantize
