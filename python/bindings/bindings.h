#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace anyprec::python {

/// A C-contiguous array of exactly this dtype; anything else is refused, never copied silently.
template <typename T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

void bind_quantize(pybind11::module_& module);
void bind_checkpoint(pybind11::module_& module);

}  // namespace anyprec::python
