#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "anyprec/quantize.h"
#include "src/quantize/kernels.h"
#include "src/quantize/kmeans_1d.h"
#include "src/quantize/sorted_points.h"
#include "src/quantize/validate.h"

namespace anyprec {
namespace {

using quantize::KMeans1D;
using quantize::PointSorter;
using quantize::SortedPoints;

/// One cluster, and what merging it with others needs.
struct Cluster {
  double mass;  ///< of its points; 0 where it is empty
  double mean;  ///< their weighted mean; where it is empty, what its table entries say
  // Moments of the sensitivities as given, about the mean.
  double sensitivity;
  double moment;
  double square;
};

/// What one thread needs for a (row, group), kept from one to the next.
struct Scratch {
  PointSorter sorter;
  SortedPoints points;
  KMeans1D kmeans;
  std::vector<std::int64_t> borders;
  std::vector<std::int64_t> children;
  std::vector<Cluster> clusters;
};

/// Lends scratch to as many threads as ask at the same time.
class ScratchPool {
 public:
  std::unique_ptr<Scratch> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<Scratch> scratch = std::move(free_.back());
        free_.pop_back();
        return scratch;
      }
    }
    return std::make_unique<Scratch>();
  }
  void give_back(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(scratch));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

/// Fits the seed's clusters and splits them up to the parent. scratch.borders: [2^parent + 1].
void cluster(const QuantizeOptions& options, Scratch& scratch) {
  const SortedPoints& points = scratch.points;
  scratch.borders.resize((std::size_t{1} << options.seed_precision) + 1);
  scratch.kmeans.fit(points.value, points.mass, scratch.borders);
  const quantize::Kernels& kernels = quantize::kernels_for(cpu::selected_isa());
  for (int b = options.seed_precision; b < options.parent_precision; ++b) {
    const std::size_t clusters = std::size_t{1} << b;
    scratch.children.resize(2 * clusters + 1);
    kernels.split(points.value.data(), points.mass.data(), scratch.borders.data(),
                  static_cast<std::int64_t>(clusters), scratch.children.data());
    scratch.borders.swap(scratch.children);
  }
}

void write_codes(const Scratch& scratch, std::uint8_t* codes) {
  const SortedPoints& points = scratch.points;
  const std::size_t clusters = scratch.borders.size() - 1;
  for (std::size_t c = 0; c < clusters; ++c) {
    const std::uint32_t begin = points.first[scratch.borders[c]];
    const std::uint32_t end = points.first[scratch.borders[c + 1]];
    for (std::uint32_t i = begin; i < end; ++i) {
      codes[points.order[i]] = static_cast<std::uint8_t>(c);
    }
  }
}

/// The cluster of the points [begin, end), at least one. Sums are about the first point and the
/// mean is kept between the first and the last, so that means never fall from one leaf to the next.
Cluster make_leaf(const SortedPoints& points, std::int64_t begin, std::int64_t end) {
  const double origin = points.value[begin];
  if (end - begin == 1) return {points.mass[begin], origin, points.sensitivity[begin], 0.0, 0.0};
  Cluster leaf{};
  double moment = 0.0;
  for (std::int64_t i = begin; i < end; ++i) {
    leaf.mass += points.mass[i];
    moment += points.mass[i] * (points.value[i] - origin);
  }
  leaf.mean = std::clamp(origin + moment / leaf.mass, origin, points.value[end - 1]);
  for (std::int64_t i = begin; i < end; ++i) {
    const double distance = points.value[i] - leaf.mean;
    const double weighted = points.sensitivity[i] * distance;
    leaf.sensitivity += points.sensitivity[i];
    leaf.moment += weighted;
    leaf.square += weighted * distance;
  }
  return leaf;
}

void make_leaves(Scratch& scratch) {
  const std::size_t clusters = scratch.borders.size() - 1;
  scratch.clusters.resize(clusters);
  for (std::size_t c = 0; c < clusters; ++c) {
    const std::int64_t begin = scratch.borders[c];
    const std::int64_t end = scratch.borders[c + 1];
    if (begin < end) {
      scratch.clusters[c] = make_leaf(scratch.points, begin, end);
    } else {
      // An empty cluster descends from the right child of a single point (or from a row of fewer
      // points than seed clusters) and keeps that point's value. The first is never empty.
      scratch.clusters[c] = {0.0, scratch.clusters[c - 1].mean, 0.0, 0.0, 0.0};
    }
  }
}

