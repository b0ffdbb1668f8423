#include <cstdlib>
#include <string_view>

#include "anyprec/error.h"
#include "anyprec/linear.h"

namespace anyprec::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vbmi};

Isa choose() {
  const char* wanted = std::getenv("ANYPREC_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    Isa best = Isa::kScalar;
    for (const Isa isa : kAll)
      if (isa_supported(isa)) best = isa;
    return best;
  }
  for (const Isa isa : kAll) {
    if (to_string(isa) != std::string_view(wanted)) continue;
    if (isa_supported(isa)) return isa;
    throw InvalidArgument("ANYPREC_CPU_ISA: this machine has no " + to_string(isa));
  }
  throw InvalidArgument("ANYPREC_CPU_ISA: '" + std::string(wanted) +
                        "' is not scalar, avx2, avx512 or avx512vbmi");
}

}  // namespace

std::string to_string(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vbmi:
      return "avx512vbmi";
  }
  return "unknown";
}

bool isa_supported(Isa isa) {
  if (isa == Isa::kScalar) return true;
#ifdef ANYPREC_CPU_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) return avx512;
  if (isa == Isa::kAvx512Vbmi) {
    return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("gfni");
  }
#endif
  return false;
}

Isa selected_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace anyprec::cpu
