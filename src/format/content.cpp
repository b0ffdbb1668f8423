#include "src/format/content.h"

#include <cstdint>
#include <cstring>

#include "anyprec/planes.h"

namespace anyprec::format {
namespace {

/// data: [N, ceil(K/8)].
std::string plane_problem(const QuantizedModule& module, std::span<const std::byte> data) {
  const std::int64_t used_bits = module.in_features % 8;
  if (used_bits == 0) return {};
  const auto padding = static_cast<std::byte>(0xFF << used_bits);
  const auto row_bytes = static_cast<std::size_t>(plane_row_bytes(module.in_features));
  for (std::size_t last = row_bytes - 1; last < data.size(); last += row_bytes) {
    if ((data[last] & padding) != std::byte{0}) {
      return "row " + std::to_string(last / row_bytes) + " has padding bits that are not zero";
    }
  }
  return {};
}

/// data: any shape of fp16, not necessarily aligned.
std::string codebook_problem(std::span<const std::byte> data) {
  constexpr std::uint16_t kExponent = 0x7C00;  // all ones: NaN or infinity
  for (std::size_t i = 0; i + 2 <= data.size(); i += 2) {
    std::uint16_t bits;
    std::memcpy(&bits, data.data() + i, 2);
    if ((bits & kExponent) == kExponent) {
      return "element " + std::to_string(i / 2) + " is NaN or infinite";
    }
  }
  return {};
}

}  // namespace

std::string content_problem(const ExpectedTensor& tensor, std::span<const std::byte> data) {
  return tensor.kind == ExpectedTensor::Kind::kPlane ? plane_problem(*tensor.module, data)
                                                     : codebook_problem(data);
}

}  // namespace anyprec::format
