#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace anyprec::engine {

/// What one pass of the decoder is about: M rows (tokens) of B sequences.
struct StepBatch {
  at::Tensor tokens;          ///< int64 [M]
  at::Tensor positions;       ///< int32 [M], of a token in its sequence
  at::Tensor slots;           ///< int64 [M], where its key and value go in the cache; -1: nowhere
  at::Tensor block_table;     ///< int32 [B, blocks of the longest sequence]
  at::Tensor sequence_start;  ///< int32 [B + 1], first row of each sequence
  at::Tensor lengths;         ///< int32 [B], tokens of each sequence, those of this pass included
  at::Tensor logit_rows;      ///< int64 [R], rows whose logits are wanted; undefined: every row's
};

/// A StepBatch's memory, on the host and, where that is a GPU, on the device: it goes over in one
/// copy.
class StepBuffers {
 public:
  static constexpr std::int64_t kEveryRow = -1;
  /// logit_rows: how many rows' logits are wanted, or kEveryRow.
  StepBuffers(std::int64_t rows, std::int64_t sequences, std::int64_t blocks,
              std::int64_t logit_rows, at::Device device);

  // The host's side, to be written before upload().
  std::span<std::int64_t> tokens() { return tokens_; }
  std::span<std::int64_t> slots() { return slots_; }
  std::span<std::int64_t> logit_rows() { return logit_rows_; }
  std::span<std::int32_t> positions() { return positions_; }
  std::span<std::int32_t> sequence_start() { return sequence_start_; }
  std::span<std::int32_t> lengths() { return lengths_; }
  /// Row b of the block table.
  std::span<std::int32_t> blocks(std::int64_t sequence);

  /// Enqueues the copy on the current stream. The host's side may be written again at once, and
  /// uploaded once more; a third upload has to wait for the end of the first.
  void upload();
  const StepBatch& batch() const { return batch_; }

 private:
  std::int64_t table_width_;
  at::Tensor host_;
  std::array<at::Tensor, 2> pinned_;  ///< what copies read, in turn; undefined on a CPU
  std::size_t turn_ = 0;
  at::Tensor device_;
  StepBatch batch_;
  std::span<std::int64_t> tokens_, slots_, logit_rows_;
  std::span<std::int32_t> positions_, sequence_start_, lengths_, table_;
};

}  // namespace anyprec::engine
