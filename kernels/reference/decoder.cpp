#include "kernels/reference/decoder.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/reference/linear.h"

namespace anyprec::reference {
namespace {

/// What `type` keeps of a value, for the one place where the definition says so.
double rounded(double value, ScalarType type) {
  const float single = static_cast<float>(value);
  if (type == ScalarType::kFloat32 || single == 0.0f || !std::isfinite(single)) return single;
  const int kept = type == ScalarType::kFloat16 ? 11 : 8;  // bits, with the leading one
  int exponent;
  std::frexp(single, &exponent);
  if (type == ScalarType::kFloat16) exponent = std::max(exponent, -13);
  const double step = std::ldexp(1.0, exponent - kept);
  return std::nearbyint(static_cast<double>(single) / step) * step;
}

double activated(double x, decoder::Activation activation) {
  if (activation == decoder::Activation::kSilu) return x / (1.0 + std::exp(-x));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/// A head of qkv after its norm, if it has one.
std::vector<double> head_of(const decoder::RotaryToCache& rotary, std::int64_t row, int head,
                            const void* norm) {
  const int size = rotary.cache.head_size;
  const std::int64_t first = (row * (rotary.query_heads + 2 * rotary.cache.heads) + head) * size;
  std::vector<double> values;
  double squares = 0.0;
  for (int i = 0; i < size; ++i) {
    values.push_back(element(rotary.qkv, rotary.type, first + i));
    squares += values.back() * values.back();
  }
  if (norm == nullptr) return values;
  const double scale = 1.0 / std::sqrt(squares / size + static_cast<double>(rotary.eps));
  for (int i = 0; i < size; ++i) {
    values[static_cast<std::size_t>(i)] *=
        scale * (element(norm, rotary.type, i) + static_cast<double>(rotary.offset));
  }
  return values;
}

void turn(const decoder::RotaryToCache& rotary, std::int64_t row, std::vector<double>& head) {
  const std::int64_t half = rotary.rotary / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t angle = rotary.positions[row] * half + i;
    const double cos = static_cast<double>(rotary.cos[angle]);
    const double sin = static_cast<double>(rotary.sin[angle]);
    double& a = head[static_cast<std::size_t>(i)];
    double& b = head[static_cast<std::size_t>(i + half)];
    const double turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }
}

}  // namespace

double element(const void* array, ScalarType type, std::int64_t index) {
  if (type == ScalarType::kFloat32) {
    return static_cast<double>(static_cast<const float*>(array)[index]);
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(array)[index];
  if (type == ScalarType::kFloat16) return half_value(bits);
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
}

Norm rms_norm(const decoder::RmsNorm& norm) {
  Norm result;
  for (std::int64_t row = 0; row < norm.rows; ++row) {
    std::vector<double> x;
    double squares = 0.0;
    for (std::int64_t i = 0; i < norm.columns; ++i) {
      const std::int64_t at = row * norm.columns + i;
      double value = element(norm.x, norm.type, at);
      if (norm.residual != nullptr) {
        value += element(norm.residual, norm.type, at);
        result.residual.push_back(value);
        value = rounded(value, norm.type);
      }
      x.push_back(value);
      squares += value * value;
    }
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(norm.columns) +
                                         static_cast<double>(norm.eps));
    for (std::int64_t i = 0; i < norm.columns; ++i) {
      result.y.push_back(x[static_cast<std::size_t>(i)] * scale *
                         (element(norm.weight, norm.type, i) + static_cast<double>(norm.offset)));
    }
  }
  return result;
}

std::vector<double> gated(const decoder::Gated& gated) {
  std::vector<double> y;
  for (std::int64_t row = 0; row < gated.rows; ++row) {
    for (std::int64_t i = 0; i < gated.columns; ++i) {
      const std::int64_t at = 2 * row * gated.columns + i;
      y.push_back(activated(element(gated.gate_up, gated.type, at), gated.activation) *
                  element(gated.gate_up, gated.type, at + gated.columns));
    }
  }
  return y;
}

Heads rotary_to_cache(const decoder::RotaryToCache& rotary) {
  Heads result;
  const auto append = [](std::vector<double>& to, const std::vector<double>& head) {
    to.insert(to.end(), head.begin(), head.end());
  };
  const int kv_heads = rotary.cache.heads;
  for (std::int64_t row = 0; row < rotary.rows; ++row) {
    for (int h = 0; h < rotary.query_heads; ++h) {
      std::vector<double> head = head_of(rotary, row, h, rotary.q_norm);
      turn(rotary, row, head);
      append(result.q, head);
    }
    for (int h = 0; h < kv_heads; ++h) {
      std::vector<double> head = head_of(rotary, row, rotary.query_heads + h, rotary.k_norm);
      turn(rotary, row, head);
      append(result.keys, head);
      append(result.values, head_of(rotary, row, rotary.query_heads + kv_heads + h, nullptr));
    }
  }
  return result;
}

std::vector<double> attention(const decoder::Attention& a) {
  const int size = a.cache.head_size;
  std::vector<double> y(static_cast<std::size_t>(a.rows * a.query_heads * size));
  for (int b = 0; b < a.sequences; ++b) {
    for (std::int64_t row = a.sequence_start[b]; row < a.sequence_start[b + 1]; ++row) {
      const std::int64_t position = a.lengths[b] - (a.sequence_start[b + 1] - row);
      for (int h = 0; h < a.query_heads; ++h) {
        const std::int64_t query = (row * a.query_heads + h) * size;
        double total = 0.0;
        std::vector<double> sums(static_cast<std::size_t>(size));
        const std::int64_t first = a.window > 0 ? position - a.window + 1 : 0;
        for (std::int64_t key = std::max<std::int64_t>(0, first); key <= position; ++key) {
          const std::int64_t block =
              a.block_table[static_cast<std::int64_t>(b) * a.max_blocks + key / a.cache.block_size];
          const std::int64_t slot = block * a.cache.block_size + key % a.cache.block_size;
          const std::int64_t at =
              (slot * a.cache.heads + h / (a.query_heads / a.cache.heads)) * size;
          double score = 0.0;
          for (int d = 0; d < size; ++d) {
            score += element(a.q, a.type, query + d) * element(a.key_cache, a.type, at + d);
          }
          score *= static_cast<double>(a.scale);
          const double softcap = static_cast<double>(a.softcap);
          if (softcap > 0.0) score = softcap * std::tanh(score / softcap);
          const double power = std::exp(score);
          total += power;
          for (int d = 0; d < size; ++d) {
            sums[static_cast<std::size_t>(d)] += power * element(a.value_cache, a.type, at + d);
          }
        }
        for (int d = 0; d < size && total > 0.0; ++d) {
          y[static_cast<std::size_t>(query + d)] = sums[static_cast<std::size_t>(d)] / total;
        }
      }
    }
  }
  return y;
}

}  // namespace anyprec::reference
