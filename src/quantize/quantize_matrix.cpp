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

/// What merging clusters and writing their tables needs.
class Clusters {
 public:
  explicit Clusters(std::size_t count) : count_((count + kRoom - 1) / kRoom * kRoom) {
    values_.resize(5 * count_);
  }
  quantize::ClusterMoments view() {
    double* const first = values_.data();
    return {first, first + count_, first + 2 * count_, first + 3 * count_, first + 4 * count_};
  }

 private:
  static constexpr std::size_t kRoom = 2 * quantize::kLanes;
  std::size_t count_;
  std::vector<double> values_;
};

/// What one thread needs for a (row, group), kept from one to the next.
struct Scratch {
  PointSorter sorter;
  SortedPoints points;
  KMeans1D kmeans;
  std::vector<std::int64_t> borders;
  std::vector<std::int64_t> children;
  std::vector<std::uint8_t> steps;
  Clusters clusters{std::size_t{1} << kMaxPrecision};
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
void cluster(const QuantizeOptions& options, const quantize::Kernels& kernels, Scratch& scratch) {
  const SortedPoints& points = scratch.points;
  scratch.borders.resize((std::size_t{1} << options.seed_precision) + 1);
  scratch.kmeans.fit(points.value, points.mass, scratch.borders);
  for (int b = options.seed_precision; b < options.parent_precision; ++b) {
    const std::size_t clusters = std::size_t{1} << b;
    scratch.children.resize(2 * clusters + 1);
    kernels.split(points.value.data(), points.mass.data(), scratch.borders.data(),
                  static_cast<std::int64_t>(clusters), scratch.children.data());
    scratch.borders.swap(scratch.children);
  }
}

void write_codes(Scratch& scratch, std::uint8_t* codes) {
  const SortedPoints& points = scratch.points;
  const std::size_t n = points.order.size();
  // By how much the code of each column is above that of the column sorted before it.
  scratch.steps.assign(n + 1, 0);
  for (std::size_t c = 1; c + 1 < scratch.borders.size(); ++c) {
    ++scratch.steps[points.first[scratch.borders[c]]];
  }
  std::uint8_t code = 0;
  for (std::size_t i = 0; i < n; ++i) {
    code = static_cast<std::uint8_t>(code + scratch.steps[i]);
    codes[points.order[i]] = code;
  }
}

/// One (row, group). table_of(b): where the table of precision b goes; errors: [precisions], added
/// to.
template <typename TableOf>
void quantize_group(const float* weights, const float* sensitivities, std::int64_t n,
                    const QuantizeOptions& options, Scratch& scratch, std::uint8_t* codes,
                    const TableOf& table_of, double* errors) {
  const SortedPoints& points = scratch.points;
  const quantize::Kernels& kernels = quantize::kernels_for(cpu::selected_isa());
  scratch.sorter.sort(weights, sensitivities, n, scratch.points);
  cluster(options, kernels, scratch);
  write_codes(scratch, codes);
  const quantize::ClusterMoments clusters = scratch.clusters.view();
  std::int64_t count = std::int64_t{1} << options.parent_precision;
  kernels.leaves(points.value.data(), points.mass.data(), points.sensitivity.data(),
                 scratch.borders.data(), count, clusters);
  for (int b = options.parent_precision; b >= options.lowest_precision; --b, count /= 2) {
    if (b < options.parent_precision) kernels.merge(clusters, count);
    errors[b - options.lowest_precision] += kernels.table(clusters, count, table_of(b));
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
