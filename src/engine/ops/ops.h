#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "kernels/decoder.h"

/// What a decoder computes between its linear layers, on libtorch tensors of the CPU or of a CUDA
/// device. kernels/decoder.h defines each operation. Activations, weights of norms and the cache
/// have one dtype: float32, bfloat16 or float16; results have it too.
///
/// M: rows of activations; B: sequences; Hq, Hk: heads of queries and of keys and values.
///
/// Arguments are checked before anything is enqueued (c10::ValueError, c10::TypeError). What lies
/// in device memory (positions, slots, tables, lengths) is not: on the CPU a wrong entry throws
/// c10::ValueError too, on CUDA it is undefined. On CUDA everything goes to the current
/// stream, nothing waits for the host, and all can be captured into a graph.
namespace anyprec::engine {

/// A row of activations as bit planes, for linear layers that take them so (linear_from_planes in
/// anyprec/cuda.h: CUDA, one or two rows).
struct BitPlanes {
  at::Tensor planes;  ///< uint8 [M, activation_planes_bytes(K)]
  at::Tensor scales;  ///< fp32 [M, 2]
};
/// Whether operators can write bit planes of M rows on this device: pass a BitPlanes to an operator
/// only then. The planes are of the values that the operator returns.
bool can_write_planes(const at::Device& device, std::int64_t rows);

/// x [M, D], weight [D] -> [M, D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset,
                    BitPlanes* planes = nullptr);
/// residual [M, D] += x, contiguous; returns the norm of the sum.
at::Tensor add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                        double eps, double offset, BitPlanes* planes = nullptr);

/// gate_up [M, 2 F] -> [M, F].
at::Tensor gated(const at::Tensor& gate_up, decoder::Activation activation,
                 BitPlanes* planes = nullptr);

/// qkv [M, (Hq + 2 Hk) hd], positions int32 [M], slots int64 [M] (-1: not written), cos and sin
/// fp32 [P, rotary / 2], norms [hd], caches [blocks, block_size, Hk, hd] -> q [M, Hq, hd].
at::Tensor rotary_to_cache(const at::Tensor& qkv, const at::Tensor& positions,
                           const at::Tensor& slots, const at::Tensor& cos, const at::Tensor& sin,
                           const std::optional<at::Tensor>& q_norm,
                           const std::optional<at::Tensor>& k_norm, double eps, double offset,
                           const at::Tensor& key_cache, const at::Tensor& value_cache);

/// q [M, Hq, hd], caches [blocks, block_size, Hk, hd], block_table int32 [B, max_blocks],
/// sequence_start int32 [B + 1], lengths int32 [B] -> [M, Hq hd].
///
/// Planes cost a launch here, which takes about what they save a linear layer of few columns.
///
/// On CUDA, M up to 4 B counts as decoding, whatever the sequences' shares. hd there: 64, 96, 128,
/// 256.
at::Tensor attention(const at::Tensor& q, const at::Tensor& key_cache,
                     const at::Tensor& value_cache, const at::Tensor& block_table,
                     const at::Tensor& sequence_start, const at::Tensor& lengths, double scale,
                     std::int64_t window, double softcap, BitPlanes* planes = nullptr);

/// Of each row, in the memory of the logits' device.
struct SamplingRows {
  at::Tensor temperature;         ///< fp32 [B]
  at::Tensor top_k;               ///< int32 [B]
  at::Tensor top_p;               ///< fp32 [B]
  at::Tensor min_p;               ///< fp32 [B]
  at::Tensor repetition_penalty;  ///< fp32 [B]
  at::Tensor seed;                ///< int64 [B]
  at::Tensor step;                ///< int64 [B]
  at::Tensor history;             ///< int64 [B, H], padded by -1
};
/// logits [B, V] -> tokens int64 [B]. One seed and step choose the same token from the same logits
/// on every device and in every batch.
at::Tensor sample(const at::Tensor& logits, const SamplingRows& rows);

}  // namespace anyprec::engine
