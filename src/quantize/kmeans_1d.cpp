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

/// Points in each of the finest bins, bins of a level for each bin of the level before it, and the
/// fewest bins of any level (besides 4 for each cluster): the fastest by measurement.
constexpr std::int64_t kPointsPerBin = 8;
constexpr std::int64_t kRefinement = 4;
constexpr std::int64_t kFewestBins = 32;

/// Blocks of targets with up to this many candidates are scanned whole.
constexpr std::int64_t kBlockCandidates = 16;

/// One layer of a shortest path: from each b in `to`, the best a in `from` with a <= b - gap, at
/// from_cost(a) + the cost of the segment begins[a] .. ends[b], which is nothing for a > b - 2.
struct Layer {
  ScanKernels scan;
  PrefixView begins;        ///< at position 0
  PrefixView ends;          ///< at position 0
  const double* from_cost;  ///< of from_low
  std::int64_t from_low;
  std::int64_t gap;
  double* to_cost;        ///< of to_low
  std::uint32_t* parent;  ///< of to_low; may be null
  std::int64_t to_low;

  Candidate best(std::int64_t b, std::int64_t low, std::int64_t high) const {
    high = std::min(high, b - gap);
    const std::int64_t last = std::min(high, b - 2);
    Candidate best{kInfinity, low};
    if (low <= last) {
      best = scan.candidates(from_cost + (low - from_low), begins + low, ends[b], last - low + 1);
      best.index += low;
    }
    for (std::int64_t a = std::max(low, b - 1); a <= high; ++a) {
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
    scan.block(from_cost + (low - from_low), begins + low, high - low + 1, ends + first,
               last - first + 1, first - low, gap, to_cost + (first - to_low), indices);
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

void KMeans1D::narrow(std::int64_t stride, std::span<const double> value) {
  const auto clusters = static_cast<std::int64_t>(borders_.size()) - 1;
  level_edges_.clear();
  for (std::size_t i = 0; i + 1 < edges_.size(); i += static_cast<std::size_t>(stride)) {
    level_edges_.push_back(edges_[i]);
  }
  level_edges_.push_back(edges_.back());
  const auto bins = static_cast<std::int64_t>(level_edges_.size()) - 1;

  bins_.resize(level_edges_.size());
  mirror_.resize(level_edges_.size());
  for (std::int64_t i = 0; i <= bins; ++i) {
    const PrefixPoint at = points_.view()[level_edges_[i]];
    bins_.mass[i] = at.mass;
    bins_.moment[i] = at.moment;
    bins_.square[i] = at.square;
    mirror_.mass[bins - i] = -at.mass;
    mirror_.moment[bins - i] = -at.moment;
    mirror_.square[bins - i] = -at.square;
  }

  // Border j in bin b: at a position in [level_edges_[b], level_edges_[b + 1]).
  const auto bin_of = [&](std::int64_t position) {
    const auto above = std::upper_bound(level_edges_.begin(), level_edges_.end(), position);
    return std::min<std::int64_t>(above - level_edges_.begin(), bins) - 1;
  };
  bin_windows_.resize(windows_.size());
  mirror_windows_.resize(windows_.size());
  for (std::int64_t j = 1; j < clusters; ++j) {
    const Window window{bin_of(windows_[j].low), bin_of(windows_[j].high)};
    bin_windows_[j] = window;
    mirror_windows_[clusters - j] = {bins - 1 - window.high, bins - 1 - window.low};
  }
  bound(bins_, bin_windows_, left_offsets_, left_costs_);
  bound(mirror_, mirror_windows_, right_offsets_, right_costs_);

  const auto lower_bound = [&](std::int64_t j, std::int64_t bin) {
    const std::int64_t r = clusters - j;
    return left_costs_[left_offsets_[j] + bin - bin_windows_[j].low] +
           right_costs_[right_offsets_[r] + (bins - 1 - bin) - mirror_windows_[r].low];
  };

  // The best bin of each border, taken together, is nearly the optimum; Lloyd's iterations make a
  // partition of it.
  for (std::int64_t j = 1; j < clusters; ++j) {
    double least = kInfinity;
    std::int64_t best = bin_windows_[j].low;
    for (std::int64_t bin = bin_windows_[j].low; bin <= bin_windows_[j].high; ++bin) {
      const double cost = lower_bound(j, bin);
      if (cost < least) {
        least = cost;
        best = bin;
      }
    }
    const std::int64_t middle = (level_edges_[best] + level_edges_[best + 1]) / 2;
    borders_[j] = std::clamp(middle, borders_[j - 1], borders_[clusters]);
  }
  known_cost_ = std::min(known_cost_, improve(value));

  const double squares = points_.square[value.size()] - points_.square[0];
  const double limit = known_cost_ * (1.0 + kRelativeRoom) + squares * kRoundingRoom;
  for (std::int64_t j = 1; j < clusters; ++j) {
    Window bin = bin_windows_[j];
    while (bin.low < bin.high && lower_bound(j, bin.low) > limit) ++bin.low;
    while (bin.low < bin.high && lower_bound(j, bin.high) > limit) --bin.high;
    windows_[j].low = std::max(windows_[j].low, level_edges_[bin.low]);
    windows_[j].high = std::min(windows_[j].high, level_edges_[bin.high + 1] - 1);
  }
  // Borders rise strictly.
  for (std::int64_t j = 2; j < clusters; ++j) {
    windows_[j].low = std::max(windows_[j].low, windows_[j - 1].low + 1);
  }
  for (std::int64_t j = clusters - 2; j >= 1; --j) {
    windows_[j].high = std::min(windows_[j].high, windows_[j + 1].high - 1);
  }
}

void KMeans1D::bound(const Prefix& bins, const std::vector<Window>& windows,
                     std::vector<std::int64_t>& offsets, std::vector<double>& costs) const {
  const auto clusters = static_cast<std::int64_t>(windows.size()) - 1;
  offsets.resize(windows.size());
  std::int64_t size = 0;
  for (std::int64_t j = 1; j < clusters; ++j) {
    offsets[j] = size;
    size += windows[j].high - windows[j].low + 1;
  }
  costs.resize(static_cast<std::size_t>(size));

  const PrefixView ends = bins.view();
  for (std::int64_t bin = windows[1].low; bin <= windows[1].high; ++bin) {
    costs[bin - windows[1].low] = bin == 0 ? 0.0 : segment_cost(ends[0], ends[bin]);
  }
  for (std::int64_t j = 2; j < clusters; ++j) {
    const Window from = windows[j - 1];
    const Window to = windows[j];
    // The cluster between borders in bins a and b holds at least the bins a + 1 .. b - 1.
    const Layer layer{.scan = scan_,
                      .begins = bins.view(1),
                      .ends = ends,
                      .from_cost = costs.data() + offsets[j - 1],
                      .from_low = from.low,
                      .gap = 0,
                      .to_cost = costs.data() + offsets[j],
                      .parent = nullptr,
                      .to_low = to.low};
    layer.solve(to.low, to.high, from.low, from.high);
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
  left_offsets_.resize(windows_.size());
  std::int64_t size = 0;
  std::int64_t widest = 0;
  for (std::int64_t j = 1; j < clusters; ++j) {
    const std::int64_t width = windows_[j].high - windows_[j].low + 1;
    left_offsets_[j] = size;
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
                      .begins = prefix,
                      .ends = prefix,
                      .from_cost = left_costs_.data(),
                      .from_low = from.low,
                      .gap = 1,
                      .to_cost = right_costs_.data(),
                      .parent = parents_.data() + left_offsets_[j],
                      .to_low = to.low};
    layer.solve(to.low, to.high, from.low, from.high);
    left_costs_.swap(right_costs_);
  }

  const std::int64_t m = borders[clusters];
  const Layer last{.scan = scan_,
                   .begins = prefix,
                   .ends = prefix,
                   .from_cost = left_costs_.data(),
                   .from_low = to.low,
                   .gap = 1,
                   .to_cost = nullptr,
                   .parent = nullptr,
                   .to_low = m};
  borders[clusters - 1] = last.best(m, to.low, to.high).index;
  for (std::int64_t j = clusters - 1; j >= 2; --j) {
    borders[j - 1] = parents_[left_offsets_[j] + borders[j] - windows_[j].low];
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
  const std::int64_t coarsest = std::max(kFewestBins, 4 * clusters);
  const std::int64_t finest = std::max(m / kPointsPerBin, coarsest);
  if (2 * finest <= m) {
    choose_edges(value, finest);
    std::int64_t stride = 1;
    while (finest / (stride * kRefinement) >= coarsest) stride *= kRefinement;
    for (; stride >= 1; stride /= kRefinement) narrow(stride, value);
  }
  borders[0] = 0;
  borders[clusters] = m;
  solve_exactly(borders);
}

}  // namespace anyprec::quantize
