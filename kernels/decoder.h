#pragma once

#include <cstdint>

#include "anyprec/weights.h"

/// What a decoder computes between its linear layers, as kernels take it: raw pointers into memory
/// of the kernels' device, all arrays contiguous. kernels/cpu/decoder.h and kernels/cuda/decoder.h
/// compute it.
///
/// M: rows of activations (tokens in flight); B: sequences; Hq, Hk: heads of queries and of keys
/// and values, Hq a multiple of Hk. `type` is that of all `void` pointers. Arithmetic is fp32.
namespace anyprec::decoder {

/// Root mean square normalization (https://arxiv.org/abs/1910.07467):
/// y = x / sqrt(mean(x^2) + eps) * (weight + offset), rounded once.
struct RmsNorm {
  ScalarType type = ScalarType::kFloat32;
  std::int64_t rows = 0;     ///< M
  std::int64_t columns = 0;  ///< D
  const void* x = nullptr;   ///< [M, D]
  void* residual = nullptr;  ///< [M, D] or null. Else x is added to it, and the sum is normalized
  const void* weight = nullptr;  ///< [D]
  float eps = 0.0f;
  float offset = 0.0f;  ///< 1 where the model keeps weight - 1 (Gemma)
  void* y = nullptr;    ///< [M, D]
};

enum class Activation { kSilu, kGeluTanh };

/// y = activation(gate) * up, of rows [gate, up].
struct Gated {
  ScalarType type = ScalarType::kFloat32;
  std::int64_t rows = 0;     ///< M
  std::int64_t columns = 0;  ///< F
  Activation activation = Activation::kSilu;
  const void* gate_up = nullptr;  ///< [M, 2 F]
  void* y = nullptr;              ///< [M, F]
};

/// Keys and values of all sequences: blocks of positions. Position p of a sequence is in slot
/// block * block_size + p % block_size, block = entry p / block_size of the sequence's row of the
/// block table.
struct CacheShape {
  std::int64_t blocks = 0;
  int block_size = 0;
  int heads = 0;      ///< Hk
  int head_size = 0;  ///< even
};

/// Rotary position embedding (https://arxiv.org/abs/2104.09864) by halves: element i of the first
/// `rotary` of a head turns with element i + rotary / 2, by the angle of (position, i). Queries and
/// keys are normalized before that where there are norms (RmsNorm over a head).
struct RotaryToCache {
  ScalarType type = ScalarType::kFloat32;
  std::int64_t rows = 0;                    ///< M
  int query_heads = 0;                      ///< Hq
  std::int64_t table_rows = 0;              ///< P
  int rotary = 0;                           ///< elements of a head that turn, even
  const void* qkv = nullptr;                ///< [M, (Hq + 2 Hk) head_size]
  const std::int32_t* positions = nullptr;  ///< [M], each in [0, P)
  const std::int64_t* slots = nullptr;      ///< [M], where key and value go; -1: nowhere
  const float* cos = nullptr;               ///< [P, rotary / 2]
  const float* sin = nullptr;               ///< [P, rotary / 2]
  const void* q_norm = nullptr;             ///< [head_size] or null
  const void* k_norm = nullptr;             ///< [head_size] or null
  float eps = 0.0f;
  float offset = 0.0f;
  CacheShape cache;
  void* key_cache = nullptr;    ///< [blocks, block_size, Hk, head_size]
  void* value_cache = nullptr;  ///< likewise
  void* q = nullptr;            ///< [M, Hq, head_size]
};

/// Causal attention of queries over the paged cache, which has the keys of the queries themselves.
///
/// Sequence b has the query rows sequence_start[b] .. sequence_start[b + 1] - 1, its last ones: row
/// i of its n is position lengths[b] - n + i. It sees the positions p' <= p, and with a window
/// p' > p - window. A row that sees no key, or belongs to no sequence, gives zeros.
struct Attention {
  ScalarType type = ScalarType::kFloat32;
  std::int64_t rows = 0;    ///< M
  int sequences = 0;        ///< B
  int query_heads = 0;      ///< Hq
  int max_blocks = 0;       ///< columns of the block table
  float scale = 0.0f;       ///< of the products of queries and keys
  int window = 0;           ///< 0: none
  float softcap = 0.0f;     ///< s becomes softcap * tanh(s / softcap); 0: none
  const void* q = nullptr;  ///< [M, Hq, head_size]
  CacheShape cache;
  const void* key_cache = nullptr;               ///< [blocks, block_size, Hk, head_size]
  const void* value_cache = nullptr;             ///< likewise
  const std::int32_t* block_table = nullptr;     ///< [B, max_blocks]
  const std::int32_t* sequence_start = nullptr;  ///< [B + 1], rising from 0 to at most M
  const std::int32_t* lengths = nullptr;         ///< [B], keys in the cache
  void* y = nullptr;                             ///< [M, Hq, head_size]
};

/// One token a row of logits; kernels/sampling.h has the arithmetic, the same on every device.
///
/// In this order: the repetition penalty (https://arxiv.org/abs/1909.05858) of tokens in `history`;
/// temperature; the top_k largest; of these the fewest largest that have top_p of their
/// probability; of these those with at least min_p of the largest probability. Tokens equal to the
/// last one that a filter keeps stay. NaN counts as -infinity.
struct Sampling {
  ScalarType type = ScalarType::kFloat32;
  std::int64_t rows = 0;                ///< B
  std::int64_t vocabulary = 0;          ///< V, below 2^22
  const void* logits = nullptr;         ///< [B, V]
  const float* temperature = nullptr;   ///< [B]; 0: the largest logit, of equal ones the first
  const std::int32_t* top_k = nullptr;  ///< [B]; 0: all
  const float* top_p = nullptr;         ///< [B]; 1: all
  const float* min_p = nullptr;         ///< [B]; 0: all
  const float* repetition_penalty = nullptr;  ///< [B]; 1: none
  const std::int64_t* seed = nullptr;         ///< [B]
  const std::int64_t* step = nullptr;         ///< [B]
  const std::int64_t* history = nullptr;      ///< [B, H], entries outside [0, V) are skipped
  std::int64_t history_length = 0;            ///< H
  float* adjusted = nullptr;                  ///< [B, V], working memory
  std::int64_t* tokens = nullptr;             ///< [B]
};

}  // namespace anyprec::decoder
