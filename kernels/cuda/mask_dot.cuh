#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/mask_dot_args.h"
#include "kernels/cuda/mask_set.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/scalars.cuh"

/// Mask-dot: y[n] = c[0] * sum(x) + sum over masks of c[1 + i] * dot(mask_i(planes of row n), x),
/// with x as negabinary bit planes, by binary tensor cores. Planes of W are their left operand as
/// they lie in memory, so a weight costs no instruction of its own: a kernel's cost is its masks.
///
/// A block owns a run of whole tiles of 16 rows and walks their units of 256 columns. Its eight
/// warps form teams; each team takes an equal run of (tile, unit) steps through its own ring of
/// copies, and where a form has more masks than a warp has registers for, the warps of a team share
/// the ring and divide the masks. Partial sums meet in shared memory in a fixed order.
///
/// Registers (128) and shared memory (half an SM) are bounded so that the next launch's blocks are
/// resident beside these: it fills its rings while this one drains.
namespace anyprec::cuda::mask_dot_device {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
static_assert(kThreads == kMaskDotThreads);
/// Accumulators of a mask are 12 registers: more masks are divided among warps.
inline constexpr int kWarpMasks = 7;
inline constexpr int kMaxStages = 32;
/// Shared memory that a block may have.
inline constexpr int kSharedBytes = 112 * 1024;

template <int kIndex>
using Index = std::integral_constant<int, kIndex>;

template <int kBegin, int kEnd, class Body>
__device__ __forceinline__ void unroll(const Body& body) {
  if constexpr (kBegin < kEnd) {
    body(Index<kBegin>{});
    unroll<kBegin + 1, kEnd>(body);
  }
}

/// How the warps of a block divide the work on M rows of x.
template <class Set, int kRows>
struct Teams {
  static constexpr int kMaskRoles = Set::kMasks <= kWarpMasks       ? 1
                                    : Set::kMasks <= 2 * kWarpMasks ? 2
                                                                    : 4;
  static constexpr int kRoles = kMaskRoles * kRows;
  static constexpr int kTeams = kWarps / kRoles;
  static_assert(kTeams >= 1 && Set::kMasks <= 4 * (kWarpMasks + 1));
  static constexpr int first_mask(int role) { return Set::kMasks * role / kMaskRoles; }
  static constexpr int kStageBytes = Set::kPrecision * kRecordBytes;
  static constexpr MaskDotShape shape() {
    return {Set::kCoefficients, kTeams * kMaskRoles, kTeams * kStageBytes};
  }
};

/// What a block has in shared memory before its rings. Sizes at run time follow in this order.
struct Tile {
  const std::uint8_t* records;  ///< plane 0, unit 0
  std::int64_t plane_stride;
};
static_assert(sizeof(Tile) == kTileBytes);
struct Shared {
  std::uint64_t full[kWarps * kMaxStages];
  std::uint64_t empty[kWarps * kMaxStages];
  std::uint32_t scratch[2 * kWarps];
  PlaneScale scale[2];
};

/// Offsets of the parts, the rings last.
struct Layout {
  int tiles, sums, coefficients, planes, ring;
  /// block_tiles: the most tiles of a block; rows: of x.
  __host__ __device__ Layout(const MaskDotShape& shape, int rows, int units, int block_tiles,
                             int tile_bytes) {
    tiles = round(static_cast<int>(sizeof(Shared)));
    sums = tiles + round(block_tiles * tile_bytes);
    coefficients = sums + round(block_tiles * shape.partial_sums * kTileRows * rows * 4);
    planes = coefficients + round(block_tiles * shape.coefficients * kTileRows * 4);
    ring = planes + round(units * rows * kUnitPlaneBytes);
  }
  static __host__ __device__ int round(int bytes) { return (bytes + 127) / 128 * 128; }
};

/// Tiles [begin, end) of a block; the first blocks have one more where they do not divide evenly,
/// and blocks of one SM (i and i + grid / 2) then not both.
struct TileRange {
  int begin;
  int end;
  __device__ explicit TileRange(int tiles) {
    const int blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int each = tiles / blocks;
    const int more = tiles % blocks;
    begin = block * each + min(block, more);
    end = begin + each + (block < more ? 1 : 0);
  }
};

__device__ __forceinline__ const MaskDotProduct& product_of(const MaskDotArgs& args, int tile) {
  int i = 0;
#pragma unroll
  for (int p = 1; p < kMaxProducts; ++p) {
    if (p < args.products && tile >= args.product[p].tile_begin) i = p;
  }
  return args.product[i];
}

/// A row's coefficients (MaskSet) from its codebook, kTileRows apart.
template <class Set>
__device__ __forceinline__ void make_coefficients(const std::uint16_t* lut,
                                                  const std::uint16_t* alpha, std::int64_t row,
                                                  float* out) {
  constexpr int kCells = Set::kCells;
  constexpr int kClasses = Set::kClasses;
  float table[kCells];
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) {
    table[cell] = __half2float(__ushort_as_half(__ldg(lut + row * kCells + cell)));
  }
#pragma unroll
  for (int sign = 0; sign < Set::kSignPlanes; ++sign) {
    float a[kClasses];
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const std::int64_t at = (row * Set::kSignPlanes + sign) * kClasses + c;
      a[c] = __half2float(__ushort_as_half(__ldg(alpha + at)));
    }
    unroll<0, kCells>([&](auto cell) {
      constexpr int kClass = Set::kForm.class_of(cell());
      table[cell()] -= a[kClass];
    });
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const float base = c + 1 < kClasses ? a[kClasses - 1] : 0.0f;
      out[(kCells + sign * kClasses + c) * kTileRows] = 2.0f * (a[c] - base);
    }
  }
