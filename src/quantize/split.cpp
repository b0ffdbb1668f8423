#include "src/quantize/split.h"

#include "src/quantize/kernels.h"

namespace anyprec::quantize {

std::int64_t best_split(std::span<const double> values, std::span<const double> masses,
                        std::int64_t begin, std::int64_t end) {
  const std::int64_t borders[2] = {begin, end};
  std::int64_t children[3];
  kernels_for(cpu::selected_isa()).split(values.data(), masses.data(), borders, 1, children);
  return children[1];
}

}  // namespace anyprec::quantize
