#include "kernels/cuda/device.h"

#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <utility>

namespace anyprec::cuda {
namespace {

std::mutex mutex;

}  // namespace

cudaError_t current_device(Device& device) {
  int index = 0;
  if (const cudaError_t status = cudaGetDevice(&index); status != cudaSuccess) return status;
  static std::map<int, Device> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) {
    device = found->second;
    return cudaSuccess;
  }
  Device asked{};
  asked.index = index;
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, index);
  };
  cudaError_t status = ask(asked.multiprocessors, cudaDevAttrMultiProcessorCount);
  if (status == cudaSuccess) status = ask(asked.major, cudaDevAttrComputeCapabilityMajor);
  if (status == cudaSuccess) {
    status = ask(asked.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  }
  if (status != cudaSuccess) return status;
  asked.dependent_launches = asked.major >= 9;
  asked.has_wgmma = asked.major == 9;
  known[index] = asked;
  device = asked;
  return cudaSuccess;
}

namespace {

/// With the mutex held.
cudaError_t allow_all(const void* kernel, const Device& device) {
  static std::set<std::pair<const void*, int>> allowed;
  if (allowed.contains({kernel, device.index})) return cudaSuccess;
  cudaFuncAttributes attributes{};
  if (const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
      status != cudaSuccess) {
    return status;
  }
  const int dynamic = device.block_shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic);
  if (status == cudaSuccess) allowed.insert({kernel, device.index});
  return status;
}

}  // namespace

cudaError_t allow_all_shared_memory(const void* kernel, const Device& device) {
  const std::lock_guard lock(mutex);
  return allow_all(kernel, device);
}

cudaError_t resident_clusters(const void* kernel, const Device& device, int cluster, int threads,
                              int shared_bytes, int& count) {
  static std::map<std::tuple<const void*, int, int>, int> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find({kernel, device.index, cluster});
  if (found != known.end()) {
    count = found->second;
    return cudaSuccess;
  }
  if (const cudaError_t status = allow_all(kernel, device); status != cudaSuccess) return status;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
  if (status == cudaSuccess) known[{kernel, device.index, cluster}] = count;
  return status;
}

}  // namespace anyprec::cuda