#pragma unroll
  for (int bit = 1; bit < kCells; bit *= 2) {
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      if (cell & bit) table[cell] -= table[cell ^ bit];
    }
  }
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) out[cell * kTileRows] = table[cell];
}

template <class Set, int kClass>
__device__ __forceinline__ std::uint32_t indicator(std::uint32_t p0, std::uint32_t p1,
                                                   std::uint32_t p2, std::uint32_t p3) {
  constexpr int kTruth = class_truth<Set>(kClass);
  if constexpr (Set::kBits == 4) return ptx::boolean<kTruth>(p1 ^ p0, p2 ^ p0, p3 ^ p0);
  return ptx::boolean<kTruth>(p0, p1, p2);
}

/// Mask kMask of a lane's words.
template <class Set, int kMask>
__device__ __forceinline__ uint4 make_mask(const uint4* plane, const uint4* classes) {
  uint4 mask = make_uint4(~0u, ~0u, ~0u, ~0u);
  const auto and_with = [&](const uint4& w) {
    mask.x &= w.x;
    mask.y &= w.y;
    mask.z &= w.z;
    mask.w &= w.w;
  };
  unroll<0, Set::kPrecision>([&](auto p) {
    if constexpr (Set::has_factor(kMask, p())) and_with(plane[p()]);
  });
  constexpr int kClass = Set::mask(kMask).klass;
  if constexpr (kClass >= 0) and_with(classes[kClass]);
  return mask;
}

/// A warp's way through its team's steps.
template <class Set, int kRows, int kRole>
class Walk {
  using Division = Teams<Set, kRows>;
  static constexpr int kFirst = Division::first_mask(kRole);
  static constexpr int kMasks = Division::first_mask(kRole + 1) - kFirst;

 public:
  __device__ __forceinline__ void add_step(const uint8_t* stage, const uint2* x) {
    uint2 digits[kDigitGroups];
#pragma unroll
    for (int d = 0; d < kDigitGroups; ++d) digits[d] = x[d * 32];
    uint4 plane[Set::kPrecision];
    unroll<0, Set::kPrecision>([&](auto p) {
      if constexpr (Set::reads_plane(kFirst, kFirst + kMasks, p())) {
        plane[p()] = *reinterpret_cast<const uint4*>(stage + p() * kRecordBytes);
      }
    });
    uint4 classes[Set::kClasses];
    unroll<0, Set::kClasses>([&](auto c) {
      if constexpr (Set::needs_class(kFirst, kFirst + kMasks, c())) {
        constexpr int kThird = Set::kBits > 2 ? 2 : 0;
        constexpr int kFourth = Set::kBits > 3 ? 3 : 0;
        const auto of = [&](std::uint32_t uint4::* w) {
          return indicator<Set, c()>(plane[0].*w, plane[1].*w, plane[kThird].*w, plane[kFourth].*w);
        };
        classes[c()] = make_uint4(of(&uint4::x), of(&uint4::y), of(&uint4::z), of(&uint4::w));
      }
    });
    unroll<0, kMasks>([&](auto i) {
      const uint4 mask = make_mask<Set, kFirst + i()>(plane, classes);
#pragma unroll
      for (int d = 0; d < kDigitGroups; ++d) ptx::binary_mma(counts_[i()][d], mask, digits[d]);
    });
  }

