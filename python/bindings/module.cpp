#include <pybind11/pybind11.h>

#include "anyprec/error.h"
#include "anyprec/linear.h"
#include "bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "The torch-free C++ core of anyprec.";
  module.attr("__version__") = ANYPREC_VERSION;

  // Each C++ error is the natural Python exception too: FormatError and PrecisionError are also
  // ValueErrors. Later registrations are tried first.
  auto& error = py::register_exception<anyprec::Error>(module, "Error");
  const auto also_value_error = py::make_tuple(error, py::handle(PyExc_ValueError));
  py::register_exception<anyprec::FormatError>(module, "FormatError", also_value_error);
  py::register_exception<anyprec::PrecisionError>(module, "PrecisionError", also_value_error);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const anyprec::InvalidArgument& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const anyprec::IoError& e) {
      py::set_error(PyExc_OSError, e.what());
    }
  });

  anyprec::python::bind_quantize(module);
  anyprec::python::bind_checkpoint(module);
  module.def(
      "cpu_isa", [] { return anyprec::cpu::to_string(anyprec::cpu::selected_isa()); },
      "The instruction set that the CPU kernels use: scalar, avx2, avx512 or avx512vbmi.");
}
