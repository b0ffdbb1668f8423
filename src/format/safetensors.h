#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace anyprec::format {

/// One tensor as a safetensors header describes it (https://github.com/huggingface/safetensors).
struct TensorEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  ///< first byte, counted from the end of the header
  std::uint64_t end = 0;    ///< one past the last byte

  std::uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::uint64_t data_begin = 0;      ///< 8 + the length of the JSON text, a multiple of 8
  std::vector<TensorEntry> tensors;  ///< in the order of their data
};

/// Bytes of one element, or nothing for a dtype that is unknown (or smaller than a byte).
std::optional<std::uint64_t> dtype_bytes(std::string_view dtype);

/// Elements of `shape` times bytes of an element; nothing when that overflows 63 bits, or when a
/// dimension is negative.
std::optional<std::uint64_t> tensor_bytes(std::uint64_t element_bytes,
                                          std::span<const std::int64_t> shape);

/// A shape for an error message: "[3, 5]", cut after eight dimensions.
std::string shown_shape(std::span<const std::int64_t> shape);

/// Reads and validates the header of a safetensors file. Beyond what safetensors itself demands
/// (known dtypes, sizes that agree, data that covers the file without holes or overlaps), every
/// tensor must be aligned to its elements. Throws FormatError naming `source` and the tensor.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& source);

/// Puts `tensors` (all with known dtypes and valid shapes) into the order of the file, widest
/// elements first and then by name, sets their offsets, and returns the bytes that come before the
/// data. The same tensors give the same bytes.
std::string layout_safetensors(std::vector<TensorEntry>& tensors);

}  // namespace anyprec::format