  /// The sums of rows g and g + 8 over the steps since the last call, in all four lanes of g.
  __device__ __forceinline__ float2 take(const float* coefficients) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    const int t = lane % 4;
    float2 sum = make_float2(0.0f, 0.0f);
    unroll<0, kMasks>([&](auto i) {
      int(&c)[kDigitGroups][4] = counts_[i()];
      // Digits 2 t and 2 t + 1 of the groups, (-2)^(8 d + 2 t) times {1, -2}. The lower two groups
      // are below 2^31 for any K that fits, and exact.
      const int low0 = (c[1][0] - 2 * c[1][1]) * 256 + (c[0][0] - 2 * c[0][1]);
      const int low1 = (c[1][2] - 2 * c[1][3]) * 256 + (c[0][2] - 2 * c[0][3]);
      const float all0 =
          fmaf(static_cast<float>(c[2][0] - 2 * c[2][1]), 65536.0f, static_cast<float>(low0));
      const float all1 =
          fmaf(static_cast<float>(c[2][2] - 2 * c[2][3]), 65536.0f, static_cast<float>(low1));
      const float* at = coefficients + Set::coefficient(kFirst + i()) * kTileRows + g;
      sum.x = fmaf(at[0], all0, sum.x);
      sum.y = fmaf(at[8], all1, sum.y);
    });
    clear();
    const float weight = static_cast<float>(1 << (2 * t));
    sum.x *= weight;
    sum.y *= weight;
#pragma unroll
    for (int other = 1; other < 4; other *= 2) {
      sum.x += __shfl_xor_sync(~0u, sum.x, other);
      sum.y += __shfl_xor_sync(~0u, sum.y, other);
    }
    return sum;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kMasks; ++i) {
#pragma unroll
      for (int d = 0; d < kDigitGroups; ++d) {
#pragma unroll
        for (int j = 0; j < 4; ++j) counts_[i][d][j] = 0;
      }
    }
  }

 private:
  int counts_[kMasks][kDigitGroups][4];
};

/// Steps [begin, end) of a team: step s is unit s % units of the block's tile s / units.
struct Steps {
  int begin;
  int end;
};

/// Where the next copy of a team comes from.
struct Source {
  int tile;
  int unit;
};

/// A whole warp enqueues the copies of one step.
template <class Set>
__device__ __forceinline__ void copy_step(const Tile* tiles, Source& from, int units,
                                          std::uint32_t stage, std::uint32_t full) {
  const int lane = threadIdx.x % 32;
  const Tile tile = tiles[from.tile];
  const std::uint8_t* record =
      tile.records + static_cast<std::int64_t>(from.unit) * kRecordBytes + lane * kLaneBytes;
#pragma unroll
  for (int p = 0; p < Set::kPrecision; ++p) {
    ptx::copy_16(stage + p * kRecordBytes + lane * kLaneBytes, record + p * tile.plane_stride);
  }
  ptx::barrier_arrive_after_copies(full);
  if (++from.unit == units) {
    from.unit = 0;
    ++from.tile;
  }
}

/// Planes of the rows of x into shared memory, from global memory or from x.
template <int kRows>
__device__ __forceinline__ void take_activations(const MaskDotArgs& args, char* planes,
                                                 Shared& fixed) {
  for (int m = 0; m < kRows; ++m) {
    char* to = planes + m * args.units * kUnitPlaneBytes;
    PlaneScale scale;
    if (args.x_planes != nullptr) {
      const uint4* from = static_cast<const uint4*>(args.x_planes) +
                          static_cast<std::int64_t>(m) * args.units * (kUnitPlaneBytes / 16);
      for (int i = threadIdx.x; i < args.units * (kUnitPlaneBytes / 16); i += kThreads) {
        reinterpret_cast<uint4*>(to)[i] = from[i];
      }
      scale = {args.x_scales[2 * m], args.x_scales[2 * m + 1]};
    } else {
      const int bytes = args.type == ScalarType::kFloat32 ? 4 : 2;
      scale = activations_to_planes<kThreads>(
          static_cast<const char*>(args.x) + m * args.x_stride * bytes, args.type, args.columns, to,
          fixed.scratch);
      __syncthreads();
    }
    if (threadIdx.x == 0) fixed.scale[m] = scale;
  }
  __syncthreads();
}

