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

/// Bins of the first grid for each cluster, the fewest, and points for one more; of a later grid
/// for each cluster and for each window; and the width of windows that the exact program takes as
/// they are: the fastest by measurement.
constexpr std::int64_t kBinsPerCluster = 8;
constexpr std::int64_t kFewestBins = 64;
constexpr std::int64_t kPointsPerExtraBin = 128;
constexpr std::int64_t kRefinedBins = 12;
constexpr std::int64_t kBinsPerWindow = 24;
constexpr std::int64_t kExactWidth = 64;
constexpr int kRefinements = 3;

/// Blocks of targets with up to this many candidates are scanned whole.
constexpr std::int64_t kBlockCandidates = 16;

/// One layer of a shortest path: from each b in `to`, the best a in `from` with a <= b - gap, at
/// from_cost(a) + the cost of the segment a .. b, which is nothing up to a length b - a of `free`.
struct Layer {
  ScanKernels scan;
  PrefixView prefix;        ///< at position 0
  const double* from_cost;  ///< of from_low
  std::int64_t from_low;
  std::int64_t gap;
  std::int64_t free;
  double* to_cost;        ///< of to_low
  std::uint32_t* parent;  ///< of to_low; may be null
  std::int64_t to_low;

  Candidate best(std::int64_t b, std::int64_t low, std::int64_t high) const {
    high = std::min(high, b - gap);
    const std::int64_t last = std::min(high, b - 1 - free);
    Candidate best{kInfinity, low};
    if (low <= last) {
      best = scan.candidates(from_cost + (low - from_low), prefix + low, prefix[b], last - low + 1);
      best.index += low;
    }
    for (std::int64_t a = std::max(low, b - free); a <= high; ++a) {
      const double cost = from_cost[a - from_low];
      if (cost < best.cost) best = {cost, a};
    }
    return best;
  }

  /// All b in [first, last], whose best a are in [low, high]: they rise with b.
  void solve(std::int64_t first, std::int64_t last, std::int64_t low, std::int64_t high) const {
    while (first <= last) {
      if (last - first < kBlockTargets && high - low < kBlockCandidates) {
        solve_block(first, last, low, high);
        return;
      }
      const std::int64_t b = first + (last - first) / 2;
      const Candidate found = best(b, low, high);
      to_cost[b - to_low] = found.cost;
      if (parent != nullptr) parent[b - to_low] = static_cast<std::uint32_t>(found.index);
      solve(first, b - 1, low, found.index);
      first = b + 1;
      low = found.index;
    }
  }

  void solve_block(std::int64_t first, std::int64_t last, std::int64_t low,
                   std::int64_t high) const {
    std::int64_t indices[kBlockTargets];
    scan.block(from_cost + (low - from_low), prefix + low, high - low + 1, prefix + first,
               last - first + 1, first - low, gap, free, to_cost + (first - to_low), indices);
    if (parent == nullptr) return;
    for (std::int64_t b = first; b <= last; ++b) {
      parent[b - to_low] = static_cast<std::uint32_t>(low + indices[b - first]);
    }
  }
};

}  // namespace

KMeans1D::KMeans1D(const ScanKernels& kernels) : scan_(kernels) {}

void KMeans1D::Prefix::resize(std::size_t size) {
  // Room for a block of targets that begins at the last position.
  size += kBlockTargets - 1;
  mass.resize(size);
  moment.resize(size);
  square.resize(size);
}

PrefixView KMeans1D::Prefix::view(std::int64_t shift) const {
  return {mass.data() + shift, moment.data() + shift, square.data() + shift};
}

