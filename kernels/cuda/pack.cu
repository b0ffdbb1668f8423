#include <cstdint>

#include "anyprec/cuda.h"
#include "anyprec/planes.h"
#include "kernels/cuda/layout.h"

namespace anyprec::cuda {
namespace {

constexpr int kThreads = 256;

/// One thread a word of 32 columns.
__global__ void pack_kernel(const std::uint8_t* canonical, std::int64_t planes,
                            std::int64_t out_features, std::int64_t in_features,
                            std::uint32_t* packed) {
  constexpr int kRecordWords = kRecordBytes / 4;
  const std::int64_t units = unit_count(in_features);
  const std::int64_t tiles = tile_count(out_features);
  const std::int64_t words = planes * tiles * units * kRecordWords;
  const std::int64_t row_bytes = plane_row_bytes(in_features);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += step) {
    const int word = static_cast<int>(i % kRecordWords);
    const std::int64_t record = i / kRecordWords;
    const std::int64_t unit = record % units;
    const std::int64_t tile = record / units % tiles;
    const std::int64_t plane = record / units / tiles;
    const int lane = word / 4;
    const std::int64_t row = tile * kTileRows + lane / 4 + word % 2 * 8;
    const std::int64_t column = unit * kUnitColumns + word / 2 % 2 * 128 + lane % 4 * 32;
    std::uint32_t bits = 0;
    if (row < out_features) {
      const std::uint8_t* from = canonical + (plane * out_features + row) * row_bytes;
      for (int byte = 0; byte < 4; ++byte) {
        const std::int64_t at = column / 8 + byte;
        if (at < row_bytes) bits |= static_cast<std::uint32_t>(from[at]) << (8 * byte);
      }
      const std::int64_t left = in_features - column;
      if (left < 32) bits &= left > 0 ? (1u << left) - 1 : 0u;
    }
    packed[i] = bits;
  }
}

/// One thread a byte of eight columns.
__global__ void unpack_kernel(const std::uint32_t* packed, std::int64_t planes,
                              std::int64_t out_features, std::int64_t in_features,
                              std::uint8_t* canonical) {
  const std::int64_t row_bytes = plane_row_bytes(in_features);
  const std::int64_t bytes = planes * out_features * row_bytes;
  const std::int64_t plane_words = packed_plane_bytes(out_features, in_features) / 4;
  const std::int64_t units = unit_count(in_features);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < bytes;
       i += step) {
    const std::int64_t byte = i % row_bytes;
    const std::int64_t row = i / row_bytes % out_features;
    const std::int64_t plane = i / row_bytes / out_features;
    const std::int64_t unit = byte * 8 / kUnitColumns;
    const int column = static_cast<int>(byte * 8 % kUnitColumns);
    const std::int64_t record = row / kTileRows * units + unit;
    const std::uint32_t word = packed[plane * plane_words + record * (kRecordBytes / 4) +
                                      word_of(static_cast<int>(row % kTileRows), column)];
    canonical[i] = static_cast<std::uint8_t>(word >> (column % 32));
  }
}

unsigned blocks_for(std::int64_t items) {
  constexpr std::int64_t kMost = 1 << 16;  // the kernels stride over what is left
  const std::int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

}  // namespace

cudaError_t pack_planes(const std::uint8_t* canonical, int planes, std::int64_t out_features,
                        std::int64_t in_features, std::uint8_t* packed, cudaStream_t stream) {
  const std::int64_t words = planes * packed_plane_bytes(out_features, in_features) / 4;
  if (words == 0) return cudaSuccess;
  pack_kernel<<<blocks_for(words), kThreads, 0, stream>>>(
      canonical, planes, out_features, in_features, reinterpret_cast<std::uint32_t*>(packed));
  return cudaGetLastError();
}

cudaError_t unpack_planes(const std::uint8_t* packed, int planes, std::int64_t out_features,
                          std::int64_t in_features, std::uint8_t* canonical, cudaStream_t stream) {
  const std::int64_t bytes = planes * out_features * plane_row_bytes(in_features);
  if (bytes == 0) return cudaSuccess;
  unpack_kernel<<<blocks_for(bytes), kThreads, 0, stream>>>(
      reinterpret_cast<const std::uint32_t*>(packed), planes, out_features, in_features, canonical);
  return cudaGetLastError();
}

}  // namespace anyprec::cuda
