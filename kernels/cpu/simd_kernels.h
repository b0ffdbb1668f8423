#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/kernel_set.h"

/// The x86 kernels (AVX2 at least), written once over a vector type S and compiled by each source
/// of an instruction set with that set's flags.
///
/// Everything here has internal linkage, and only functions of this file and intrinsics are called:
/// code that the compiler made for a newer machine must never be merged by the linker into what the
/// baseline runs. The standard library's inline functions are out of bounds for the same reason.
///
/// S provides, beside what fixed_words.h may want of it:
///   kUnits                    units in a step
///   kLanes                    floats in a vector
///   kTileW, kTileX            rows of W and of x that a register tile of `multiply` covers
///   Vec, Float                integer and float vectors
///   Codes<B>                  the b-bit codes of a step, in the form that `look_up` wants
///   load_codes<B>(planes, unit)
///   Table<B>                  a table in the form that look_up wants, made from its bytes
///   look_up<B, J>(codes, table, w0, w1)
///                             16-bit table entries of the step's blocks J: columns 0 .. 7 of each
///                             16 in a 128-bit lane of w0, columns 8 .. 15 in w1
///   second_from(a, b)         the first unit's lanes of a and the second's of b
///   kPairs                    whether look_up_both<B, J>(codes, table, w) does blocks J and J + 4
///                             at less cost than two look_ups
///   store_halves(w0, w1, out), store_floats(h0, h1, l0, l1, out)
///                             blocks J in the order of columns; out is the step's block J of unit
///                             0
namespace anyprec::cpu {
namespace {

#define ANYPREC_INLINE inline __attribute__((always_inline))

constexpr float kNotANumber = __builtin_nanf("");

/// Calls body.template operator()<J>() for J = 0 .. 3: a kernel does blocks J and J + 4 together.
template <class Body>
ANYPREC_INLINE void for_each_pair(const Body& body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
}

template <class Body>
ANYPREC_INLINE void for_each_block(const Body& body) {
  for_each_pair([&]<int J>() __attribute__((always_inline)) { body.template operator()<J>(); });
  for_each_pair([&]<int J>() __attribute__((always_inline)) { body.template operator()<J + 4>(); });
}

/// Tables of block j of the step's units.
template <class S, int kPrecision, bool kGrouped>
struct StepTables {
  const std::uint8_t* first;
  const std::uint8_t* second;
  std::int64_t first_group;
  std::int64_t second_group;

