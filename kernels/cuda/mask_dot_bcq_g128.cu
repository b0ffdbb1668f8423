#include <utility>

#include "kernels/cuda/mask_dot_groups.cuh"

namespace anyprec::cuda {
namespace mask_dot_device {

template <int kPrecision, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    group_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  GroupBlock<kPrecision, kRows>(args, memory).run();
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    any_precision_group_kernel(const __grid_constant__ MaskDotArgs args) {
  extern __shared__ __align__(128) char memory[];
  ptx::launch_dependents();
  const int precision = *args.precision_at;
  choose<kMinPrecision, kMaxPrecision + 1>(
      precision, [&](auto b) { GroupBlock<b(), kRows, false>(args, memory).run(); });
}

template <int kRows, int... kIndex>
MaskDotKernels describe_groups(std::integer_sequence<int, kIndex...>) {
  return {{group_kernel<kMinPrecision + kIndex, kRows>...},
          any_precision_group_kernel<kRows>,
          {GroupTeams<kMinPrecision + kIndex>::shape()...},
          static_cast<int>(sizeof(GroupTile))};
}

}  // namespace mask_dot_device

MaskDotKernels mask_dot_bcq_g128(int rows) {
  constexpr std::make_integer_sequence<int, kPrecisions> kAll{};
  return rows == 1 ? mask_dot_device::describe_groups<1>(kAll)
                   : mask_dot_device::describe_groups<2>(kAll);
}

}  // namespace anyprec::cuda
