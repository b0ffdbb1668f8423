#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/decoder.h"
#include "kernels/cpu/float_vec.h"

/// The loops of decoder.h, written once and compiled for each instruction set.
namespace anyprec::cpu {
namespace {

/// visit(integral_constant of the type).
template <class Visit>
inline void with_type(ScalarType type, const Visit& visit) {
  switch (type) {
    case ScalarType::kFloat32:
      return visit(std::integral_constant<ScalarType, ScalarType::kFloat32>{});
    case ScalarType::kBFloat16:
      return visit(std::integral_constant<ScalarType, ScalarType::kBFloat16>{});
    case ScalarType::kFloat16:
      return visit(std::integral_constant<ScalarType, ScalarType::kFloat16>{});
  }
}

template <ScalarType kType>
inline const void* element(const void* array, std::int64_t index) {
  return static_cast<const typename Elements<kType>::Type*>(array) + index;
}
template <ScalarType kType>
inline void* element(void* array, std::int64_t index) {
  return static_cast<typename Elements<kType>::Type*>(array) + index;
}

template <ScalarType kType>
void norm_rows(const decoder::RmsNorm& norm, std::int64_t begin, std::int64_t end) {
  const std::int64_t columns = norm.columns;
  for (std::int64_t row = begin; row < end; ++row) {
    const void* x = element<kType>(norm.x, row * columns);
    Vec squares{};
    if (norm.residual != nullptr) {
      void* const residual = element<kType>(norm.residual, row * columns);
      for (std::int64_t i = 0; i < columns; i += kLanes) {
        store<kType>(residual, i, columns - i,
                     load<kType>(x, i, columns - i) + load<kType>(residual, i, columns - i));
        const Vec v = load<kType>(residual, i, columns - i);
        squares += v * v;
      }
      x = residual;
    } else {
      for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Vec v = load<kType>(x, i, columns - i);
        squares += v * v;
      }
    }
    const float scale = 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(columns) + norm.eps);
    void* const y = element<kType>(norm.y, row * columns);
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      store<kType>(y, i, columns - i,
                   load<kType>(x, i, columns - i) * scale *
                       (load<kType>(norm.weight, i, columns - i) + norm.offset));
    }
  }
}

void rms_norm_rows(const decoder::RmsNorm& norm, std::int64_t begin, std::int64_t end) {
  with_type(norm.type, [&](auto type) { norm_rows<type()>(norm, begin, end); });
}

/// Both are x / (1 + e^-s): (1 + tanh(u)) / 2 is the logistic function of 2 u, and does not cancel.
inline Vec activated(const Vec& x, decoder::Activation activation) {
  Vec s = x;
  if (activation == decoder::Activation::kGeluTanh) {
    s = 1.5957691f * (x + 0.044715f * x * x * x);
  }
  return x / (1.0f + exponential(-s));
}

void gated_rows(const decoder::Gated& gated, std::int64_t begin, std::int64_t end) {
  with_type(gated.type, [&](auto type) {
    const std::int64_t columns = gated.columns;
    for (std::int64_t row = begin; row < end; ++row) {
      const void* const gate = element<type()>(gated.gate_up, 2 * row * columns);
      const void* const up = element<type()>(gate, columns);
      void* const y = element<type()>(gated.y, row * columns);
      for (std::int64_t i = 0; i < columns; i += kLanes) {
        store<type()>(y, i, columns - i,
                      activated(load<type()>(gate, i, columns - i), gated.activation) *
                          load<type()>(up, i, columns - i));
      }
    }
  });
}