void KMeans1D::build_prefix(std::span<const double> value, std::span<const double> mass) {
  // Sums run outwards from the middle point, with values about it: a huge outlier then spoils only
  // the sums beyond it, and neighbours are told apart as finely as their distance from the middle.
  const std::size_t m = value.size();
  const std::size_t middle = m / 2;
  const double centre = value[middle];
  points_.resize(m + 1);
  points_.mass[middle] = points_.moment[middle] = points_.square[middle] = 0.0;
  for (std::size_t i = middle; i < m; ++i) {
    const double x = value[i] - centre;
    const double moment = mass[i] * x;
    points_.mass[i + 1] = points_.mass[i] + mass[i];
    points_.moment[i + 1] = points_.moment[i] + moment;
    points_.square[i + 1] = points_.square[i] + moment * x;
  }
  for (std::size_t i = middle; i-- > 0;) {
    const double x = value[i] - centre;
    const double moment = mass[i] * x;
    points_.mass[i] = points_.mass[i + 1] - mass[i];
    points_.moment[i] = points_.moment[i + 1] - moment;
    points_.square[i] = points_.square[i + 1] - moment * x;
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
  const auto clusters = static_cast<std::int64_t>(borders_.size()) - 1;
  std::int64_t positions = 0;  // in any window
  std::int64_t next = 0;
  for (std::int64_t j = 1; j < clusters; ++j) {
    positions += windows_[j].high + 1 - std::max(next, windows_[j].low);
    next = windows_[j].high + 1;
  }
  edges_.clear();
  for (std::int64_t j = 1; j < clusters; ++j) {
    const Window window = windows_[j];
    const std::int64_t step = 1 + std::min((window.high - window.low) / kBinsPerWindow,
                                           positions / (kRefinedBins * clusters));
    std::int64_t position = window.low;
    if (!edges_.empty() && edges_.back() >= position) position = edges_.back() + step;
    for (; position < window.high; position += step) edges_.push_back(position);
    if (edges_.empty() || edges_.back() < window.high) edges_.push_back(window.high);
  }
}

void KMeans1D::gather_edges(std::int64_t m) {
  const auto clusters = static_cast<std::int64_t>(borders_.size()) - 1;
  const auto edges = static_cast<std::int64_t>(edges_.size());
  const PrefixView prefix = points_.view();
  const double rounding = (prefix.square[m] - prefix.square[0]) * kRoundingRoom;
  edge_sums_.resize(edges_.size());
  mirror_sums_.resize(edges_.size());
  spread_.resize(edges_.size());
  for (std::int64_t i = 0; i < edges; ++i) {
    const PrefixPoint at = prefix[edges_[i]];
    const std::int64_t r = edges - 1 - i;
    edge_sums_.mass[i] = at.mass;
    edge_sums_.moment[i] = at.moment;
    edge_sums_.square[i] = at.square;
    mirror_sums_.mass[r] = -at.mass;
    mirror_sums_.moment[r] = -at.moment;
    mirror_sums_.square[r] = -at.square;
    if (i == 0) continue;
    const PrefixPoint before = prefix[edges_[i - 1]];
    spread_[i - 1] = std::sqrt((at.mass - before.mass) * (segment_cost(before, at) + rounding));
  }

  ranges_.resize(windows_.size());
  mirror_ranges_.resize(windows_.size());
  offsets_.resize(windows_.size());
  offsets_[1] = 0;
  std::int64_t low = 0;
  std::int64_t high = 0;
  for (std::int64_t j = 1; j < clusters; ++j) {
    while (low + 1 < edges && edges_[low + 1] <= windows_[j].low) ++low;
    while (high + 1 < edges && edges_[high] < windows_[j].high) ++high;
    ranges_[j] = {low, high};
    mirror_ranges_[clusters - j] = {edges - 1 - high, edges - 1 - low};
    offsets_[j + 1] = offsets_[j] + high - low + 1;
  }
}

void KMeans1D::find_slack(std::span<const double> value, std::int64_t j) {
  const PrefixView prefix = points_.view();
  const auto m = static_cast<std::int64_t>(value.size());
  const double centre = value[value.size() / 2];
  const std::int64_t leftmost = windows_[j - 1].low;
  const std::int64_t rightmost = windows_[j + 1].high;
  const PrefixPoint before = prefix[leftmost];
  const PrefixPoint after = prefix[rightmost];
  const Window range = ranges_[j];
  double* slack = slack_.data() + offsets_[j] - range.low;
  double last = 0.0;
  for (std::int64_t i = range.low; i < range.high; ++i) {
    // The border lies between edges i and i + 1, midway between the centroids, each of which is
    // at most as far out as the windows beside this one allow.
    const double left_mass = edge_sums_.mass[i] - before.mass;
    const double right_mass = after.mass - edge_sums_.mass[i + 1];
    const double left = left_mass > 0.0 ? (edge_sums_.moment[i] - before.moment) / left_mass
                                        : value[leftmost] - centre;
    const double right = right_mass > 0.0 ? (after.moment - edge_sums_.moment[i + 1]) / right_mass
                                          : value[rightmost - 1] - centre;
    const double low = value[std::max<std::int64_t>(edges_[i] - 1, 0)] - centre;
    const double high = value[std::min(edges_[i + 1], m - 1)] - centre;
    const double apart = 2.0 * std::max(0.0, std::min(high - left, right - low));
    slack[i] = std::max(last, apart * spread_[i]);
    last = apart * spread_[i];
  }
  slack[range.high] = last;
}

void KMeans1D::narrow(std::span<const double> value) {
  const auto clusters = static_cast<std::int64_t>(borders_.size()) - 1;
  const auto m = static_cast<std::int64_t>(value.size());
  gather_edges(m);
  slack_.resize(static_cast<std::size_t>(offsets_[clusters]));
  for (std::int64_t j = 1; j < clusters; ++j) find_slack(value, j);

  const PrefixView prefix = points_.view();
  const PrefixPoint end = prefix[m];
  bound(edge_sums_, prefix[0], false, left_costs_);
  bound(mirror_sums_, {-end.mass, -end.moment, -end.square}, true, right_costs_);
  const auto lower_bound = [&](std::int64_t j, std::int64_t i) {
    const std::int64_t at = offsets_[j] + i - ranges_[j].low;
    const std::int64_t mirrored = offsets_[j] + ranges_[j].high - i;
    return left_costs_[at] + right_costs_[mirrored] + slack_[at];
  };

  // The best edge of each border, taken together, is nearly the optimum; Lloyd's iterations make a
  // better partition of it.
  for (std::int64_t j = 1; j < clusters; ++j) {
    double least = kInfinity;
    std::int64_t best = ranges_[j].low;
    for (std::int64_t i = ranges_[j].low; i <= ranges_[j].high; ++i) {
      const double cost = lower_bound(j, i);
      if (cost < least) {
        least = cost;
        best = i;
      }
    }
    borders_[j] = std::clamp(edges_[best], borders_[j - 1], borders_[clusters]);
  }
  known_cost_ = std::min(known_cost_, improve(value));

  const double squares = prefix.square[m] - prefix.square[0];
  const double limit = known_cost_ * (1.0 + kRelativeRoom) + squares * kRoundingRoom;
  for (std::int64_t j = 1; j < clusters; ++j) {
    Window kept = ranges_[j];
    while (kept.low < kept.high && lower_bound(j, kept.low) > limit) ++kept.low;
    while (kept.low < kept.high && lower_bound(j, kept.high) > limit) --kept.high;
    if (kept.low > ranges_[j].low) {
      windows_[j].low = std::max(windows_[j].low, edges_[kept.low - 1] + 1);
    }
    if (kept.high < ranges_[j].high) {
      windows_[j].high = std::min(windows_[j].high, edges_[kept.high + 1] - 1);
    }
  }
  // Borders rise strictly.
  for (std::int64_t j = 2; j < clusters; ++j) {
    windows_[j].low = std::max(windows_[j].low, windows_[j - 1].low + 1);
  }
  for (std::int64_t j = clusters - 2; j >= 1; --j) {
    windows_[j].high = std::min(windows_[j].high, windows_[j + 1].high - 1);
  }
}

void KMeans1D::bound(const Prefix& sums, const PrefixPoint& origin, bool mirrored,
                     std::vector<double>& costs) {
  const auto clusters = static_cast<std::int64_t>(windows_.size()) - 1;
  const std::vector<Window>& ranges = mirrored ? mirror_ranges_ : ranges_;
  costs.resize(static_cast<std::size_t>(offsets_[clusters]));
  const PrefixView ends = sums.view();
  // Offsets and slacks are those of border j read forwards; border r = clusters - j of the mirror
  // keeps its costs there too, in its own order.
  const auto at = [&](std::int64_t r) { return offsets_[mirrored ? clusters - r : r]; };
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
  for (std::int64_t r = 2; r < clusters; ++r) {
    const Layer layer{.scan = scan_,
                      .prefix = ends,
                      .from_cost = costs.data() + at(r - 1),
                      .from_low = ranges[r - 1].low,
                      .gap = 0,
                      .free = 0,
                      .to_cost = costs.data() + at(r),
                      .parent = nullptr,
                      .to_low = ranges[r].low};
    layer.solve(ranges[r].low, ranges[r].high, ranges[r - 1].low, ranges[r - 1].high);
    relax(r);
  }
}

double KMeans1D::improve(std::span<const double> value) {
  constexpr int kIterations = 10;
  const std::size_t clusters = borders_.size() - 1;
  const PrefixView prefix = points_.view();
  const double centre = value[value.size() / 2];
  centroids_.resize(clusters);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    for (std::size_t j = 0; j < clusters; ++j) {
      const std::int64_t begin = borders_[j];
      const std::int64_t end = borders_[j + 1];
      const std::int64_t at =
          std::min<std::int64_t>(begin, static_cast<std::int64_t>(value.size()) - 1);
      centroids_[j] = begin == end ? value[at] - centre
                                   : (prefix.moment[end] - prefix.moment[begin]) /
                                         (prefix.mass[end] - prefix.mass[begin]);
    }
    bool moved = false;
    for (std::size_t j = 1; j < clusters; ++j) {
      const double middle = centre + 0.5 * (centroids_[j - 1] + centroids_[j]);
      auto border = std::lower_bound(value.begin(), value.end(), middle) - value.begin();
      border = std::max<std::int64_t>(border, borders_[j - 1]);
      moved |= border != borders_[j];
      borders_[j] = border;
    }
    if (!moved) break;
  }
  double cost = 0.0;
  for (std::size_t j = 0; j < clusters; ++j) {
    if (borders_[j + 1] - borders_[j] > 1) {
      cost += segment_cost(prefix[borders_[j]], prefix[borders_[j + 1]]);
    }
  }
  return cost;
}

