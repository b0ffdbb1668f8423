#pragma once

#include <filesystem>
#include <memory>

#include "anyprec/engine.h"
#include "src/engine/core.h"

namespace anyprec::engine {

/// An engine of what a source has.
std::unique_ptr<EngineCore> make_core(ModelConfig config, WeightSource& source,
                                      const EngineOptions& options);
/// An engine of a checkpoint directory.
std::unique_ptr<EngineCore> open_checkpoint(const std::filesystem::path& directory,
                                            const EngineOptions& options);

}  // namespace anyprec::engine
