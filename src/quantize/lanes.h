#pragma once

#include <cstdint>

#include "src/quantize/kernels.h"

/// Kernels are written once over kLanes doubles (path_kernels_simd.h, split_kernel_simd.h) and
/// compiled by each source of an instruction set with that set's flags, without contraction to
/// fused multiply-adds. All do the same operations in the same order, so their results are the same
/// to the bit.
///
/// Everything in these headers has internal linkage, and only their own functions and intrinsics
/// are called: code made for a newer machine must never be merged by the linker into what the
/// baseline runs.
///
/// An instruction set provides, as S, on Vec (kLanes doubles) and Mask:
///   load(from), load_first(from, count)   the latter reads only the first `count`; zeros follow
///   load_even(from), load_odd(from)       from[0], from[2], ...; from[1], from[3], ...
///   store(to, v), store_first(to, v, count)
///   store_floats(to, v, count)            returns v rounded to float
///   set(value), lanes()                   one value in all lanes; 0, 1, 2, ...
///   add, sub, mul, div, abs, min          min: the first only where it is less
///   less, not_equal, both                 masks
///   select(mask, yes, no), zero_unless(mask, v)
///   reduce_min, reduce_max, reduce_add    the last adds halves until one lane is left
///   running_sum(v)                        lane l: the sum of lanes 0 .. l, by adding what lies 1,
///   2
///                                         and 4 lanes below
///   last(v)                               the last lane
#define ANYPREC_LANES_INLINE inline __attribute__((always_inline))
