#include <algorithm>

#include "kernels/cuda/activation_tiles.cuh"

namespace anyprec::cuda {
namespace {

// Blocks of a cluster are spread over multiprocessors. Without, as many as fit go to those that a
// predecessor leaves idle, and are done last (3 us instead of 1).
constexpr int kCluster = 8;

}  // namespace

cudaError_t activations_to_tiles(const Input& input, std::int64_t in_features,
                                 const ActivationTiles& to, const FirstCodebooks& ahead,
                                 const Device& device, cudaStream_t stream) {
  using namespace activation_tiles_device;
  const Args args(input, in_features, to, ahead);
  const int parts = std::max(1, device.multiprocessors / to.rows);
  const auto kernel =
      args.fours() ? activations_to_tiles_kernel<true> : activations_to_tiles_kernel<false>;
  return launch_clusters(kernel, device,
                         dim3(static_cast<unsigned>(to.rows), static_cast<unsigned>(parts)),
                         kCluster, kThreads, 0, stream, args);
}

}  // namespace anyprec::cuda
