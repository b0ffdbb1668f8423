#pragma once

#include <cstdint>

#include "kernels/cpu/kernel_set.h"

/// The kernels, written once over a vector type S and compiled by each source of an instruction set
/// with that set's flags.
///
/// Everything here has internal linkage, and only functions of this file and intrinsics are called:
/// code that the compiler made for a newer machine must never be merged by the linker into what the
/// baseline runs. The standard library's inline functions are out of bounds for the same reason.
///
/// S provides:
///   kUnits                    units in a step
///   kLanes                    floats in a vector
///   kScaleCopies              copies of a block's scale that `block_scale` wants
///   kTileW, kTileX            rows of W and of x that a register tile of `multiply` covers
///   Vec, Float                integer and float vectors
///   Codes<B>                  the b-bit codes of a step, in the form that `look_up` wants
///   load_codes<B>(planes, unit)
///   look_up<B, J>(codes, table, other_table, w0, w1)
///                             16-bit table entries of the step's blocks J, in the set's order; the
///                             second unit of a step, where there is one, uses other_table
///   dot(w0, w1, x)            w0 * x[first half] + w1 * x[second half] in pairs and quadruples, to
///                             float
///   block_scale(scales), group_scale(first, second), interleaving as `dot`'s lanes
///   store_halves(w0, w1, out), store_floats(h0, h1, l0, l1, out)
///                             blocks J in the order of columns; out is the step's block J of unit
///                             0
///   order(c)                  where column c of a step lies for `dot`
namespace anyprec::cpu {
namespace {

#define ANYPREC_INLINE inline __attribute__((always_inline))

constexpr float kNotANumber = __builtin_nanf("");

template <class S>
struct Order {
  std::uint16_t values[S::kUnits * kUnitColumns];
  constexpr Order() : values{} {
    for (int c = 0; c < S::kUnits * kUnitColumns; ++c)
      values[c] = static_cast<std::uint16_t>(S::order(c));
  }
};
template <class S>
constexpr Order<S> kOrder;

/// Calls body.template operator()<J>() for J = 0 .. 7.
template <class Body>
ANYPREC_INLINE void for_each_block(const Body& body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
  body.template operator()<4>();
  body.template operator()<5>();
  body.template operator()<6>();
  body.template operator()<7>();
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

template <class S, int kPrecision, int kRows, bool kGrouped>
void matvec(const PlaneRow& planes, const Tables& tables, const FixedRows& x, float* out) {
  constexpr int kStepColumns = S::kUnits * kUnitColumns;
  constexpr int kStepScales = S::kUnits * kUnitBlocks * S::kScaleCopies;
  // Two sums a row of x, for even and odd blocks: a chain of one would wait for its additions.
  typename S::Float sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = S::zero();
  const std::int16_t* values = x.values;
  const float* scales = x.scales;
  for (std::int64_t u = 0; u < planes.units; u += S::kUnits) {
    const auto codes = S::template load_codes<kPrecision>(planes, u);
    for_each_block([&]<int J>() __attribute__((always_inline)) {
      const StepTables<S, kPrecision, kGrouped> of(tables, u, planes.units, J);
      typename S::Vec w0, w1;
      S::template look_up<kPrecision, J, kGrouped>(codes, of.first, of.second, w0, w1);
      for (int r = 0; r < kRows; ++r) {
        typename S::Float scale =
            S::block_scale(scales + r * x.scale_stride + J * S::kUnits * S::kScaleCopies);
        if constexpr (kGrouped) {
          scale = S::mul(scale, S::group_scale(tables.scales + of.first_group,
                                               tables.scales + of.second_group));
        }
        const typename S::Float dot =
            S::dot(w0, w1, values + r * x.stride + J * S::kUnits * kBlockColumns);
        sums[r][J & 1] = S::fma(dot, scale, sums[r][J & 1]);
      }
    });
    values += kStepColumns;
    scales += kStepScales;
  }
  for (int r = 0; r < kRows; ++r) {
    const float sum = S::sum(S::add(sums[r][0], sums[r][1]));
    out[r] = kGrouped ? sum : sum * tables.scales[0];
  }
}

template <class S, int kPrecision, bool kHalves, bool kGrouped>
void decode(const PlaneRow& planes, std::int64_t unit, const Tables& high, const Tables& low,
            float* out) {
  const auto codes = S::template load_codes<kPrecision>(planes, unit);
  for_each_block([&]<int J>() __attribute__((always_inline)) {
    const StepTables<S, kPrecision, kGrouped> upper(high, unit, planes.units, J);
    typename S::Vec h0, h1;
    S::template look_up<kPrecision, J, kGrouped>(codes, upper.first, upper.second, h0, h1);
    if constexpr (kHalves) {
      S::store_halves(h0, h1, out + J * kBlockColumns);
    } else {
      const StepTables<S, kPrecision, kGrouped> lower(low, unit, planes.units, J);
      typename S::Vec l0, l1;
      S::template look_up<kPrecision, J, kGrouped>(codes, lower.first, lower.second, l0, l1);
      S::store_floats(h0, h1, l0, l1, out + J * kBlockColumns);
    }
  });
}

/// A register tile: kW rows of W times kX rows of x over one step of columns.
template <class S, int kW, int kX>
void multiply_tile(const float* w, const float* x, float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  typename S::Float sums[kX][kW];
  for (int i = 0; i < kX; ++i)
    for (int n = 0; n < kW; ++n) sums[i][n] = S::load(acc + (i * kTileRows + n) * S::kLanes);
  for (int c = 0; c < kColumns; c += S::kLanes) {
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
void multiply_rows(const float* w, int w_rows, const float* x, std::int64_t x_rows, float* acc) {
  constexpr int kColumns = S::kUnits * kUnitColumns;
  for (; x_rows >= kX; x_rows -= kX) {
    int n = 0;
    for (; n + S::kTileW <= w_rows; n += S::kTileW)
      multiply_tile<S, S::kTileW, kX>(w + n * kColumns, x, acc + n * S::kLanes);
    for (; n < w_rows; ++n) multiply_tile<S, 1, kX>(w + n * kColumns, x, acc + n * S::kLanes);
    x += kX * kColumns;
    acc += kX * kTileRows * S::kLanes;
  }
  if constexpr (kX > 1) {
    if (x_rows > 0) multiply_rows<S, kX - 1>(w, w_rows, x, x_rows, acc);
  }
}

template <class S>
void multiply(const float* w, int w_rows, const float* x, std::int64_t x_rows, float* acc) {
  multiply_rows<S, S::kTileX>(w, w_rows, x, x_rows, acc);
}

template <class S>
void reduce(const float* acc, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = S::sum(S::load(acc + i * S::kLanes));
}

template <class S>
float fixed_table(const float* values, int precision, std::uint8_t* table) {
  const int entries = 1 << precision;
  std::uint32_t largest_bits = 0;  // of magnitudes, whose bits order as the numbers do, NaN last
  for (int i = 0; i < entries; ++i) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, values[i]) & 0x7fffffffu;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  if (largest_bits >= 0x7f800000u) return kNotANumber;
  const float largest = __builtin_bit_cast(float, largest_bits);
  const float inverse = largest > 0 ? kTableSteps / largest : 0.0f;
  constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  std::uint16_t fixed[1 << kMaxPrecision];
  for (int i = 0; i < entries; ++i) {
    const float rounded = (values[i] * inverse + kRound) - kRound;
    fixed[i] = static_cast<std::uint16_t>(static_cast<std::int32_t>(rounded));
  }
  S::arrange_table(fixed, precision, table);
  return largest;
}

template <class S>
void half_to_float(const std::uint16_t* in, int count, float* out) {
  for (int i = 0; i < count; i += 8) {
    if (count - i >= 8) {
      S::convert_halves(in + i, out + i);
      continue;
    }
    std::uint16_t padded[8] = {};
    float converted[8];
    for (int k = 0; k < count - i; ++k) padded[k] = in[i + k];
    S::convert_halves(padded, converted);
    for (int k = 0; k < count - i; ++k) out[i + k] = converted[k];
  }
}

template <class S, int kPrecision>
MatvecKernel matvec_for(int rows, bool grouped) {
  switch (rows) {
    case 1:
      return grouped ? matvec<S, kPrecision, 1, true> : matvec<S, kPrecision, 1, false>;
    case 2:
      return grouped ? matvec<S, kPrecision, 2, true> : matvec<S, kPrecision, 2, false>;
    case 3:
      return grouped ? matvec<S, kPrecision, 3, true> : matvec<S, kPrecision, 3, false>;
    default:
      return grouped ? matvec<S, kPrecision, 4, true> : matvec<S, kPrecision, 4, false>;
  }
}

template <class S, int kPrecision>
DecodeKernel decode_for(bool halves, bool grouped) {
  if (halves) {
    return grouped ? decode<S, kPrecision, true, true> : decode<S, kPrecision, true, false>;
  }
  return grouped ? decode<S, kPrecision, false, true> : decode<S, kPrecision, false, false>;
}

template <class S>
MatvecKernel choose_matvec(int precision, int rows, bool grouped) {
  constexpr MatvecKernel (*kChoices[])(int, bool) = {
      matvec_for<S, 2>, matvec_for<S, 3>, matvec_for<S, 4>, matvec_for<S, 5>,
      matvec_for<S, 6>, matvec_for<S, 7>, matvec_for<S, 8>};
  return kChoices[precision - kMinPrecision](rows, grouped);
}

template <class S>
DecodeKernel choose_decode(int precision, bool halves, bool grouped) {
  constexpr DecodeKernel (*kChoices[])(bool, bool) = {
      decode_for<S, 2>, decode_for<S, 3>, decode_for<S, 4>, decode_for<S, 5>,
      decode_for<S, 6>, decode_for<S, 7>, decode_for<S, 8>};
  return kChoices[precision - kMinPrecision](halves, grouped);
}

template <class S>
constexpr KernelSet kKernelSet{.step_units = S::kUnits,
                               .lanes = S::kLanes,
                               .scale_copies = S::kScaleCopies,
                               .order = kOrder<S>.values,
                               .half_to_float = half_to_float<S>,
                               .fixed_table = fixed_table<S>,
                               .bit_table = S::arrange_table,
                               .matvec = choose_matvec<S>,
                               .decode = choose_decode<S>,
                               .multiply = multiply<S>,
                               .reduce = reduce<S>};

}  // namespace
}  // namespace anyprec::cpu
