#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "anyprec/quantize.h"
#include "anyprec/weights.h"

/// anyprec::quantize_matrix on a GPU.
namespace anyprec::cuda {

struct TreeInput {
  const void* weights = nullptr;  ///< [N, K] of `type`
  ScalarType type = ScalarType::kFloat32;
  const float* sensitivities = nullptr;  ///< [N, K], or null for all ones
  std::int64_t rows = 0;                 ///< N
  std::int64_t columns = 0;              ///< K, up to kMaxTreeColumns
  QuantizeOptions options;

  /// Columns that share a table.
  std::int64_t group_size() const {
    return options.group_size == 0 || options.group_size > columns ? columns : options.group_size;
  }
  /// G
  std::int64_t groups() const { return (columns + group_size() - 1) / group_size(); }
};

inline constexpr std::int64_t kMaxTreeColumns = std::int64_t{1} << 24;

/// Results as QuantizedMatrix has them, in the device's memory.
struct TreeResult {
  std::uint8_t* codes = nullptr;  ///< [N, K]
  /// Of precision b at b - 2: [N, G, 2^b]; null where b is not asked for.
  float* luts[7] = {};
  double* errors = nullptr;  ///< [N, G, parent - lowest + 1]: to be summed over N and G
};

/// Row-major indices of the first weight that is not finite and of the first sensitivity that is
/// not finite or negative; the largest number of 64 bits where there is none. found: [2] in the
/// device's memory.
cudaError_t find_bad_values(const TreeInput& input, std::uint64_t* found, cudaStream_t stream);

/// Bytes of `build_tree`'s workspace on the current device: about 16 bytes a weight of a batch of
/// 2^24 weights or one row, and at most 1 GiB (or what one block needs) for the rows in work.
cudaError_t tree_workspace_bytes(const TreeInput& input, std::size_t& bytes);

/// Codes and tables of every precision as anyprec::quantize_matrix makes them: the seed's clusters
/// are optimal, and every split. Sums are in double but added in another order than on a CPU, and
/// so the choice between partitions whose costs differ by a relative 1e-12 or so (1e-15 of the sum
/// of squares about the middle value, for the seed) may differ; the bytes do not from run to run.
///
/// The options must have been checked (quantize::validate_options), and the values found good.
cudaError_t build_tree(const TreeInput& input, const TreeResult& result, void* workspace,
                       cudaStream_t stream);

}  // namespace anyprec::cuda