/// One head: from -> to, normalized where there is a norm, and turned.
template <ScalarType kType>
void turn_head(const decoder::RotaryToCache& rotary, const void* from, const void* norm,
               const float* cos, const float* sin, float* head, void* to) {
  const int size = rotary.cache.head_size;
  Vec squares{};
  for (int i = 0; i < size; i += kLanes) {
    const Vec v = load<kType>(from, i, size - i);
    squares += v * v;
    store<ScalarType::kFloat32>(head, i, size - i, v);
  }
  if (norm != nullptr) {
    const float scale = 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(size) + rotary.eps);
    for (int i = 0; i < size; i += kLanes) {
      store<ScalarType::kFloat32>(head, i, size - i,
                                  load<ScalarType::kFloat32>(head, i, size - i) * scale *
                                      (load<kType>(norm, i, size - i) + rotary.offset));
    }
  }
  const int half = rotary.rotary / 2;
  for (int i = 0; i < half; i += kLanes) {
    const Vec a = load<ScalarType::kFloat32>(head, i, half - i);
    const Vec b = load<ScalarType::kFloat32>(head, half + i, half - i);
    const Vec c = load<ScalarType::kFloat32>(cos, i, half - i);
    const Vec s = load<ScalarType::kFloat32>(sin, i, half - i);
    store<ScalarType::kFloat32>(head, i, half - i, a * c - b * s);
    store<ScalarType::kFloat32>(head, half + i, half - i, b * c + a * s);
  }
  for (int i = 0; i < size; i += kLanes) {
    store<kType>(to, i, size - i, load<ScalarType::kFloat32>(head, i, size - i));
  }
}

void rotary_rows(const decoder::RotaryToCache& rotary, std::int64_t begin, std::int64_t end) {
  with_type(rotary.type, [&](auto type) {
    constexpr ScalarType kType = type();
    const std::int64_t size = rotary.cache.head_size;
    const int kv_heads = rotary.cache.heads;
    const std::int64_t row_size = (rotary.query_heads + 2 * kv_heads) * size;
    std::vector<float> head(static_cast<std::size_t>(size));
    for (std::int64_t row = begin; row < end; ++row) {
      const void* const qkv = element<kType>(rotary.qkv, row * row_size);
      const std::int64_t angles =
          static_cast<std::int64_t>(rotary.positions[row]) * (rotary.rotary / 2);
      const float* const cos = rotary.cos + angles;
      const float* const sin = rotary.sin + angles;
      for (int h = 0; h < rotary.query_heads; ++h) {
        turn_head<kType>(rotary, element<kType>(qkv, h * size), rotary.q_norm, cos, sin,
                         head.data(),
                         element<kType>(rotary.q, (row * rotary.query_heads + h) * size));
      }
      if (rotary.slots[row] < 0) continue;
      const std::int64_t slot = rotary.slots[row] * kv_heads * size;
      const void* const keys = element<kType>(qkv, rotary.query_heads * size);
      for (int h = 0; h < kv_heads; ++h) {
        turn_head<kType>(rotary, element<kType>(keys, h * size), rotary.k_norm, cos, sin,
                         head.data(), element<kType>(rotary.key_cache, slot + h * size));
      }
      std::memcpy(
          element<kType>(rotary.value_cache, slot), element<kType>(keys, kv_heads * size),
          static_cast<std::size_t>(kv_heads * size) * sizeof(typename Elements<kType>::Type));
    }
  });
}

/// The queries of one head of the cache in a run of rows, their running softmax
/// (https://arxiv.org/abs/1805.02867), and keys and values of 16 positions in fp32.
struct AttentionTile {
  int queries;
  int padded;                  ///< head size, a multiple of 16
  std::vector<float> q;        ///< [queries, padded], scaled
  std::vector<float> out;      ///< [queries, padded]
  std::vector<float> largest;  ///< [queries]
  std::vector<float> total;    ///< [queries]
  std::vector<float> keys;     ///< [16, padded], where the cache's rows are not that already
  std::vector<float> values;   ///< likewise
  const float* key_rows[kLanes];
  const float* value_rows[kLanes];

  AttentionTile(int count, int size, bool copies)
      : queries(count), padded((size + kLanes - 1) / kLanes * kLanes) {
    const std::size_t rows = static_cast<std::size_t>(count);
    const std::size_t width = static_cast<std::size_t>(padded);
    q.resize(rows * width);
    out.resize(rows * width);
    largest.assign(rows, -std::numeric_limits<float>::infinity());
    total.resize(rows);
    if (!copies) return;
    keys.resize(kLanes * width);
    values.resize(kLanes * width);
  }

