#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/fit_refit.h"

#ifdef __CUDACC__
#define ANYPREC_FIT_INLINE __host__ __device__ __forceinline__
#else
#define ANYPREC_FIT_INLINE inline
#endif

/// One row at one precision, for a team of lanes: one on a CPU, a warp on a GPU. A team has
///   kLanes; lane(); sum(double), over its lanes, the same in each; sync(), before which all that
///   its lanes wrote is there for all of them; Moved, the type of what a product is made of, and
///   unit(float), what the numbers of a row are divided by to suit it, from the largest one of each
///   lane.
namespace anyprec::cpu {

/// Numbers of scratch: a bin for each value and lane, and a table of values.
constexpr int refit_scratch(int precision, int lanes) { return (lanes + 1) << precision; }

template <class Team>
class RefitRow {
 public:
  ANYPREC_FIT_INLINE RefitRow(const Team& team, const RefitRows& rows, int width, std::int64_t row,
                              float* scratch)
      : team_(team), rows_(rows), w_(rows.width[width]), row_(row), bins_(scratch) {
    values_ = 1 << w_.precision;
    unknowns_ = static_cast<std::int64_t>(rows.codebooks) * w_.unknowns;
    table_ = scratch + values_ * Team::kLanes;
    weight_ = rows.weight + row * rows.columns;
    codes_ = rows.codes + row * rows.columns;
    matrix_ = (width * rows.rows + row) * rows.columns;
  }

  /// put(k, w - q) for each column.
  template <class Put>
  ANYPREC_FIT_INLINE void error(const Put& put) {
    for (int g = 0; g < rows_.codebooks; ++g) {
      expand(mine(w_.coefficients), g);
      columns(
          g, [&](std::int64_t k) { return weight_[k] - value(k); },
          [&](std::int64_t k, float error) { put(matrix_ + k, error); });
    }
  }

  /// Sums of a row's numbers by slot: out [rows, G, 2^b].
  ANYPREC_FIT_INLINE void sums(const float* numbers, float* out) {
    for (int g = 0; g < rows_.codebooks; ++g) {
      sum_by_code(g, numbers + row_ * rows_.columns);
      float* const to = out + (row_ * rows_.codebooks + g) * values_;
      for (int v = team_.lane(); v < values_; v += Team::kLanes) to[v] = table_[v];
    }
  }

  ANYPREC_FIT_INLINE void begin(float ridge_share, float least_ridge) {
    const float* const pulled = rows_.pulled + matrix_;
    float* const gradient = mine(w_.gradient);
    float* const scale = mine(w_.scale);
    float* const left = mine(w_.left);
    float* const direction = mine(w_.direction);
    double energy = 0.0, diagonal = 0.0;
    for (int g = 0; g < rows_.codebooks; ++g) {
      expand(mine(w_.coefficients), g);
      columns(
          g,
          [&](std::int64_t k) {
            return static_cast<double>(weight_[k] - value(k)) * static_cast<double>(pulled[k]);
          },
          [&](std::int64_t, double product) { energy += product; });
      sum_by_code(g, pulled);
      project(g, [&](std::int64_t u, float sum) { gradient[u] = sum; }, false);
      sum_by_code(g, rows_.diagonal);
      project(
          g,
          [&](std::int64_t u, float sum) {
            scale[u] = sum;
            diagonal += static_cast<double>(sum);
          },
          true);
    }
    energy = team_.sum(energy);
    diagonal = team_.sum(diagonal) / static_cast<double>(unknowns_);
    const float ridge = static_cast<float>(diagonal) * ridge_share + least_ridge;
    each_unknown([&](std::int64_t u) {
      scale[u] = 1.0f / (scale[u] + ridge);
      left[u] = gradient[u];
      direction[u] = scale[u] * left[u];
    });
    if (team_.lane() == 0) {
      w_.energies[row_] = energy > 0.0 ? energy : 0.0;
      w_.ridge[row_] = ridge;
    }
    move();
  }

