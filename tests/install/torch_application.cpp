// Multiplies by a random matrix through anyprec::torch and compares with its dense form.
#include <ATen/ATen.h>
#include <anyprec/torch.h>

#include <cstdio>

int main() {
  constexpr std::int64_t kRows = 24;
  constexpr std::int64_t kColumns = 300;
  const at::Tensor canonical = at::randint(256, {8, kRows, (kColumns + 7) / 8}, at::kByte);
  // 300 = 37 * 8 + 4: the last byte's upper four bits are padding.
  canonical.select(2, 37).bitwise_and_(at::scalar_tensor(15, at::kByte));
  const at::Tensor planes = anyprec::torch::pack_planes(canonical, kColumns);
  for (std::int64_t b = 2; b <= 8; ++b) {
    const at::Tensor lut = at::randn({kRows, 1, std::int64_t{1} << b}).to(at::kHalf);
    const at::Tensor x = at::randn({3, kColumns});
    const at::Tensor y = anyprec::torch::linear(x, planes, lut, {}, {}, b, kColumns);
    const at::Tensor w = anyprec::torch::dequantize(planes, lut, {}, b, kColumns);
    const double error = (y - x.matmul(w.t())).abs().max().item<double>();
    std::printf("%d bits: largest difference %g\n", static_cast<int>(b), error);
    if (!(error < 1e-2)) return 1;
  }
  return 0;
}
