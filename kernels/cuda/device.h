#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace anyprec::cuda {

/// What launches need to know of the current device.
struct Device {
  int index;
  int multiprocessors;
  int major;                ///< of the compute capability
  int block_shared_bytes;   ///< the most that a block may ask for
  bool dependent_launches;  ///< programmatic dependent launch
  bool has_wgmma;           ///< compute capability 9.0, and kernels compiled for 9.0a
};

/// The current device; asked once for each.
cudaError_t current_device(Device& device);

/// Lets `kernel` have as much dynamic shared memory as the current device has; once for each.
cudaError_t allow_all_shared_memory(const void* kernel, const Device& device);

/// How many clusters of `cluster` blocks of the kernel the current device holds at a time; asked
/// once for each kernel and size.
cudaError_t resident_clusters(const void* kernel, const Device& device, int cluster, int threads,
                              int shared_bytes, int& count);

/// A launch that may start before its predecessor in the stream has ended, where the device can:
/// the kernel waits by itself (ptx::wait_for_predecessors). Blocks in clusters of `cluster`.
template <class... Parameters>
cudaError_t launch_clusters(void (*kernel)(Parameters...), const Device& device, dim3 grid,
                            int cluster, int threads, int shared_bytes, cudaStream_t stream,
                            const Parameters&... parameters) {
  const cudaError_t allowed =
      allow_all_shared_memory(reinterpret_cast<const void*>(kernel), device);
  if (allowed != cudaSuccess) return allowed;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (device.dependent_launches) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, parameters...);
}

/// The same without clusters.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Device& device, dim3 grid, int threads,
                   int shared_bytes, cudaStream_t stream, const Parameters&... parameters) {
  return launch_clusters(kernel, device, grid, 1, threads, shared_bytes, stream, parameters...);
}

}  // namespace anyprec::cuda
