#pragma once

#include <cstdint>

#include "anyprec/codebook.h"
#include "anyprec/cuda.h"
#include "kernels/cuda/fused.h"

namespace anyprec::cuda {

/// The codebook form at one precision, as the builder of tables (table_build.cuh) needs it.
struct TableForm {
  TableForm() = default;
  TableForm(const CodebookForm& form, int precision)
      : table_bits(precision - form.sign_planes(precision)),
        signs(form.sign_planes(precision)),
        classes(form.classes()),
        codebook(form) {}

  int table_bits;  ///< min(b, L)
  int signs;       ///< b - table_bits
  int classes;     ///< C
  CodebookForm codebook;
};

/// One matrix, as the table kernel takes it.
struct TableMmaProduct {
  const std::uint8_t* planes;
  std::int64_t plane_stride;
  const std::uint16_t* lut;
  const std::uint16_t* alpha;
  const void* bias;
  void* y;
  std::int64_t y_stride;
  int rows;        ///< N
  int tile_begin;  ///< among the tiles of all products
};

struct TableMmaArgs {
  const void* x;
  std::int64_t x_stride;
  ScalarType type;   ///< of x, bias and y: fp16 or bf16
  bool x_is_vector;  ///< every run of 8 elements of x is aligned to 16 bytes and whole
  int x_rows;        ///< M
  int columns;       ///< K
  int units;         ///< of K
  int chunk_units;   ///< units that the warps of a block hold of x at a time
  int chunks;        ///< of K
  int tiles;         ///< of all products
  int products;
  std::uint32_t one_shl_16;  ///< 65536, unknown to the compiler: so that joining is a multiply-add
  Fused fused;               ///< see TableMmaKernel
  TableForm form;
  TableMmaProduct product[kMaxProducts];
};

/// The longest run of tiles of a block.
inline constexpr int kMaxTiles = 16;

/// One kernel and what its launch needs.
struct TableMmaKernel {
  void (*kernel)(TableMmaArgs);
  int threads;
  int blocks_per_multiprocessor;
  int chunk_units;   ///< the most that its warps hold of x
  int x_rows;        ///< rows of x in one pass
  int shared_bytes;  ///< without the running sums
  int sum_bytes;     ///< of a tile's running sums, kept where K takes several chunks
  bool fuses;        ///< TableMmaArgs::fused is heeded; norms where x_is_vector and in one chunk
};

/// The kernel of precision b that takes `rows` rows of x fastest. One source a precision
/// (table_mma_b*.cu).
template <int kBits>
TableMmaKernel table_mma_kernel(std::int64_t rows);

}  // namespace anyprec::cuda