  ANYPREC_FIT_INLINE void step(bool last) {
    const float* const product = rows_.product + matrix_;
    float* const gradient = mine(w_.gradient);
    float* const left = mine(w_.left);
    float* const direction = mine(w_.direction);
    float* const turned = mine(w_.turned);
    const float* const scale = mine(w_.scale);
    const float ridge = w_.ridge[row_], unit = w_.unit[row_];
    // Of the direction: its product with what is left and with the gradient, its curvature, its
    // length; and the old size of what is left.
    double slope = 0.0, descent = 0.0, curvature = 0.0, length = 0.0, size = 0.0;
    for (int g = 0; g < rows_.codebooks; ++g) {
      sum_by_code(g, product);
      project(
          g,
          [&](std::int64_t u, float sum) {
            const auto d = static_cast<double>(direction[u]), l = static_cast<double>(left[u]);
            sum *= unit;
            turned[u] = sum;
            slope += d * l;
            descent += d * static_cast<double>(gradient[u]);
            curvature += d * static_cast<double>(sum);
            length += d * d;
            size += l * l * static_cast<double>(scale[u]);
          },
          false);
    }
    slope = team_.sum(slope);
    descent = team_.sum(descent);
    curvature = team_.sum(curvature);
    length = team_.sum(length);
    size = team_.sum(size);
    const double bend = curvature + static_cast<double>(ridge) * length;
    const float by = bend > 0.0 ? static_cast<float>(slope / bend) : 0.0f;
    const auto far = static_cast<double>(by);
    const double gain = far * (2.0 * descent - far * curvature);
    // Not so for a NaN, nor where there is nothing left to gain.
    if (!(gain > 0.0 && gain <= kMost)) {
      each_unknown([&](std::int64_t u) { direction[u] = 0.0f; });
      if (!last) move();
      return;
    }
    double next_size = 0.0;
    float* const coefficients = mine(w_.coefficients);
    each_unknown([&](std::int64_t u) {
      coefficients[u] += by * direction[u];
      gradient[u] -= by * turned[u];
      left[u] -= by * (turned[u] + ridge * direction[u]);
      const auto l = static_cast<double>(left[u]);
      next_size += l * l * static_cast<double>(scale[u]);
    });
    next_size = team_.sum(next_size);
    if (team_.lane() == 0) {
      const double energy = w_.energies[row_] - gain;
      w_.energies[row_] = energy > 0.0 ? energy : 0.0;
    }
    float* const pulled = rows_.pulled + matrix_;
    const float by_units = by * unit;
    each_of(
        0, rows_.columns, [&](std::int64_t k) { return pulled[k] - by_units * product[k]; },
        [&](std::int64_t k, float number) { pulled[k] = number; });
    if (last) return;
    const auto keep = static_cast<float>(size > 0.0 ? next_size / size : 0.0);
    each_unknown([&](std::int64_t u) { direction[u] = scale[u] * left[u] + keep * direction[u]; });
    move();
  }

 private:
  static constexpr double kMost = 1e300;
  static constexpr int kAhead = 8;  // loads in flight
  static constexpr int kBatch = Team::kLanes > 1 ? kAhead : 1;

  ANYPREC_FIT_INLINE float* mine(float* numbers) const { return numbers + row_ * unknowns_; }
  ANYPREC_FIT_INLINE int code(std::int64_t k) const { return codes_[k] & (values_ - 1); }
  ANYPREC_FIT_INLINE float value(std::int64_t k) const { return table_[code(k)]; }

  template <class Body>
  ANYPREC_FIT_INLINE void each_unknown(const Body& body) const {
    for (std::int64_t u = team_.lane(); u < unknowns_; u += Team::kLanes) body(u);
  }

  /// put(i, get(i)) for the lane's of [first, end), in order; nothing that is put may be got later.
  /// A compiler has to take what is put for something that is got, and would wait for each.
  template <class Get, class Put>
  ANYPREC_FIT_INLINE void each_of(std::int64_t first, std::int64_t end, const Get& get,
                                  const Put& put) const {
    constexpr int kLanes = Team::kLanes;
    std::int64_t i = first + team_.lane();
    for (; i + (kBatch - 1) * kLanes < end; i += kBatch * kLanes) {
      decltype(get(i)) numbers[kBatch];
      for (int a = 0; a < kBatch; ++a) numbers[a] = get(i + a * kLanes);
      for (int a = 0; a < kBatch; ++a) put(i + a * kLanes, numbers[a]);
    }
    for (; i < end; i += kLanes) put(i, get(i));
  }

  /// put(k, get(k)) for the columns of a codebook.
  template <class Get, class Put>
  ANYPREC_FIT_INLINE void columns(int group, const Get& get, const Put& put) const {
    const std::int64_t first = group * rows_.group_size;
    const std::int64_t end =
        first + rows_.group_size < rows_.columns ? first + rows_.group_size : rows_.columns;
    const auto place = [&](std::int64_t i) {
      return rows_.places == nullptr ? i : rows_.places[i];
    };
    each_of(
        first, end, [&](std::int64_t i) { return get(place(i)); },
        [&](std::int64_t i, auto number) { put(place(i), number); });
  }

