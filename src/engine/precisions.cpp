#include "src/engine/precisions.h"

#include <fnmatch.h>

#include <algorithm>

#include "anyprec/error.h"

namespace anyprec::engine {
namespace {

std::string listed(const std::vector<int>& precisions) {
  std::string text;
  for (const int each : precisions) text += (text.empty() ? "" : ", ") + std::to_string(each);
  return text;
}

void check_loaded(int precision, const std::string& pattern, const std::vector<int>& loaded) {
  if (std::find(loaded.begin(), loaded.end(), precision) != loaded.end()) return;
  throw PrecisionError("precision " + std::to_string(precision) + " for pattern '" + pattern +
                       "' is not loaded; loaded: " + listed(loaded));
}

}  // namespace

SharedAssignment resolve(const Precision& precision, const std::vector<std::string>& names,
                         const std::vector<int>& loaded) {
  Assignment assignment(names.size(), 0);
  for (const auto& [pattern, bits] : precision.patterns) {
    check_loaded(bits, pattern, loaded);
    bool matched = names.empty();
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (pattern != names[i] && fnmatch(pattern.c_str(), names[i].c_str(), FNM_NOESCAPE) != 0) {
        continue;
      }
      matched = true;
      if (assignment[i] == 0) assignment[i] = bits;
    }
    if (!matched) {
      throw PrecisionError("precision pattern '" + pattern + "' matches none of the model's " +
                           std::to_string(names.size()) + " quantized linears (the first is '" +
                           names.front() + "')");
    }
  }
  const auto unset = std::find(assignment.begin(), assignment.end(), 0);
  if (unset != assignment.end()) {
    throw PrecisionError("no precision pattern matches '" +
                         names[static_cast<std::size_t>(unset - assignment.begin())] +
                         "'; add a last pattern \"*\" for all other linears");
  }
  return std::make_shared<const Assignment>(std::move(assignment));
}

}  // namespace anyprec::engine