void KMeans1D::solve_exactly(std::span<std::int64_t> borders) {
  const auto clusters = static_cast<std::int64_t>(borders.size()) - 1;
  const PrefixView prefix = points_.view();
  offsets_.resize(windows_.size());
  std::int64_t size = 0;
  std::int64_t widest = 0;
  for (std::int64_t j = 1; j < clusters; ++j) {
    const std::int64_t width = windows_[j].high - windows_[j].low + 1;
    offsets_[j] = size;
    size += width;
    widest = std::max(widest, width);
  }
  parents_.resize(static_cast<std::size_t>(size));
  left_costs_.resize(static_cast<std::size_t>(widest));
  right_costs_.resize(static_cast<std::size_t>(widest));

  Window to = windows_[1];
  for (std::int64_t p = to.low; p <= to.high; ++p) {
    left_costs_[p - to.low] = p == 1 ? 0.0 : segment_cost(prefix[0], prefix[p]);
  }
  for (std::int64_t j = 2; j < clusters; ++j) {
    const Window from = to;
    to = windows_[j];
    const Layer layer{.scan = scan_,
                      .prefix = prefix,
                      .from_cost = left_costs_.data(),
                      .from_low = from.low,
                      .gap = 1,
                      .free = 1,
                      .to_cost = right_costs_.data(),
                      .parent = parents_.data() + offsets_[j],
                      .to_low = to.low};
    layer.solve(to.low, to.high, from.low, from.high);
    left_costs_.swap(right_costs_);
  }

  const std::int64_t m = borders[clusters];
  const Layer last{.scan = scan_,
                   .prefix = prefix,
                   .from_cost = left_costs_.data(),
                   .from_low = to.low,
                   .gap = 1,
                   .free = 1,
                   .to_cost = nullptr,
                   .parent = nullptr,
                   .to_low = m};
  borders[clusters - 1] = last.best(m, to.low, to.high).index;
  for (std::int64_t j = clusters - 1; j >= 2; --j) {
    borders[j - 1] = parents_[offsets_[j] + borders[j] - windows_[j].low];
  }
}

