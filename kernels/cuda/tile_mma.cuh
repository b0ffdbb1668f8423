#pragma once

#include <cstdint>

#include "anyprec/weights.h"

/// Matrices of 8 x 8 16-bit elements from shared memory into the operands of mma.m16n8k16.
namespace anyprec::cuda {

/// Four matrices: lane i gives the address of row i % 8 of matrix i / 8. Lane 4 g + t gets the
/// elements 2 t, 2 t + 1 of row g of each.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

/// The same transposed: lane 4 g + t gets the elements of column g in rows 2 t, 2 t + 1.
__device__ __forceinline__ void load_transposed(std::uint32_t (&to)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

/// c[16][8] += a[16][16] b[16][8] in fp32. Lane 4 g + t: a = {row g, columns 2 t, 2 t + 1}, {row
/// g + 8}, {row g, columns 2 t + 8, 2 t + 9}, {row g + 8}; b = rows {2 t, 2 t + 1}, {2 t + 8, 2 t +
/// 9} of column g; c = columns 2 t, 2 t + 1 of row g, then of row g + 8.
template <ScalarType kType>
__device__ __forceinline__ void tile_mma(float (&c)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kType == ScalarType::kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace anyprec::cuda