/// Adds the partial sums up in their order and writes y. constant(tile, row): what goes with the
/// sum of x.
template <int kRows, int kPartials, class Constant>
__device__ __forceinline__ void finish(const MaskDotArgs& args, const TileRange& range,
                                       const float* sums, const Shared& fixed,
                                       const Constant& constant) {
  const int count = range.end - range.begin;
  for (int i = threadIdx.x; i < count * kTileRows * kRows; i += kThreads) {
    const int r = i % kTileRows;
    const int m = i / kTileRows % kRows;
    const int tile = i / (kTileRows * kRows);
    const MaskDotProduct& product = product_of(args, range.begin + tile);
    const int n = (range.begin + tile - product.tile_begin) * kTileRows + r;
    if (n >= product.rows) continue;
    const PlaneScale scale = fixed.scale[m];
    float sum = 0.0f;
#pragma unroll 4
    for (int p = 0; p < kPartials; ++p) {
      sum += sums[((tile * kPartials + p) * kRows + m) * kTileRows + r];
    }
    float y = fmaf(constant(tile, r), scale.sum, sum * scale.step);
    if (product.bias != nullptr) y += load_scalar(product.bias, args.type, n);
    store_scalar(product.y, args.type, m * product.y_stride + n, y);
  }
}

template <class Set, int kRows>
struct Block {
  using Division = Teams<Set, kRows>;
  static constexpr int kPartials = Division::kTeams * Division::kMaskRoles;

  const MaskDotArgs& args;
  char* shared;
  Layout layout;
  TileRange range;
  int stages;
  int team;
  int role;  ///< among masks
  int row;   ///< of x
  Steps steps;
  Source next;

  __device__ __forceinline__ Block(const MaskDotArgs& a, char* memory)
      : args(a),
        shared(memory),
        layout(Division::shape(), kRows, a.units, (a.tiles + gridDim.x - 1) / gridDim.x,
               kTileBytes),
        range(a.tiles) {
    const int warp = threadIdx.x / 32;
    const int in_team = warp % Division::kRoles;
    team = warp / Division::kRoles;
    role = in_team % Division::kMaskRoles;
    row = in_team / Division::kMaskRoles;
    stages = min(kMaxStages, args.ring_bytes / (Division::kTeams * Division::kStageBytes));
    const int all = (range.end - range.begin) * args.units;
    steps = {all * team / Division::kTeams, all * (team + 1) / Division::kTeams};
    next = {steps.begin / args.units, steps.begin % args.units};
  }

  __device__ Shared& fixed() const { return *reinterpret_cast<Shared*>(shared); }
  __device__ Tile* tiles() const { return reinterpret_cast<Tile*>(shared + layout.tiles); }
  __device__ float* sums() const { return reinterpret_cast<float*>(shared + layout.sums); }
  __device__ float* coefficients() const {
    return reinterpret_cast<float*>(shared + layout.coefficients);
  }
  __device__ uint2* planes() const { return reinterpret_cast<uint2*>(shared + layout.planes); }
  __device__ std::uint32_t full(int stage) const {
    return ptx::shared_address(&fixed().full[team * kMaxStages + stage]);
  }
  __device__ std::uint32_t empty(int stage) const {
    return ptx::shared_address(&fixed().empty[team * kMaxStages + stage]);
  }
  __device__ const char* stage(int index) const {
    return shared + layout.ring + (team * stages + index) * Division::kStageBytes;
  }

  __device__ __forceinline__ void copy_into(int index) {
    copy_step<Set>(tiles(), next, args.units, ptx::shared_address(stage(index)), full(index));
  }

