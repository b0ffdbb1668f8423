#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"
#include "tests/cpp/kernels/quantized_case.h"

namespace anyprec::testing {

/// Skips, visibly, where there is no GPU.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "needs an NVIDIA GPU (make gpu-test)";
    }
    ASSERT_EQ(cuda::current_device(device), cudaSuccess);
  }
  cuda::Device device{};
};

/// Device memory with a copy of host data.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes > 0 ? bytes : 16)); }
  template <typename T>
  explicit DeviceBuffer(const std::vector<T>& host) : DeviceBuffer(host.size() * sizeof(T)) {
    write(host);
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::vector<T> read(std::size_t count) const {
    std::vector<T> host(count);
    check(cudaMemcpy(host.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  template <typename T>
  void write(const std::vector<T>& host) const {
    check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  static void check(cudaError_t status) {
    ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status);
  }

 private:
  void* data_ = nullptr;
};

/// A quantized matrix in device memory, in the backend's layout.
struct DeviceCase {
  explicit DeviceCase(const QuantizedCase& c)
      : planes(kMaxPrecision * packed_plane_bytes(c.n, c.k)), lut(c.lut), alpha(c.alpha) {
    const DeviceBuffer canonical(c.canonical);
    DeviceBuffer::check(cuda::pack_planes(canonical.as<std::uint8_t>(), kMaxPrecision, c.n, c.k,
                                          planes.as<std::uint8_t>(), nullptr));
    DeviceBuffer::check(cudaDeviceSynchronize());
    weights.out_features = c.n;
    weights.in_features = c.k;
    weights.form = c.form;
    weights.precision = c.precision;
    weights.planes = planes.as<std::uint8_t>();
    weights.lut = lut.as<std::uint16_t>();
    weights.alpha = c.alpha.empty() ? nullptr : alpha.as<std::uint16_t>();
  }
  DeviceBuffer planes, lut, alpha;
  Weights weights;
};

/// Rows of x in device memory, with `padding` elements between them and `offset` elements off
/// alignment.
struct DeviceInput {
  DeviceInput(std::int64_t m, std::int64_t k, ScalarType type, std::int64_t padding = 0,
              std::int64_t offset = 0, unsigned seed = 1)
      : matrix(m, k, k + padding, type),
        offset_bytes(offset * cpu::scalar_bytes(type)),
        matrix_bytes(m * (k + padding) * cpu::scalar_bytes(type)),
        buffer(static_cast<std::size_t>(offset_bytes + matrix_bytes)) {
    matrix.randomize(seed);
    input = {buffer.as<char>() + offset_bytes, k + padding, m, type};
    upload();
  }
  /// After a change of `matrix`.
  void upload() {
    DeviceBuffer::check(cudaMemcpy(buffer.as<char>() + offset_bytes, matrix.data(),
                                   static_cast<std::size_t>(matrix_bytes), cudaMemcpyHostToDevice));
  }
  Matrix matrix;
  std::int64_t offset_bytes, matrix_bytes;
  DeviceBuffer buffer;
  cuda::Input input;
};

/// Rows of y, poisoned, with `padding` elements between them.
struct DeviceOutput {
  DeviceOutput(std::int64_t m, std::int64_t n, ScalarType type, std::int64_t padding = 0)
      : m(m),
        n(n),
        stride(n + padding),
        type(type),
        buffer(std::vector<std::uint8_t>(m * stride * cpu::scalar_bytes(type), 0xff)) {}
  std::vector<std::uint8_t> bytes() const {
    return buffer.read<std::uint8_t>(m * stride * cpu::scalar_bytes(type));
  }
  std::vector<float> values() const {
    std::vector<float> all(m * stride);
    cpu::load_floats(bytes().data(), 0, m * stride, type, all.data());
    return all;
  }
  /// What lies between the rows is as it was.
  void expect_room_untouched() const {
    const std::vector<std::uint8_t> all = bytes();
    const std::int64_t size = cpu::scalar_bytes(type);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t at = (i * stride + n) * size; at < (i + 1) * stride * size; ++at)
        ASSERT_EQ(all[at], 0xff) << "wrote between rows " << i << " and " << i + 1;
  }
  std::int64_t m, n, stride;
  ScalarType type;
  DeviceBuffer buffer;
};

/// x, W, perhaps a bias, and poisoned room for y: what one matrix and one input give to multiply.
struct ProductCase {
  ProductCase(const QuantizedCase& c, std::int64_t m, ScalarType type, bool with_bias = false,
              std::int64_t padding = 0, std::int64_t offset = 0)
      : weights(c),
        x(m, c.k, type, padding, offset, static_cast<unsigned>(m + c.k)),
        y(m, c.n, type, padding),
        bias(with_bias ? c.n : 0),
        device_bias(typed_bias(bias, type)),
        product{weights.weights, with_bias ? device_bias.as<void>() : nullptr, y.buffer.as<void>(),
                y.stride} {}
  /// What the reference takes: null for none.
  const double* expected_bias() const { return bias.empty() ? nullptr : bias.data(); }

  DeviceCase weights;
  DeviceInput x;
  DeviceOutput y;
  std::vector<double> bias;
  DeviceBuffer device_bias;
  cuda::Product product;

 private:
  static std::vector<std::uint16_t> typed_bias(std::vector<double>& bias, ScalarType type) {
    std::vector<std::uint16_t> typed(bias.size());
    for (std::size_t n = 0; n < bias.size(); ++n) {
      const float value = static_cast<float>(n % 7) - 3.5f;
      bias[n] = value;
      cpu::store_floats(&value, 1, type, typed.data(), static_cast<std::int64_t>(n));
    }
    return typed;
  }
};

}  // namespace anyprec::testing
