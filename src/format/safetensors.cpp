#include "src/format/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "anyprec/error.h"
#include "src/format/file.h"
#include "src/format/json.h"

namespace anyprec::format {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors data is little-endian and is used in place");

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 17> kDtypes{{
    {"BOOL", 1},
    {"U8", 1},
    {"I8", 1},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"F8_E8M0", 1},
    {"U16", 2},
    {"I16", 2},
    {"F16", 2},
    {"BF16", 2},
    {"U32", 4},
    {"I32", 4},
    {"F32", 4},
    {"U64", 8},
    {"I64", 8},
    {"F64", 8},
    {"C64", 8},
}};

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kAlignment = 8;
constexpr const char* kMetadata = "__metadata__";

std::uint64_t offset_value(const Fields& entry, const Json& value) {
  if (!value.is_number_unsigned()) {
    entry.reject("data_offsets", "not two unsigned integers", "[begin, end]");
  }
  return value.get<std::uint64_t>();
}

TensorEntry parse_entry(const std::string& name, const Json& value, const std::string& source) {
  const std::string where = source + ": tensor " + shown(name);
  const Fields entry(value, where);
  TensorEntry tensor;
  tensor.name = name;
  tensor.dtype = entry.string("dtype");
  const auto element_bytes = dtype_bytes(tensor.dtype);
  if (!element_bytes) {
    entry.reject("dtype", shown(tensor.dtype), "a safetensors dtype of whole bytes");
  }
  for (const Json& dimension : entry.array("shape")) {
    if (!dimension.is_number_unsigned() ||
        dimension.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
      entry.reject("shape", "a dimension that is no unsigned 63-bit integer", "such integers");
    }
    tensor.shape.push_back(dimension.get<std::int64_t>());
  }
  const Json& offsets = entry.array("data_offsets");
  if (offsets.size() != 2) {
    entry.reject("data_offsets", std::to_string(offsets.size()) + " values", "[begin, end]");
  }
  tensor.begin = offset_value(entry, offsets[0]);
  tensor.end = offset_value(entry, offsets[1]);
  if (value.size() != 3) throw FormatError(where + ": keys beyond dtype, shape and data_offsets");

  const auto bytes = tensor_bytes(*element_bytes, tensor.shape);
  if (!bytes) {
    entry.reject("shape", shown_shape(tensor.shape), "a size below 2^63 bytes");
  }
  if (tensor.end < tensor.begin || tensor.bytes() != *bytes) {
    entry.reject(
        "data_offsets",
        "[" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) + "]",
        std::to_string(*bytes) + " bytes for " + tensor.dtype + " " + shown_shape(tensor.shape));
  }
  if (tensor.begin % *element_bytes != 0) {
    entry.reject("data_offsets", "begin " + std::to_string(tensor.begin),
                 "a multiple of " + std::to_string(*element_bytes));
  }
  return tensor;
}

void check_metadata(const Json& metadata, const std::string& source) {
  bool text_only = metadata.is_object();
  if (text_only) {
    for (const auto& item : metadata.items()) text_only = text_only && item.value().is_string();
  }
  if (!text_only) throw FormatError(source + ": __metadata__ is not an object of strings");
}

/// The data must be the tensors one after the other, and nothing else.
void check_coverage(const SafetensorsHeader& header, std::uint64_t data_bytes,
                    const std::string& source) {
  std::uint64_t position = 0;
  for (const TensorEntry& tensor : header.tensors) {
    if (tensor.begin != position) {
      throw FormatError(source + ": tensor " + shown(tensor.name) + " begins at byte " +
                        std::to_string(tensor.begin) + " of the data, the one before ends at " +
                        std::to_string(position));
    }
    position = tensor.end;
  }
  if (position != data_bytes) {
    throw FormatError(source + ": " + std::to_string(data_bytes) +
                      " bytes of data, the header's tensors have " + std::to_string(position));
  }
}

}  // namespace

std::optional<std::uint64_t> dtype_bytes(std::string_view dtype) {
  const auto it = std::find_if(kDtypes.begin(), kDtypes.end(),
                               [&](const auto& known) { return known.first == dtype; });
  if (it == kDtypes.end()) return std::nullopt;
  return it->second;
}

std::optional<std::uint64_t> tensor_bytes(std::uint64_t element_bytes,
                                          std::span<const std::int64_t> shape) {
  std::uint64_t bytes = element_bytes;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0 ||
        __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dimension), &bytes) ||
        bytes > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
      return std::nullopt;
    }
  }
  return bytes;
}

std::string shown_shape(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size() && i < 8; ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() > 8 ? ", ...]" : "]");
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& source) {
  if (file.size() < kLengthBytes) {
    throw FormatError(source + ": " + std::to_string(file.size()) +
                      " bytes, too short for a safetensors file");
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxJsonBytes || length > file.size() - kLengthBytes) {
    throw FormatError(source + ": header of " + std::to_string(length) + " bytes in a file of " +
                      std::to_string(file.size()) + " (at most " + std::to_string(kMaxJsonBytes) +
                      " are read)");
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) throw FormatError(source + ": header does not begin with {");
  if (length % kAlignment != 0) {
    throw FormatError(source + ": header of " + std::to_string(length) +
                      " bytes, expected a multiple of 8");
  }

  const Json json = parse_json(text, source);
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + length;
  for (const auto& item : json.items()) {
    if (item.key() == kMetadata) {
      check_metadata(item.value(), source);
    } else {
      header.tensors.push_back(parse_entry(item.key(), item.value(), source));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_coverage(header, file.size() - header.data_begin, source);
  return header;
}

std::string layout_safetensors(std::vector<TensorEntry>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    const auto width_a = *dtype_bytes(a.dtype);
    const auto width_b = *dtype_bytes(b.dtype);
    return std::tie(width_b, a.name) < std::tie(width_a, b.name);
  });
  // Written piece by piece: an ordered JSON object would search its keys at every insertion.
  std::string text = R"({"__metadata__":{"format":"pt"})";
  std::uint64_t position = 0;
  for (TensorEntry& tensor : tensors) {
    tensor.begin = position;
    position += *tensor_bytes(*dtype_bytes(tensor.dtype), tensor.shape);
    tensor.end = position;
    text.append(",").append(Json(tensor.name).dump());
    text.append(":{\"dtype\":\"").append(tensor.dtype);
    text.append("\",\"shape\":").append(Json(tensor.shape).dump());
    text.append(",\"data_offsets\":[").append(std::to_string(tensor.begin));
    text.append(",").append(std::to_string(tensor.end)).append("]}");
  }
  text += "}";
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const std::uint64_t length = text.size();
  std::string header(kLengthBytes, '\0');
  std::memcpy(header.data(), &length, kLengthBytes);
  return header + text;
}

}  // namespace anyprec::format