  /// To table_: the values of a codebook.
  ANYPREC_FIT_INLINE void expand(const float* coefficients, int group) {
    const float* const from = coefficients + static_cast<std::int64_t>(group) * w_.unknowns;
    team_.sync();
    for (int v = team_.lane(); v < values_; v += Team::kLanes) {
      float sum = 0.0f;
      if (w_.basis == nullptr) {
        sum = from[v];
      } else {
        for (int u = 0; u < w_.unknowns; ++u) sum += w_.basis[v * w_.unknowns + u] * from[u];
      }
      table_[v] = sum;
    }
    team_.sync();
  }

  /// To table_: the sums of `numbers` over the columns of each code. Always in the same order: each
  /// lane adds to bins of its own.
  ANYPREC_FIT_INLINE void sum_by_code(int group, const float* numbers) {
    constexpr int kLanes = Team::kLanes;
    const int lane = team_.lane();
    team_.sync();
    for (int v = 0; v < values_; ++v) bins_[v * kLanes + lane] = 0.0f;
    const std::int64_t first = group * rows_.group_size;
    const std::int64_t end =
        first + rows_.group_size < rows_.columns ? first + rows_.group_size : rows_.columns;
    std::int64_t i = first + lane;
    for (; i + (kAhead - 1) * kLanes < end; i += kAhead * kLanes) {
      float number[kAhead];
      int bin[kAhead];
      for (int a = 0; a < kAhead; ++a) {
        const std::int64_t at = i + a * kLanes;
        const std::int64_t k = rows_.places == nullptr ? at : rows_.places[at];
        number[a] = numbers[k];
        bin[a] = code(k);
      }
      for (int a = 0; a < kAhead; ++a) bins_[bin[a] * kLanes + lane] += number[a];
    }
    for (; i < end; i += kLanes) {
      const std::int64_t k = rows_.places == nullptr ? i : rows_.places[i];
      bins_[code(k) * kLanes + lane] += numbers[k];
    }
    team_.sync();
    for (int v = lane; v < values_; v += kLanes) {
      float sum = 0.0f;
      // Every lane begins in its own bank.
      for (int l = 0; l < kLanes; ++l) sum += bins_[v * kLanes + (v + l) % kLanes];
      table_[v] = sum;
    }
    team_.sync();
  }

  /// put(u, sum) for each unknown of a codebook: basis^T @ table_.
  template <class Put>
  ANYPREC_FIT_INLINE void project(int group, const Put& put, bool squared) const {
    const std::int64_t first = static_cast<std::int64_t>(group) * w_.unknowns;
    // The unknowns of a lane are those of each_unknown, so that it needs no others' writes.
    std::int64_t u = (team_.lane() - first % Team::kLanes + Team::kLanes) % Team::kLanes;
    for (; u < w_.unknowns; u += Team::kLanes) {
      float sum = 0.0f;
      if (w_.basis == nullptr) {
        sum = table_[u];
      } else {
        for (int v = 0; v < values_; ++v) {
          const float entry = w_.basis[v * w_.unknowns + u];
          sum += (squared ? entry * entry : entry) * table_[v];
        }
      }
      put(first + u, sum);
    }
  }

  /// To `moved`: the values of the direction.
  ANYPREC_FIT_INLINE void move() {
    using Moved = typename Team::Moved;
    auto* const moved = static_cast<Moved*>(rows_.moved) + matrix_;
    const float* const direction = mine(w_.direction);
    float largest = 0.0f;
    each_unknown([&](std::int64_t u) {
      const float size = std::fabs(direction[u]);
      largest = size > largest ? size : largest;
    });
    const float unit = team_.unit(largest), by = 1.0f / unit;
    if (team_.lane() == 0) w_.unit[row_] = unit;
    for (int g = 0; g < rows_.codebooks; ++g) {
      expand(direction, g);
      columns(
          g, [&](std::int64_t k) { return value(k) * by; },
          [&](std::int64_t k, float number) { moved[k] = static_cast<Moved>(number); });
    }
  }

  Team team_;
  const RefitRows& rows_;
  const RefitWidth& w_;
  std::int64_t row_;
  int values_;
  std::int64_t unknowns_;
  std::int64_t matrix_;
  float* bins_;
  float* table_;
  const float* weight_;
  const std::uint8_t* codes_;
};

}  // namespace anyprec::cpu
