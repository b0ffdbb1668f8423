#include "src/engine/sampler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "anyprec/error.h"
#include "src/engine/core.h"
#include "src/engine/ops/ops.h"

namespace anyprec::engine {
namespace {

void check(bool good, const char* name, double found, const char* wanted) {
  if (good) return;
  throw InvalidArgument(std::string(name) + ": found " + std::to_string(found) + ", wanted " +
                        wanted);
}

// Columns of numbers, one a sequence, in one piece of memory that goes to the device in one copy.
class Columns {
 public:
  Columns(const std::vector<Sequence*>& sequences, at::Device device)
      : sequences_(sequences), device_(device) {
    const auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(device.is_cuda());
    host_ = at::empty({rows() * kBytesOfARow}, options);
  }

  template <typename T, typename Number>
  void add(Number number) {
    T* const to = reinterpret_cast<T*>(host_.mutable_data_ptr<std::uint8_t>() + offset_);
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      to[i] = static_cast<T>(number(*sequences_[i]));
    }
    offset_ += rows() * static_cast<std::int64_t>(sizeof(T));
  }

  void upload() {
    device_memory_ = host_.to(device_, /*non_blocking=*/true);
    offset_ = 0;
  }
  /// The columns in the order in which they were added.
  at::Tensor next(at::ScalarType type) {
    const std::int64_t bytes = rows() * static_cast<std::int64_t>(c10::elementSize(type));
    const at::Tensor column = device_memory_.narrow(0, offset_, bytes).view(type);
    offset_ += bytes;
    return column;
  }

 private:
  static constexpr std::int64_t kBytesOfARow = 2 * 8 + 5 * 4;
  std::int64_t rows() const { return static_cast<std::int64_t>(sequences_.size()); }

  const std::vector<Sequence*>& sequences_;
  at::Device device_;
  at::Tensor host_;
  at::Tensor device_memory_;
  std::int64_t offset_ = 0;
};

// [B, H] with H = 0 where no sequence asks for the penalty.
at::Tensor histories(const std::vector<Sequence*>& sequences, at::Device device) {
  std::int64_t longest = 0;
  for (const Sequence* each : sequences) {
    if (each->sampling.repetition_penalty == 1) continue;
    longest = std::max(longest, static_cast<std::int64_t>(each->tokens.size()));
  }
  const auto rows = static_cast<std::int64_t>(sequences.size());
  at::Tensor host = at::full({rows, longest}, -1, at::kLong);
  std::int64_t* row = host.mutable_data_ptr<std::int64_t>();
  for (const Sequence* each : sequences) {
    if (each->sampling.repetition_penalty != 1) {
      std::copy(each->tokens.begin(), each->tokens.end(), row);
    }
    row += longest;
  }
  return host.to(device);
}

}  // namespace

void check_sampling(const Sampling& s) {
  check(s.temperature >= 0 && std::isfinite(s.temperature), "temperature", s.temperature,
        "0 or more");
  check(s.top_k >= 0 && s.top_k <= INT32_MAX, "top_k", static_cast<double>(s.top_k), "0 or more");
  check(s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "above 0, and at most 1");
  check(s.min_p >= 0 && s.min_p <= 1, "min_p", s.min_p, "0 to 1");
  check(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty), "repetition_penalty",
        s.repetition_penalty, "above 0");
}

at::Tensor sample_tokens(const at::Tensor& logits, const std::vector<Sequence*>& sequences) {
  const at::Device device = logits.device();
  Columns columns(sequences, device);
  columns.add<std::int64_t>([](const Sequence& s) { return s.sampling.seed; });
  // Counted from the prompt's end, so that a prompt's length does not shift the random numbers.
  columns.add<std::int64_t>([](const Sequence& s) { return s.drawn(); });
  columns.add<std::int32_t>([](const Sequence& s) { return s.sampling.top_k; });
  columns.add<float>([](const Sequence& s) { return s.sampling.temperature; });
  columns.add<float>([](const Sequence& s) { return s.sampling.top_p; });
  columns.add<float>([](const Sequence& s) { return s.sampling.min_p; });
  columns.add<float>([](const Sequence& s) { return s.sampling.repetition_penalty; });
  columns.upload();
  SamplingRows rows;
  rows.seed = columns.next(at::kLong);
  rows.step = columns.next(at::kLong);
  rows.top_k = columns.next(at::kInt);
  rows.temperature = columns.next(at::kFloat);
  rows.top_p = columns.next(at::kFloat);
  rows.min_p = columns.next(at::kFloat);
  rows.repetition_penalty = columns.next(at::kFloat);
  rows.history = histories(sequences, device);
  return sample(logits, rows);
}

}  // namespace anyprec::engine