/// Table entries of one precision, table: [clusters]. Returns the sum of sensitivity *
/// (weight - entry)^2.
double write_table(std::span<const Cluster> clusters, float* table) {
  double error = 0.0;
  for (std::size_t c = 0; c < clusters.size(); ++c) {
    const Cluster& cluster = clusters[c];
    table[c] = static_cast<float>(cluster.mean);
    const double shift = cluster.mean - static_cast<double>(table[c]);
    error += cluster.square + shift * (2.0 * cluster.moment + shift * cluster.sensitivity);
  }
  return std::max(error, 0.0);
}

/// Merges neighbours in pairs, weighing means by mass.
void merge_pairs(std::vector<Cluster>& clusters) {
  for (std::size_t c = 0; c < clusters.size() / 2; ++c) {
    const Cluster& left = clusters[2 * c];
    const Cluster& right = clusters[2 * c + 1];
    Cluster both = left;
    if (right.mass > 0.0) {
      both.mass = left.mass + right.mass;
      const double mean = left.mean + (right.mean - left.mean) * (right.mass / both.mass);
      both.mean = std::clamp(mean, left.mean, right.mean);
      both.sensitivity = left.sensitivity + right.sensitivity;
      const double from_left = left.mean - both.mean;
      const double from_right = right.mean - both.mean;
      const double left_shift = from_left * left.sensitivity;
      const double right_shift = from_right * right.sensitivity;
      both.moment = (left.moment + left_shift) + (right.moment + right_shift);
      both.square = (left.square + from_left * (2.0 * left.moment + left_shift)) +
                    (right.square + from_right * (2.0 * right.moment + right_shift));
    }
    clusters[c] = both;
  }
  clusters.resize(clusters.size() / 2);
}

/// One (row, group). table_of(b): where the table of precision b goes; errors: [precisions], added
/// to.
template <typename TableOf>
void quantize_group(const float* weights, const float* sensitivities, std::int64_t n,
                    const QuantizeOptions& options, Scratch& scratch, std::uint8_t* codes,
                    const TableOf& table_of, double* errors) {
  scratch.sorter.sort(weights, sensitivities, n, scratch.points);
  cluster(options, scratch);
  write_codes(scratch, codes);
  make_leaves(scratch);
  for (int b = options.parent_precision; b >= options.lowest_precision; --b) {
    if (b < options.parent_precision) merge_pairs(scratch.clusters);
    errors[b - options.lowest_precision] += write_table(scratch.clusters, table_of(b));
  }
}

}  // namespace

QuantizedMatrix quantize_matrix(const std::string& name, const float* weights,
                                const float* sensitivities, std::int64_t out_features,
                                std::int64_t in_features, const QuantizeOptions& options,
                                const Executor& executor) {
  quantize::validate_options(name, out_features, in_features, options);
  quantize::validate_values(name, weights, sensitivities, out_features, in_features, executor);

  const int lowest = options.lowest_precision;
  const auto precisions = static_cast<std::size_t>(options.parent_precision - lowest + 1);
  const std::int64_t group_size =
      options.group_size == 0 ? in_features : std::min(options.group_size, in_features);
  QuantizedMatrix result;
  result.out_features = out_features;
  result.in_features = in_features;
  result.groups = (in_features + group_size - 1) / group_size;
  result.codes.resize(static_cast<std::size_t>(out_features * in_features));
  result.luts.resize(precisions);
  for (std::size_t i = 0; i < precisions; ++i) {
    result.luts[i].resize(static_cast<std::size_t>(out_features * result.groups)
                          << (static_cast<std::size_t>(lowest) + i));
  }
  std::vector<double> row_errors(static_cast<std::size_t>(out_features) * precisions, 0.0);

  ScratchPool pool;
  constexpr std::int64_t kColumnsPerChunk = std::int64_t{1} << 14;
  const std::int64_t grain = std::max<std::int64_t>(1, kColumnsPerChunk / in_features);
  executor.parallel_for(out_features, grain, [&](std::int64_t row_begin, std::int64_t row_end) {
    std::unique_ptr<Scratch> scratch = pool.take();
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t group = 0; group < result.groups; ++group) {
        const std::int64_t column = group * group_size;
        const std::int64_t at = row * in_features + column;
        const auto table_of = [&](int b) {
          return result.luts[static_cast<std::size_t>(b - lowest)].data() +
                 ((row * result.groups + group) << b);
        };
        quantize_group(weights + at, sensitivities == nullptr ? nullptr : sensitivities + at,
                       std::min(group_size, in_features - column), options, *scratch,
                       result.codes.data() + at, table_of,
                       row_errors.data() + static_cast<std::size_t>(row) * precisions);
      }
    }
    pool.give_back(std::move(scratch));
  });

  // Summed in the order of rows, whatever the threads did.
  result.errors.assign(precisions, 0.0);
  for (std::size_t i = 0; i < row_errors.size(); ++i)
    result.errors[i % precisions] += row_errors[i];
  return result;
}

}  // namespace anyprec