  /// Lanes outside [first, end) do not count.
  void add(int query, int first, int end, float softcap) {
    const float* const vector = q.data() + query * padded;
    Vec products[kLanes] = {};
    for (int d = 0; d < padded; d += kLanes) {
      const Vec x = load<ScalarType::kFloat32>(vector, d, kLanes);
      for (int j = 0; j < kLanes; ++j) {
        products[j] += x * load<ScalarType::kFloat32>(key_rows[j], d, kLanes);
      }
    }
    Vec scores = sums_of(products);
    if (softcap > 0.0f) scores = softcap * hyperbolic_tangent(scores / softcap);
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Vec none = broadcast(-std::numeric_limits<float>::infinity());
    scores = (lanes < first) | (lanes >= end) ? none : scores;
    const float most = largest_of(scores);
    float* const to = out.data() + query * padded;
    if (most > largest[query]) {
      const float correction = exponential(broadcast(largest[query] - most))[0];
      largest[query] = most;
      total[query] *= correction;
      for (int d = 0; d < padded; ++d) to[d] *= correction;
    }
    const Vec powers = exponential(scores - largest[query]);
    total[query] += sum_of(powers);
    float p[kLanes];
    store<ScalarType::kFloat32>(p, 0, kLanes, powers);
    int d = 0;
    for (; d + 4 * kLanes <= padded; d += 4 * kLanes) add_values<4>(p, first, end, d, to);
    for (; d < padded; d += kLanes) add_values<1>(p, first, end, d, to);
  }

 private:
  /// Elements [d, d + 16 kVecs) of the weighted sum of values.
  template <int kVecs>
  void add_values(const float* p, int first, int end, int d, float* to) const {
    Vec sums[kVecs];
    for (int i = 0; i < kVecs; ++i)
      sums[i] = load<ScalarType::kFloat32>(to, d + i * kLanes, kLanes);
    for (int j = first; j < end; ++j) {
      for (int i = 0; i < kVecs; ++i) {
        sums[i] += p[j] * load<ScalarType::kFloat32>(value_rows[j], d + i * kLanes, kLanes);
      }
    }
    for (int i = 0; i < kVecs; ++i) {
      store<ScalarType::kFloat32>(to, d + i * kLanes, kLanes, sums[i]);
    }
  }
};

/// Whether rows of `size` elements are fp32 that whole vectors cover.
template <ScalarType kType>
constexpr bool lies_ready(int size) {
  return kType == ScalarType::kFloat32 && size % kLanes == 0;
}

/// `size` elements of a cache in fp32, padded by zeros to whole vectors: in place where they are
/// that already, else in `room`.
template <ScalarType kType>
inline const float* row_of(const void* cache, std::int64_t first, int size, float* room) {
  const void* const from = element<kType>(cache, first);
  if constexpr (kType == ScalarType::kFloat32) {
    if (lies_ready<kType>(size)) return static_cast<const float*>(from);
  }
  for (int d = 0; d < size; d += kLanes) {
    store<ScalarType::kFloat32>(room, d, kLanes, load<kType>(from, d, size - d));
  }
  return room;
}

/// Where queries of a part are in q and y.
struct Queries {
  const decoder::Attention& attention;
  const AttentionPart& part;
  int group;  ///< queries of a row

  Queries(const decoder::Attention& a, const AttentionPart& p)
      : attention(a), part(p), group(a.query_heads / a.cache.heads) {}
  int count() const { return static_cast<int>(part.end - part.begin) * group; }
  std::int64_t at(int query) const {
    return ((part.begin + query / group) * attention.query_heads + part.head * group +
            query % group) *
           attention.cache.head_size;
  }
  /// Writes y: sums [padded] times `factor`.
  template <ScalarType kType>
  void put(int query, const float* sums, float factor) const {
    const int size = attention.cache.head_size;
    for (int d = 0; d < size; d += kLanes) {
      store<kType>(element<kType>(attention.y, at(query)), d, size - d,
                   load<ScalarType::kFloat32>(sums, d, kLanes) * factor);
    }
  }
};

inline float inverse_or_zero(float total) { return total > 0.0f ? 1.0f / total : 0.0f; }