void KMeans1D::fit(std::span<const double> value, std::span<const double> mass,
                   std::span<std::int64_t> borders) {
  const auto m = static_cast<std::int64_t>(value.size());
  const auto clusters = static_cast<std::int64_t>(borders.size()) - 1;
  if (m <= clusters || clusters == 1) {
    for (std::int64_t j = 0; j <= clusters; ++j) borders[j] = j == clusters ? m : std::min(j, m);
    return;
  }
  build_prefix(value, mass);
  windows_.resize(borders.size());
  for (std::int64_t j = 1; j < clusters; ++j) windows_[j] = {j, m - (clusters - j)};

  borders_.assign(borders.size(), 0);
  borders_[clusters] = m;
  known_cost_ = kInfinity;
  windows_[0] = {0, 0};
  windows_[clusters] = {m, m};
  const std::int64_t bins =
      std::max(kFewestBins, kBinsPerCluster * clusters) + m / kPointsPerExtraBin;
  if (2 * bins <= m) {
    choose_edges(value, bins);
    narrow(value);
    for (int level = 0; level < kRefinements; ++level) {
      std::int64_t widest = 0;
      for (std::int64_t j = 1; j < clusters; ++j)
        widest = std::max(widest, windows_[j].high - windows_[j].low);
      if (widest < kExactWidth) break;
      refine_edges();
      narrow(value);
    }
  }
  borders[0] = 0;
  borders[clusters] = m;
  solve_exactly(borders);
}

}  // namespace anyprec::quantize
