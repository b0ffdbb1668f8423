#pragma once

#include <string>

#include "anyprec/engine.h"
#include "src/format/json.h"

namespace anyprec::engine {

/// Python hands options and requests over as JSON. A key that is not known is an InvalidArgument.
EngineOptions options_from_json(const format::Json& json);
/// All but the prompt.
Request request_from_json(const format::Json& json);
/// An int, or a list of [pattern, int].
Precision precision_from_json(const format::Json& json);

}  // namespace anyprec::engine