template <ScalarType kType>
void attend(const decoder::Attention& attention, const AttentionPart& part) {
  const Queries queries(attention, part);
  const int size = attention.cache.head_size;
  const int block_size = attention.cache.block_size;
  const std::int32_t* const blocks =
      attention.block_table + static_cast<std::int64_t>(part.sequence) * attention.max_blocks;
  AttentionTile tile(queries.count(), size, !lies_ready<kType>(size));
  for (int query = 0; query < tile.queries; ++query) {
    for (int d = 0; d < size; d += kLanes) {
      store<ScalarType::kFloat32>(
          tile.q.data() + query * tile.padded, d, kLanes,
          load<kType>(element<kType>(attention.q, queries.at(query)), d, size - d) *
              attention.scale);
    }
  }
  // The position of row r is r + shift.
  const std::int64_t shift =
      attention.lengths[part.sequence] - attention.sequence_start[part.sequence + 1];
  for (std::int64_t base = part.first_key; base < part.end_key; base += kLanes) {
    const int count = static_cast<int>(std::min<std::int64_t>(kLanes, part.end_key - base));
    for (int j = 0; j < kLanes; ++j) {
      // Lanes past the last key repeat it: they do not count.
      const std::int64_t position = base + std::min(j, count - 1);
      const std::int64_t slot =
          static_cast<std::int64_t>(blocks[position / block_size]) * block_size +
          position % block_size;
      const std::int64_t at = (slot * attention.cache.heads + part.head) * size;
      tile.key_rows[j] =
          row_of<kType>(attention.key_cache, at, size, tile.keys.data() + j * tile.padded);
      tile.value_rows[j] =
          row_of<kType>(attention.value_cache, at, size, tile.values.data() + j * tile.padded);
    }
    for (int query = 0; query < tile.queries; ++query) {
      const std::int64_t position = part.begin + query / queries.group + shift;
      const std::int64_t seen = std::min<std::int64_t>(count, position + 1 - base);
      std::int64_t from = 0;
      if (attention.window > 0) {
        from = std::max<std::int64_t>(0, position - attention.window + 1 - base);
      }
      if (from < seen) {
        tile.add(query, static_cast<int>(from), static_cast<int>(seen), attention.softcap);
      }
    }
  }
  for (int query = 0; query < tile.queries; ++query) {
    const float* const sums = tile.out.data() + query * tile.padded;
    if (part.state == nullptr) {
      queries.put<kType>(query, sums, inverse_or_zero(tile.total[query]));
    } else {
      float* const state = part.state + query * (tile.padded + 2);
      state[0] = tile.largest[query];
      state[1] = tile.total[query];
      std::copy(sums, sums + tile.padded, state + 2);
    }
  }
}

void attend_part(const decoder::Attention& attention, const AttentionPart& part) {
  with_type(attention.type, [&](auto type) { attend<type()>(attention, part); });
}

void add_parts(const decoder::Attention& attention, const AttentionPart* parts, int count) {
  const Queries queries(attention, parts[0]);
  const int padded = (attention.cache.head_size + kLanes - 1) / kLanes * kLanes;
  std::vector<float> sums(static_cast<std::size_t>(padded));
  for (int query = 0; query < queries.count(); ++query) {
    const auto state = [&](int p) { return parts[p].state + query * (padded + 2); };
    float most = state(0)[0];
    for (int p = 1; p < count; ++p) most = std::max(most, state(p)[0]);
    std::fill(sums.begin(), sums.end(), 0.0f);
    float total = 0.0f;
    for (int p = 0; p < count; ++p) {
      const float factor = exponential(broadcast(state(p)[0] - most))[0];
      total += state(p)[1] * factor;
      for (int d = 0; d < padded; d += kLanes) {
        store<ScalarType::kFloat32>(
            sums.data(), d, kLanes,
            load<ScalarType::kFloat32>(sums.data(), d, kLanes) +
                factor * load<ScalarType::kFloat32>(state(p) + 2, d, kLanes));
      }
    }
    with_type(attention.type,
              [&](auto type) { queries.put<type()>(query, sums.data(), inverse_or_zero(total)); });
  }
}

constexpr DecoderKernels kDecoderKernels{rms_norm_rows, gated_rows, rotary_rows, attend_part,
                                         add_parts};

}  // namespace
}  // namespace anyprec::cpu
