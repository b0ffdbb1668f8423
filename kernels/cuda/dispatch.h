#pragma once

#include <span>

#include "anyprec/cuda.h"
#include "kernels/cuda/device.h"

namespace anyprec::cuda {

/// The path for these products on this device (dispatch.cu has the table and where it comes from).
LinearPath choose_path(const Input& input, std::span<const Product> products, const Device& device);

}  // namespace anyprec::cuda
