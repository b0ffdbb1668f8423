#pragma once

#include <cstring>
#include <vector>

#include "kernels/cuda/layout.h"
#include "tests/cpp/kernels/emulated/block.h"
#include "tests/cpp/kernels/quantized_case.h"

/// A quantized matrix as an emulated block finds it in global memory.
namespace anyprec::testing::emulated {

/// Memory of exactly some bytes, aligned as the kernels want it.
template <class T>
class Aligned {
 public:
  explicit Aligned(const std::vector<T>& values)
      : words_((values.size() * sizeof(T) + sizeof(Word) - 1) / sizeof(Word)) {
    std::memcpy(words_.data(), values.data(), values.size() * sizeof(T));
  }
  const T* data() const { return reinterpret_cast<const T*>(words_.data()); }

 private:
  struct alignas(16) Word {
    char bytes[16];
  };
  std::vector<Word> words_;
};

/// Planes in the layout of kernels/cuda/layout.h.
inline std::vector<std::uint8_t> packed_planes(const QuantizedCase& c) {
  const std::int64_t units = cuda::unit_count(c.k);
  std::vector<std::uint8_t> packed(kMaxPrecision * packed_plane_bytes(c.n, c.k));
  for (int p = 0; p < kMaxPrecision; ++p) {
    for (std::int64_t n = 0; n < c.n; ++n) {
      for (std::int64_t k = 0; k < c.k; ++k) {
        if (!(c.canonical[(p * c.n + n) * plane_row_bytes(c.k) + k / 8] >> (k % 8) & 1)) continue;
        const std::int64_t record = n / cuda::kTileRows * units + k / cuda::kUnitColumns;
        const int word = cuda::word_of(static_cast<int>(n % cuda::kTileRows),
                                       static_cast<int>(k % cuda::kUnitColumns));
        packed[p * packed_plane_bytes(c.n, c.k) + record * cuda::kRecordBytes + word * 4 +
               k % 32 / 8] |= static_cast<std::uint8_t>(1u << (k % 8));
      }
    }
  }
  return packed;
}

}  // namespace anyprec::testing::emulated