  /// All that does not depend on x.
  __device__ __forceinline__ void prepare() {
    for (int i = threadIdx.x; i < kWarps * kMaxStages; i += kThreads) {
      ptx::barrier_init(ptx::shared_address(&fixed().full[i]), 32);
      ptx::barrier_init(ptx::shared_address(&fixed().empty[i]), 32 * Division::kRoles);
    }
    const int count = range.end - range.begin;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const MaskDotProduct& product = product_of(args, range.begin + i);
      tiles()[i] = {
          product.planes + static_cast<std::int64_t>(range.begin + i - product.tile_begin) *
                               args.units * kRecordBytes,
          product.plane_stride};
    }
    __syncthreads();
    if (role == 0 && row == 0) {
      const int first = min(stages, steps.end - steps.begin);
      for (int s = 0; s < first; ++s) copy_into(s);
    }
    for (int i = threadIdx.x; i < count * kPartials * kTileRows * kRows; i += kThreads) {
      sums()[i] = 0.0f;
    }
    for (int i = threadIdx.x; i < count * kTileRows; i += kThreads) {
      const int tile = range.begin + i / kTileRows;
      const MaskDotProduct& product = product_of(args, tile);
      const int n = (tile - product.tile_begin) * kTileRows + i % kTileRows;
      float* out = coefficients() + i / kTileRows * Set::kCoefficients * kTileRows + i % kTileRows;
      if (n < product.rows) {
        make_coefficients<Set>(product.lut[Set::kPrecision - kMinPrecision],
                               product.alpha[Set::kPrecision - kMinPrecision], n, out);
      } else {
        for (int c = 0; c < Set::kCoefficients; ++c) out[c * kTileRows] = 0.0f;
      }
    }
  }

  template <int kRole>
  __device__ __forceinline__ void walk() {
    const int lane = threadIdx.x % 32;
    Walk<Set, kRows, kRole> walk;
    walk.clear();
    int tile = steps.begin / args.units;
    int unit = steps.begin % args.units;
    int index = 0;
    std::uint32_t parity = 0;
    int previous = 0;
    std::uint32_t previous_parity = 0;
    const uint2* x = planes() + row * args.units * (kDigitGroups * 32) + lane;
#pragma unroll 1
    for (int s = steps.begin; s < steps.end; ++s) {
      ptx::barrier_wait(full(index), parity);
      __syncwarp();
      walk.add_step(reinterpret_cast<const std::uint8_t*>(stage(index)) + lane * kLaneBytes,
                    x + unit * (kDigitGroups * 32));
      __syncwarp();
      if constexpr (Division::kRoles == 1) {
        if (s + stages < steps.end) copy_into(index);
      } else {
        // The first warp of a team refills the stage before this one: the others are most likely
        // done with it.
        ptx::barrier_arrive(empty(index));
        if (kRole == 0 && row == 0 && s > steps.begin && s - 1 + stages < steps.end) {
          ptx::barrier_wait(empty(previous), previous_parity);
          __syncwarp();
          copy_into(previous);
        }
        previous = index;
        previous_parity = parity;
      }
      if (++index == stages) {
        index = 0;
        parity ^= 1;
      }
      if (++unit == args.units || s + 1 == steps.end) {
        const float2 sum = walk.take(coefficients() + tile * Set::kCoefficients * kTileRows);
        if (lane % 4 == 0) {
          float* to =
              sums() +
              ((tile * kPartials + team * Division::kMaskRoles + kRole) * kRows + row) * kTileRows;
          to[lane / 4] = sum.x;
          to[lane / 4 + 8] = sum.y;
        }
        unit = 0;
        ++tile;
      }
    }
  }

  __device__ __forceinline__ void run() {
    prepare();
    ptx::wait_for_predecessors();
    take_activations<kRows>(args, shared + layout.planes, fixed());
    unroll<0, Division::kMaskRoles>([&](auto r) {
      if (Division::kMaskRoles == 1 || role == r()) walk<r()>();
    });
    __syncthreads();
    const float* first = coefficients();
    finish<kRows, kPartials>(args, range, sums(), fixed(), [&](int tile, int r) {
      return first[tile * Set::kCoefficients * kTileRows + r];
    });
  }
};

/// Precisions that the mask-dot kernel of a form serves: full tables have too many masks beyond 4.
constexpr int last_precision(int lut_bits) { return lut_bits == kMaxPrecision ? 4 : kMaxPrecision; }

template <int kLutBits, CellGroups kGroups, int kPrecision>
using SetOf = MaskSet<(kPrecision < kLutBits ? kPrecision : kLutBits),
                      (kPrecision < kLutBits ? 0 : kPrecision - kLutBits),
                      (kPrecision > kLutBits ? kGroups : CellGroups::kOne)>;

template <class Set, int kRows>
__global__ void __launch_bounds__(kThreads, 2) kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  Block<Set, kRows>(args, memory).run();
}

/// The precision is read from device memory, so that a captured graph can change it.
template <int kLutBits, CellGroups kGroups, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    any_precision_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  const int precision = *args.precision_at;
  unroll<kMinPrecision, last_precision(kLutBits) + 1>([&](auto b) {
    if (precision == b()) Block<SetOf<kLutBits, kGroups, b()>, kRows>(args, memory).run();
  });
}

template <int kLutBits, CellGroups kGroups, int kRows, int... kIndex>
MaskDotKernels describe(std::integer_sequence<int, kIndex...>) {
  return {{kernel<SetOf<kLutBits, kGroups, kMinPrecision + kIndex>, kRows>...},
          any_precision_kernel<kLutBits, kGroups, kRows>,
          {Teams<SetOf<kLutBits, kGroups, kMinPrecision + kIndex>, kRows>::shape()...},
          kTileBytes};
}

/// The kernels of a form for `rows` (1 or 2) rows of x.
template <int kLutBits, CellGroups kGroups>
MaskDotKernels describe(int rows) {
  constexpr std::make_integer_sequence<int, last_precision(kLutBits) - kMinPrecision + 1> kAll{};
  return rows == 1 ? describe<kLutBits, kGroups, 1>(kAll) : describe<kLutBits, kGroups, 2>(kAll);
}

}  // namespace anyprec::cuda::mask_dot_device
