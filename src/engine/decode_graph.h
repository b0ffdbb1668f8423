#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "src/engine/decoder.h"

namespace anyprec::engine {

/// CUDA graphs of decode passes: one for each precision assignment and number of rows, captured
/// when first needed, all in one memory pool. Replays must be on the stream of their capture.
class DecodeGraphs {
 public:
  virtual ~DecodeGraphs() = default;
  /// The pass over `buffers`, which have been uploaded: logits [rows, vocabulary], valid until the
  /// next call. The same buffers must be given for the same number of rows.
  virtual at::Tensor replay(const StepBuffers& buffers, const SharedAssignment& assignment) = 0;
};

/// Null in a build without CUDA. Borrows both.
std::unique_ptr<DecodeGraphs> make_decode_graphs(const Decoder& decoder, KeyValueCache& cache);

/// Rows that a graph is captured for: the next of 1, 2, 4, 8, 16, 24, 32, 40, ...
std::int64_t graph_rows(std::int64_t rows);

}  // namespace anyprec::engine
