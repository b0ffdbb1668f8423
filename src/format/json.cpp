#include "src/format/json.h"

#include <unordered_set>
#include <vector>

#include "anyprec/error.h"

namespace anyprec::format {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxShown = 200;

/// A JSON value, short enough for an error message.
std::string shown_value(const Json& value) {
  if (value.is_string()) return shown(value.get_ref<const std::string&>());
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  return value.dump();
}

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  if (text.find('\0') != std::string_view::npos) {  // where the parser would silently stop
    throw FormatError(source + ": not well-formed JSON: it has a NUL byte");
  }
  std::vector<std::unordered_set<std::string>> keys;  // of every object that is open
  const auto guard = [&](int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kMaxDepth) {
          throw FormatError(source + ": JSON nested deeper than " + std::to_string(kMaxDepth) +
                            " levels");
        }
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys.back().insert(key).second) {
          throw FormatError(source + ": key " + shown(key) + " appears twice in one object");
        }
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text, guard);
  } catch (const Json::parse_error& error) {
    // The library's own message may quote bytes that are not UTF-8.
    throw FormatError(source + ": not well-formed JSON at byte " + std::to_string(error.byte));
  } catch (const Json::exception&) {
    throw FormatError(source + ": JSON with a number out of range");
  }
}

std::string shown(std::string_view name) {
  std::string result = "\"";
  for (std::size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    // Cut only where a UTF-8 character starts, so that the message stays valid text.
    if (result.size() > kMaxShown && (byte & 0xC0) != 0x80) {
      result += "...";
      break;
    }
    if (byte < 0x20 || byte == 0x7F || byte == '"' || byte == '\\') {
      constexpr char kHex[] = "0123456789abcdef";
      result += "\\x";
      result += kHex[byte >> 4];
      result += kHex[byte & 15];
    } else {
      result += name[i];
    }
  }
  return result + "\"";
}

Fields::Fields(const Json& value, std::string source, std::string path)
    : object_(&value), source_(std::move(source)), path_(std::move(path)) {
  if (!value.is_object()) {
    throw FormatError(source_ + ": " + (path_.empty() ? "root" : path_) + ": " +
                      shown_value(value) + ", expected an object");
  }
}

std::string Fields::key_path(const char* key) const {
  return path_.empty() ? std::string(key) : path_ + "." + key;
}

void Fields::reject(const char* key, const std::string& found, const std::string& wanted) const {
  throw FormatError(source_ + ": " + key_path(key) + ": " + found + ", expected " + wanted);
}

const Json& Fields::at(const char* key) const {
  const auto it = object_->find(key);
  if (it == object_->end()) throw FormatError(source_ + ": " + key_path(key) + " is missing");
  return *it;
}

Fields Fields::object(const char* key) const { return Fields(at(key), source_, key_path(key)); }

const Json& Fields::array(const char* key) const {
  const Json& value = at(key);
  if (!value.is_array()) reject(key, shown_value(value), "an array");
  return value;
}

const std::string& Fields::string(const char* key) const {
  const Json& value = at(key);
  if (!value.is_string()) reject(key, shown_value(value), "a string");
  return value.get_ref<const std::string&>();
}

std::int64_t Fields::integer(const char* key, std::int64_t low, std::int64_t high) const {
  const Json& value = at(key);
  const std::string wanted =
      high == std::numeric_limits<std::int64_t>::max()
          ? "an integer of at least " + std::to_string(low)
          : "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  if (!value.is_number_integer()) reject(key, shown_value(value), wanted);
  // An unsigned number beyond int64 would wrap around in get<int64_t>.
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
    reject(key, value.dump(), wanted);
  }
  const auto number = value.get<std::int64_t>();
  if (number < low || number > high) reject(key, std::to_string(number), wanted);
  return number;
}

}  // namespace anyprec::format
