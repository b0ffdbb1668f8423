#include "anyprec/planes.h"
#include "kernels/cuda/code_planes.h"

namespace anyprec::cuda {
namespace {

constexpr int kThreads = 256;

/// One thread for each byte of a plane: 8 columns of all planes.
__global__ void __launch_bounds__(kThreads)
    planes_kernel(const std::uint8_t* codes, std::int64_t rows, std::int64_t columns, int planes,
                  std::int64_t row_bytes, std::uint8_t* out) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= rows * row_bytes) return;
  const std::int64_t first = at % row_bytes * 8;
  const std::uint8_t* const from = codes + at / row_bytes * columns + first;
  std::uint64_t eight = 0;
  if (columns % 8 == 0) {
    eight = *reinterpret_cast<const std::uint64_t*>(from);
  } else {
    for (int i = 0; i < 8 && first + i < columns; ++i) eight |= std::uint64_t{from[i]} << (8 * i);
  }
  for (int p = 0; p < planes; ++p) {
    // The lowest bits of the eight bytes, side by side: byte i's goes to bit 56 + i of the product.
    const std::uint64_t bits = (eight >> (planes - 1 - p)) & 0x0101010101010101u;
    out[p * rows * row_bytes + at] = static_cast<std::uint8_t>((bits * 0x0102040810204080u) >> 56);
  }
}

}  // namespace

cudaError_t codes_to_planes(const std::uint8_t* codes, std::int64_t rows, std::int64_t columns,
                            int planes, std::uint8_t* out, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  const std::int64_t row_bytes = plane_row_bytes(columns);
  const std::int64_t blocks = (rows * row_bytes + kThreads - 1) / kThreads;
  planes_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(codes, rows, columns,
                                                                        planes, row_bytes, out);
  return cudaGetLastError();
}

}  // namespace anyprec::cuda
