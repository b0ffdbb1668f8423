#include "kernels/cuda/activation_planes.cuh"
#include "kernels/cuda/device.h"

namespace anyprec::cuda {
namespace {

constexpr int kThreads = 512;

/// One block a row of x.
__global__ void __launch_bounds__(kThreads)
    to_planes_kernel(const Input input, std::int64_t columns, std::uint8_t* planes, float* scales) {
  __shared__ std::uint32_t scratch[2 * kThreads / 32];
  ptx::launch_dependents();
  ptx::wait_for_predecessors();
  const std::int64_t row = blockIdx.x;
  const int bytes = input.type == ScalarType::kFloat32 ? 4 : 2;
  const PlaneScale scale = activations_to_planes<kThreads>(
      static_cast<const char*>(input.x) + row * input.x_stride * bytes, input.type, columns,
      planes + row * unit_count(columns) * kUnitPlaneBytes, scratch);
  if (threadIdx.x == 0) {
    scales[2 * row] = scale.step;
    scales[2 * row + 1] = scale.sum;
  }
}

}  // namespace

std::int64_t activation_planes_bytes(std::int64_t in_features) {
  return unit_count(in_features) * kUnitPlaneBytes;
}

cudaError_t activations_to_planes(const Input& input, std::int64_t in_features, void* planes,
                                  float* scales, cudaStream_t stream) {
  if (input.rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  return launch(to_planes_kernel, device, dim3(static_cast<unsigned>(input.rows)), kThreads, 0,
                stream, input, in_features, static_cast<std::uint8_t*>(planes), scales);
}

}  // namespace anyprec::cuda
