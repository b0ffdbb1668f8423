#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace anyprec::format {

using Json = nlohmann::json;

/// Parses JSON from an untrusted file. Stricter than the grammar: no key twice in one object and no
/// nesting beyond 64 levels. `source` names the file in errors. Throws FormatError.
Json parse_json(std::string_view text, const std::string& source);

/// A name out of an untrusted file, for an error message: quoted, control characters escaped, cut
/// at 200 bytes.
std::string shown(std::string_view name);

/// Typed access to the members of one JSON object. Every failure is a FormatError that names the
/// file and the full key. Borrows the object.
class Fields {
 public:
  /// `path` is the object's own key ("quantization_config.codebook"); empty for the root.
  /// Throws FormatError when `value` is not an object.
  Fields(const Json& value, std::string source, std::string path = {});

  const Json& at(const char* key) const;
  Fields object(const char* key) const;
  const Json& array(const char* key) const;
  const std::string& string(const char* key) const;
  std::int64_t integer(const char* key, std::int64_t low,
                       std::int64_t high = std::numeric_limits<std::int64_t>::max()) const;

  /// Throws the FormatError "<file>: <key>: <found>, expected <wanted>".
  [[noreturn]] void reject(const char* key, const std::string& found,
                           const std::string& wanted) const;

 private:
  std::string key_path(const char* key) const;

  const Json* object_;
  std::string source_;
  std::string path_;
};

}  // namespace anyprec::format
