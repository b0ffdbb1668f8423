#pragma once

#include <cstdint>

/// Bits of a plane as operands of fp16 tensor cores. Plain arithmetic, so that a CPU can test it.
///
/// A lane's word holds 32 consecutive columns of a row (layout.h). Operand c of it, 0 to 15, is a
/// register of two fp16 numbers, of columns c and c + 16: their bits, shifted to one of the four
/// lowest places of the exponent and masked. Alone there, a bit is the power of two 2^-14, 2^-13,
/// 2^-11 or 2^-7, and operands need no conversion: one logic instruction for two weights, and four
/// shifts for all. x's columns are divided by what the powers have above 2^-14. (The mantissa has
/// more places, of subnormal numbers: exact too, but tensor cores align sums by the exponent field,
/// and would cut off sooner.)
///
/// Step s of mma.m16n8k16, 0 to 7, takes operands 2 s and 2 s + 1: with four lanes a row, columns
/// 32 t + {2 s, 2 s + 16, 2 s + 1, 2 s + 17} of 128.
namespace anyprec::cuda {

inline constexpr int kSteps = 8;
inline constexpr int kShifts = 4;

/// A bit of operand c is 2^(operand_exponent(c) - 14).
constexpr int operand_exponent(int c) { return (1 << c % kShifts) - 1; }

/// 2^14, which undoes what is common to all operands.
inline constexpr float kOperandUnit = 16384.0f;

constexpr std::uint32_t operand_mask(int c) { return 0x00010001u << (10 + c % kShifts); }

/// The word as operands 4 i to 4 i + 3 need it.
constexpr std::uint32_t shifted_word(std::uint32_t word, int i) {
  return i < 3 ? word << (10 - 4 * i) : word >> 2;
}

/// shifted: shifted_word(word, c / 4).
constexpr std::uint32_t plane_operand(std::uint32_t shifted, int c) {
  return shifted & operand_mask(c);
}

/// 2^-operand_exponent(c) twice, as two fp16 numbers: what x of operand c is multiplied by.
constexpr std::uint32_t activation_factor(int c) {
  const std::uint32_t half = static_cast<std::uint32_t>(15 - operand_exponent(c)) << 10;
  return half | half << 16;
}

// ---- groups along K ----

/// Columns that always share a codebook: those of a lane's word.
inline constexpr int kSegmentColumns = 32;

/// Which group a segment of 32 columns is in: floor(segment / size) for segments and sizes up to
/// 2^15, without a division.
struct GroupOfSegment {
  std::uint32_t factor = 0;  ///< ceil(2^31 / size)
  static constexpr GroupOfSegment of_size(int segments) {
    return {static_cast<std::uint32_t>(((std::uint64_t{1} << 31) + segments - 1) / segments)};
  }
  constexpr int operator()(int segment) const {
    return static_cast<int>(std::uint64_t{static_cast<std::uint32_t>(segment)} * factor >> 31);
  }
};

}  // namespace anyprec::cuda
