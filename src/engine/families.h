#pragma once

#include <string>
#include <string_view>

namespace anyprec::engine {

/// The text of configs/<model_type>.json, compiled into the library; empty where there is none.
std::string_view family_json(std::string_view model_type);
/// The model types whose file has an "engine" section, for messages: "gemma, gemma2, ...".
std::string supported_families();

}  // namespace anyprec::engine
