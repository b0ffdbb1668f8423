#include "kernels/cuda/attention.h"

#include <string>

#include "anyprec/error.h"

namespace anyprec::cuda {
namespace {

/// Single precision has no tensor cores that keep it.
bool takes_rows_singly(const decoder::Attention& attention) {
  return is_decoding(attention) || attention.type == ScalarType::kFloat32;
}

void check(const decoder::Attention& attention) {
  const int size = attention.cache.head_size;
  if (size != 64 && size != 96 && size != 128 && size != 256) {
    throw InvalidArgument("attention: found heads of " + std::to_string(size) +
                          " elements, wanted 64, 96, 128 or 256");
  }
}

}  // namespace

std::size_t attention_workspace_bytes(const decoder::Attention& attention) {
  check(attention);
  return takes_rows_singly(attention) ? attention_decode_bytes(attention) : 0;
}

cudaError_t attention(const decoder::Attention& attention, const PlanesOut& planes, void* workspace,
                      cudaStream_t stream) {
  check(attention);
  if (attention.rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t status = current_device(device); status != cudaSuccess) return status;
  if (takes_rows_singly(attention)) {
    return attention_decode(attention, planes, workspace, device, stream);
  }
  if (planes.planes != nullptr) {
    throw InvalidArgument("attention: bit planes of " + std::to_string(attention.rows) +
                          " rows of " + std::to_string(attention.sequences) + " sequences");
  }
  return attention_prefill(attention, device, stream);
}

}  // namespace anyprec::cuda
