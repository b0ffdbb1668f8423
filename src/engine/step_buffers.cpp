#include "src/engine/step_buffers.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace anyprec::engine {
namespace {

// Hands out pieces of a buffer and its twin, each 16-byte aligned.
class Carver {
 public:
  Carver(const at::Tensor& host, const at::Tensor& device) : host_(host), device_(device) {}

  template <typename T>
  at::Tensor carve(std::int64_t count, at::ScalarType type, std::span<T>& on_host) {
    const auto bytes = count * static_cast<std::int64_t>(sizeof(T));
    on_host = {reinterpret_cast<T*>(host_.mutable_data_ptr<std::uint8_t>() + offset_),
               static_cast<std::size_t>(count)};
    const at::Tensor piece = device_.narrow(0, offset_, bytes).view(type);
    offset_ += padded(bytes);
    return piece;
  }
  static std::int64_t padded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

 private:
  const at::Tensor& host_;
  const at::Tensor& device_;
  std::int64_t offset_ = 0;
};

}  // namespace

StepBuffers::StepBuffers(std::int64_t rows, std::int64_t sequences, std::int64_t blocks,
                         std::int64_t logit_rows, at::Device device)
    : table_width_(blocks) {
  std::int64_t bytes =
      2 * Carver::padded(rows * 8) + Carver::padded(std::max<std::int64_t>(logit_rows, 0) * 8);
  bytes += Carver::padded(rows * 4) + Carver::padded((sequences + 1) * 4) +
           Carver::padded(sequences * 4) + Carver::padded(sequences * blocks * 4);
  const auto options = at::TensorOptions().dtype(at::kByte);
  host_ = at::empty({bytes}, options);
  device_ = device.is_cpu() ? host_ : at::empty({bytes}, options.device(device));
  if (device.is_cuda()) {
    for (at::Tensor& each : pinned_) each = at::empty({bytes}, options.pinned_memory(true));
  }
  Carver carver(host_, device_);
  batch_.tokens = carver.carve(rows, at::kLong, tokens_);
  batch_.slots = carver.carve(rows, at::kLong, slots_);
  if (logit_rows != kEveryRow) batch_.logit_rows = carver.carve(logit_rows, at::kLong, logit_rows_);
  batch_.positions = carver.carve(rows, at::kInt, positions_);
  batch_.sequence_start = carver.carve(sequences + 1, at::kInt, sequence_start_);
  batch_.lengths = carver.carve(sequences, at::kInt, lengths_);
  batch_.block_table = carver.carve(sequences * blocks, at::kInt, table_).view({sequences, blocks});
}

std::span<std::int32_t> StepBuffers::blocks(std::int64_t sequence) {
  return table_.subspan(static_cast<std::size_t>(sequence * table_width_),
                        static_cast<std::size_t>(table_width_));
}

void StepBuffers::upload() {
  if (device_.is_cpu()) return;
  at::Tensor& pinned = pinned_[turn_];
  turn_ = 1 - turn_;
  pinned.copy_(host_);
  device_.copy_(pinned, /*non_blocking=*/true);
}

}  // namespace anyprec::engine