  ANYPREC_INLINE StepTables(const Tables& tables, std::int64_t unit, std::int64_t units, int j)
      : first(tables.data), second(tables.data), first_group(0), second_group(0) {
    if constexpr (kGrouped) {
      constexpr int kBytes = table_bytes(kPrecision);
      // The last group may be short of the padding of the row; so may the last step of a unit.
      const std::int64_t last = tables.groups - 1;
      first_group = (unit * kUnitBlocks + j) / tables.blocks_per_group;
      first_group = first_group < last ? first_group : last;
      second_group = first_group;
      if (S::kUnits > 1 && unit + 1 < units) {
        second_group = ((unit + 1) * kUnitBlocks + j) / tables.blocks_per_group;
        second_group = second_group < last ? second_group : last;
      }
      first = tables.data + first_group * kBytes;
      second = tables.data + second_group * kBytes;
    }
  }
};

/// The entries of block J, where units may have their own tables.
template <class S, int kPrecision, int J>
ANYPREC_INLINE void look_up_grouped(const typename S::template Codes<kPrecision>& codes,
                                    const StepTables<S, kPrecision, true>& tables,
                                    typename S::Vec (&w)[2]) {
  using Table = typename S::template Table<kPrecision>;
  S::template look_up<kPrecision, J>(codes, Table(tables.first), w[0], w[1]);
  if (S::kUnits > 1 && tables.second != tables.first) {
    typename S::Vec other[2];
    S::template look_up<kPrecision, J>(codes, Table(tables.second), other[0], other[1]);
    w[0] = S::second_from(w[0], other[0]);
    w[1] = S::second_from(w[1], other[1]);
  }
}

/// The entries of blocks J and J + 4: w[0] and w[1]. `table` is of the only group where there is
/// one.
template <class S, int kPrecision, int J, bool kGrouped>
ANYPREC_INLINE void look_up_pair(const typename S::template Codes<kPrecision>& codes,
                                 const typename S::template Table<kPrecision>& table,
                                 const StepTables<S, kPrecision, kGrouped> (&groups)[2],
                                 typename S::Vec (&w)[2][2]) {
  if constexpr (kGrouped) {
    look_up_grouped<S, kPrecision, J>(codes, groups[0], w[0]);
    look_up_grouped<S, kPrecision, J + 4>(codes, groups[1], w[1]);
  } else if constexpr (S::kPairs) {
    S::template look_up_both<kPrecision, J>(codes, table, w);
  } else {
    S::template look_up<kPrecision, J>(codes, table, w[0][0], w[0][1]);
    S::template look_up<kPrecision, J + 4>(codes, table, w[1][0], w[1][1]);
  }
}

template <class S, int kPrecision, bool kHalves, bool kGrouped>
void decode(const PlaneRow& planes, std::int64_t unit, const Tables& high, const Tables& low,
            float* out) {
  const auto codes = S::template load_codes<kPrecision>(planes, unit);
  const typename S::template Table<kPrecision> table(high.data);
  const typename S::template Table<kPrecision> low_table(kHalves ? high.data : low.data);
  for_each_pair([&]<int J>() __attribute__((always_inline)) {
    const StepTables<S, kPrecision, kGrouped> upper[2] = {{high, unit, planes.units, J},
                                                          {high, unit, planes.units, J + 4}};
    typename S::Vec h[2][2];
    look_up_pair<S, kPrecision, J, kGrouped>(codes, table, upper, h);
    float* first = out + J * kBlockColumns;
    float* second = first + 4 * kBlockColumns;
    if constexpr (kHalves) {
      S::store_halves(h[0][0], h[0][1], first);
      S::store_halves(h[1][0], h[1][1], second);
    } else {
      const StepTables<S, kPrecision, kGrouped> lower[2] = {{low, unit, planes.units, J},
                                                            {low, unit, planes.units, J + 4}};
      typename S::Vec l[2][2];
      look_up_pair<S, kPrecision, J, kGrouped>(codes, low_table, lower, l);
      S::store_floats(h[0][0], h[0][1], l[0][0], l[0][1], first);
      S::store_floats(h[1][0], h[1][1], l[1][0], l[1][1], second);
    }
  });
}

/// A register tile: kW rows of W times kX rows of x over one step of columns.
template <class S, int kW, int kX>
void multiply_tile(const float* w, const float* x, int columns, float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  typename S::Float sums[kX][kW];
  for (int i = 0; i < kX; ++i)
    for (int n = 0; n < kW; ++n) sums[i][n] = S::load(acc + (i * kTileRows + n) * S::kLanes);
  for (int c = 0; c < columns; c += S::kLanes) {
    typename S::Float wv[kW];
    for (int n = 0; n < kW; ++n) wv[n] = S::load(w + n * kColumns + c);
    for (int i = 0; i < kX; ++i) {
      const typename S::Float xv = S::load(x + i * kColumns + c);
      for (int n = 0; n < kW; ++n) sums[i][n] = S::fma(wv[n], xv, sums[i][n]);
    }
  }
  for (int i = 0; i < kX; ++i)
    for (int n = 0; n < kW; ++n) S::store(acc + (i * kTileRows + n) * S::kLanes, sums[i][n]);
}

/// Tiles of kX rows of x over all rows of W, then the rows that are left with a smaller kX.
template <class S, int kX>
void multiply_rows(const float* w, int w_rows, const float* x, std::int64_t x_rows, int columns,
                   float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  for (; x_rows >= kX; x_rows -= kX) {
    int n = 0;
    for (; n + S::kTileW <= w_rows; n += S::kTileW)
      multiply_tile<S, S::kTileW, kX>(w + n * kColumns, x, columns, acc + n * S::kLanes);
    for (; n < w_rows; ++n)
      multiply_tile<S, 1, kX>(w + n * kColumns, x, columns, acc + n * S::kLanes);
    x += kX * kColumns;
    acc += kX * kTileRows * S::kLanes;
  }
  if constexpr (kX > 1) {
    if (x_rows > 0) multiply_rows<S, kX - 1>(w, w_rows, x, x_rows, columns, acc);
  }
}

template <class S>
void multiply(const float* w, int w_rows, const float* x, std::int64_t x_rows, int columns,
              float* acc) {
  multiply_rows<S, S::kTileX>(w, w_rows, x, x_rows, columns, acc);
}

template <class S>
void reduce(const float* acc, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = S::sum(S::load(acc + i * S::kLanes));
}

ANYPREC_INLINE void convert_eight_halves(const std::uint16_t* in, float* out) {
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
}

void half_to_float(const std::uint16_t* in, int count, float* out) {
  int i = 0;
  for (; i + 8 <= count; i += 8) convert_eight_halves(in + i, out + i);
  if (i == count) return;
  std::uint16_t padded[8] = {};
  float converted[8];
  for (int k = 0; k < count - i; ++k) padded[k] = in[i + k];
  convert_eight_halves(padded, converted);
  for (int k = 0; k < count - i; ++k) out[i + k] = converted[k];
}

template <class S, int kPrecision>
DecodeKernel decode_for(bool halves, bool grouped) {
  if (halves) {
    return grouped ? decode<S, kPrecision, true, true> : decode<S, kPrecision, true, false>;
  }
  return grouped ? decode<S, kPrecision, false, true> : decode<S, kPrecision, false, false>;
}

template <class F, int kPrecision>
MatvecKernel matvec_for(int rows, bool grouped) {
  switch (rows) {
    case 1:
      return grouped ? F::template matvec<kPrecision, 1, true>
                     : F::template matvec<kPrecision, 1, false>;
    case 2:
      return grouped ? F::template matvec<kPrecision, 2, true>
                     : F::template matvec<kPrecision, 2, false>;
    case 3:
      return grouped ? F::template matvec<kPrecision, 3, true>
                     : F::template matvec<kPrecision, 3, false>;
    default:
      return grouped ? F::template matvec<kPrecision, 4, true>
                     : F::template matvec<kPrecision, 4, false>;
  }
}

template <class F>
MatvecKernel choose_matvec(int precision, int rows, bool grouped) {
  constexpr MatvecKernel (*kChoices[])(int, bool) = {
      matvec_for<F, 2>, matvec_for<F, 3>, matvec_for<F, 4>, matvec_for<F, 5>,
      matvec_for<F, 6>, matvec_for<F, 7>, matvec_for<F, 8>};
  return kChoices[precision - kMinPrecision](rows, grouped);
}

template <class S>
DecodeKernel choose_decode(int precision, bool halves, bool grouped) {
  constexpr DecodeKernel (*kChoices[])(bool, bool) = {
      decode_for<S, 2>, decode_for<S, 3>, decode_for<S, 4>, decode_for<S, 5>,
      decode_for<S, 6>, decode_for<S, 7>, decode_for<S, 8>};
  return kChoices[precision - kMinPrecision](halves, grouped);
}

/// The kernels over S, and those of M <= kMatvecRows over F (fixed_words.h), which
/// provides kStepBytes, fix_step, fixed_table, fixed_half_tables and
/// matvec<kPrecision, kRows, kGrouped>.
template <class S, class F>
constexpr KernelSet kKernelSet{.step_units = S::kUnits,
                               .lanes = S::kLanes,
                               .fixed_step_bytes = F::kStepBytes,
                               .fix_step = F::fix_step,
                               .half_to_float = half_to_float,
                               .fixed_table = F::fixed_table,
                               .fixed_half_tables = F::fixed_half_tables,
                               .bit_table = S::arrange_table,
                               .matvec = choose_matvec<F>,
                               .decode = choose_decode<S>,
                               .multiply = multiply<S>,
                               .reduce = reduce<S>};

}  // namespace
}  // namespace anyprec::cpu
