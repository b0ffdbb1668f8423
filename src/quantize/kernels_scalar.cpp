#include "src/quantize/path_kernels_simd.h"
#include "src/quantize/split_kernel_simd.h"
#include "src/quantize/table_kernels_simd.h"

namespace anyprec::quantize {
namespace {

/// Lane by lane; the compiler makes what it can of it.
struct Scalar {
  struct Vec {
    double lane[kLanes];
  };
  struct Mask {
    bool lane[kLanes];
  };

  template <class Operation>
  static ANYPREC_LANES_INLINE Vec each(const Operation& operation) {
    Vec v;
    for (int l = 0; l < kLanes; ++l) v.lane[l] = operation(l);
    return v;
  }
  template <class Operation>
  static ANYPREC_LANES_INLINE Mask each_mask(const Operation& operation) {
    Mask m;
    for (int l = 0; l < kLanes; ++l) m.lane[l] = operation(l);
    return m;
  }

  static Vec load(const double* from) {
    return each([&](int l) { return from[l]; });
  }
  static Vec load_even(const double* from) {
    return each([&](int l) { return from[2 * l]; });
  }
  static Vec load_odd(const double* from) {
    return each([&](int l) { return from[2 * l + 1]; });
  }
  static Vec load_first(const double* from, std::int64_t count) {
    return each([&](int l) { return l < count ? from[l] : 0.0; });
  }
  static void store(double* to, const Vec& v) { store_first(to, v, kLanes); }
  static void store_first(double* to, const Vec& v, std::int64_t count) {
    for (std::int64_t l = 0; l < count; ++l) to[l] = v.lane[l];
  }
  static Vec store_floats(float* to, const Vec& v, std::int64_t count) {
    for (std::int64_t l = 0; l < count; ++l) to[l] = static_cast<float>(v.lane[l]);
    return each([&](int l) { return static_cast<double>(static_cast<float>(v.lane[l])); });
  }
  static Vec set(double value) {
    return each([&](int) { return value; });
  }
  static Vec lanes() {
    return each([](int l) { return static_cast<double>(l); });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] + b.lane[l]; });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] - b.lane[l]; });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] * b.lane[l]; });
  }
  static Vec div(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] / b.lane[l]; });
  }
  static Vec abs(const Vec& a) {
    return each([&](int l) { return __builtin_fabs(a.lane[l]); });
  }
  static Vec min(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]; });
  }
  static Mask less(const Vec& a, const Vec& b) {
    return each_mask([&](int l) { return a.lane[l] < b.lane[l]; });
  }
  static Mask not_equal(const Vec& a, const Vec& b) {
    return each_mask([&](int l) { return a.lane[l] != b.lane[l]; });
  }
  static Mask both(const Mask& a, const Mask& b) {
    return each_mask([&](int l) { return a.lane[l] && b.lane[l]; });
  }
  static Vec select(const Mask& mask, const Vec& yes, const Vec& no) {
    return each([&](int l) { return mask.lane[l] ? yes.lane[l] : no.lane[l]; });
  }
  static Vec zero_unless(const Mask& mask, const Vec& v) {
    return each([&](int l) { return mask.lane[l] ? v.lane[l] : 0.0; });
  }
  static double reduce_max(const Vec& v) {
    double most = v.lane[0];
    for (int l = 1; l < kLanes; ++l) most = v.lane[l] > most ? v.lane[l] : most;
    return most;
  }
  static double reduce_add(Vec v) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) v.lane[l] += v.lane[l + half];
    }
    return v.lane[0];
  }
  static Vec running_sum(const Vec& v) {
    const auto above = [](const Vec& x, int lanes) {
      return each(
          [&](int l) { return l < lanes ? x.lane[l] + 0.0 : x.lane[l] + x.lane[l - lanes]; });
    };
    return above(above(above(v, 1), 2), 4);
  }
  static double last(const Vec& v) { return v.lane[kLanes - 1]; }
  static double reduce_min(const Vec& v) {
    double least = v.lane[0];
    for (int l = 1; l < kLanes; ++l) least = v.lane[l] < least ? v.lane[l] : least;
    return least;
  }
};

}  // namespace

const Kernels& scalar_kernels();
const Kernels& scalar_kernels() {
  static constexpr Kernels kKernels{best<Scalar>,   block<Scalar>,  pairs<Scalar>,
                                    relax<Scalar>,  spread<Scalar>, split<Scalar>,
                                    leaves<Scalar>, merge<Scalar>,  table<Scalar>};
  return kKernels;
}

}  // namespace anyprec::quantize
