#include "anyprec/quantize.h"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>

#include "anyprec/error.h"
#include "anyprec/planes.h"
#include "bindings.h"

namespace anyprec::python {
namespace {

namespace py = pybind11;

void expect_shape(const char* name, const py::array& array, py::ssize_t dimensions) {
  if (array.ndim() != dimensions) {
    throw InvalidArgument(std::string(name) + ": found " + std::to_string(array.ndim()) +
                          " dimensions, wanted " + std::to_string(dimensions));
  }
}

QuantizedMatrix quantize(const std::string& name, const Array<float>& weights,
                         const std::optional<Array<float>>& sensitivities, int lowest_precision,
                         int seed_precision, int parent_precision, std::int64_t group_size,
                         const ThreadPool* pool) {
  expect_shape("weights", weights, 2);
  if (sensitivities) {
    expect_shape("sensitivities", *sensitivities, 2);
    if (sensitivities->shape(0) != weights.shape(0) ||
        sensitivities->shape(1) != weights.shape(1)) {
      throw InvalidArgument(name + ": sensitivities of " + std::to_string(sensitivities->shape(0)) +
                            " x " + std::to_string(sensitivities->shape(1)) + ", wanted " +
                            std::to_string(weights.shape(0)) + " x " +
                            std::to_string(weights.shape(1)) + " like the weights");
    }
  }
  const QuantizeOptions options{.lowest_precision = lowest_precision,
                                .seed_precision = seed_precision,
                                .parent_precision = parent_precision,
                                .group_size = group_size};
  const float* w = weights.data();
  const float* s = sensitivities ? sensitivities->data() : nullptr;
  const std::int64_t n = weights.shape(0);
  const std::int64_t k = weights.shape(1);
  const py::gil_scoped_release release;
  if (pool != nullptr) return quantize_matrix(name, w, s, n, k, options, *pool);
  const ThreadPool own;
  return quantize_matrix(name, w, s, n, k, options, own);
}

py::dict luts_of(const QuantizedMatrix& q, int lowest) {
  py::dict luts;
  for (std::size_t i = 0; i < q.luts.size(); ++i) {
    const int b = lowest + static_cast<int>(i);
    luts[py::int_(b)] =
        py::array_t<float>({q.out_features, q.groups, std::int64_t{1} << b}, q.luts[i].data());
  }
  return luts;
}

// The first table tells the lowest precision: luts run from it to the parent without a gap.
int lowest_precision(const QuantizedMatrix& q) {
  const auto entries = q.luts.front().size() / static_cast<std::size_t>(q.out_features * q.groups);
  int b = 0;
  while ((std::size_t{1} << b) < entries) ++b;
  return b;
}

}  // namespace

void bind_quantize(py::module_& module) {
  py::class_<ThreadPool>(module, "ThreadPool", "Threads that the quantizer's loops run on.")
      .def(py::init<int>(), py::arg("threads") = 0,
           "threads: at least 1; 0 for one per hardware thread.")
      .def_property_readonly("concurrency", &ThreadPool::concurrency);

  py::class_<QuantizedMatrix>(module, "QuantizedMatrix", "Nested codes and their tables.")
      .def_property_readonly(
          "codes",
          [](py::object self) {
            const auto& q = self.cast<const QuantizedMatrix&>();
            return py::array_t<std::uint8_t>({q.out_features, q.in_features}, q.codes.data(), self);
          },
          "uint8 [N, K]: the parent precision's codes.")
      .def_property_readonly(
          "luts", [](const QuantizedMatrix& q) { return luts_of(q, lowest_precision(q)); },
          "Precision -> float32 [N, G, 2^b].")
      .def_property_readonly(
          "errors",
          [](const QuantizedMatrix& q) {
            py::dict errors;
            const int lowest = lowest_precision(q);
            for (std::size_t i = 0; i < q.errors.size(); ++i) {
              errors[py::int_(lowest + static_cast<int>(i))] = q.errors[i];
            }
            return errors;
          },
          "Precision -> sum of s * (w - value)^2.");

  module.def("quantize_matrix", &quantize, py::arg("name"), py::arg("weights").noconvert(),
             py::arg("sensitivities").noconvert().none(true), py::kw_only(),
             py::arg("lowest_precision") = 2, py::arg("seed_precision") = 3,
             py::arg("parent_precision") = 8, py::arg("group_size") = 0,
             py::arg("pool").none(true) = py::none(),
             "Clusters a weight matrix into nested codes with a table for each precision.");

  module.def(
      "codes_to_planes",
      [](const Array<std::uint8_t>& codes, int parent_precision) {
        expect_shape("codes", codes, 2);
        if (parent_precision < 1 || parent_precision > 8) {
          throw InvalidArgument("parent_precision: found " + std::to_string(parent_precision) +
                                ", wanted 1 to 8");
        }
        const std::int64_t n = codes.shape(0);
        const std::int64_t k = codes.shape(1);
        py::array_t<std::uint8_t> planes({std::int64_t{parent_precision}, n, plane_row_bytes(k)});
        codes_to_planes(codes.data(), n, k, parent_precision, planes.mutable_data());
        return planes;
      },
      py::arg("codes").noconvert(), py::arg("parent_precision"),
      "uint8 [N, K] -> uint8 [parent, N, ceil(K/8)], canonical bit planes.");

  module.def(
      "planes_to_codes",
      [](const Array<std::uint8_t>& planes, std::int64_t in_features, int precision) {
        expect_shape("planes", planes, 3);
        if (precision < 1 || precision > planes.shape(0) || precision > 8) {
          throw InvalidArgument("precision: found " + std::to_string(precision) +
                                ", wanted 1 to the number of planes, " +
                                std::to_string(planes.shape(0)));
        }
        if (in_features < 1 || planes.shape(2) != plane_row_bytes(in_features)) {
          throw InvalidArgument("planes: rows of " + std::to_string(planes.shape(2)) +
                                " bytes, wanted " + std::to_string(plane_row_bytes(in_features)) +
                                " for " + std::to_string(in_features) + " columns");
        }
        const std::int64_t n = planes.shape(1);
        py::array_t<std::uint8_t> codes({n, in_features});
        planes_to_codes(planes.data(), n * planes.shape(2), n, in_features, precision,
                        codes.mutable_data());
        return codes;
      },
      py::arg("planes").noconvert(), py::arg("in_features"), py::arg("precision"),
      "Canonical planes uint8 [P, N, ceil(K/8)] -> b-bit codes uint8 [N, K].");
}

}  // namespace anyprec::python
