#include "anyprec/engine.h"

#include <utility>

#include "anyprec/checkpoint.h"
#include "src/engine/open.h"

namespace anyprec {
namespace engine {

std::unique_ptr<EngineCore> make_core(ModelConfig config, WeightSource& source,
                                      const EngineOptions& options) {
  DecoderWeights weights = load_weights(config, source);
  return std::make_unique<EngineCore>(std::move(config), std::move(weights), options);
}

std::unique_ptr<EngineCore> open_checkpoint(const std::filesystem::path& directory,
                                            const EngineOptions& options) {
  const Checkpoint checkpoint(directory, options.precisions);
  const std::string source = (directory / "config.json").string();
  ModelConfig config = read_model_config(checkpoint.config_json(), source);
  const auto weights =
      checkpoint_source(checkpoint, engine_device(options), engine_dtype(options, config));
  return make_core(std::move(config), *weights, options);
}

}  // namespace engine

struct Engine::State {
  std::unique_ptr<engine::EngineCore> core;
};

Engine::Engine(const std::filesystem::path& checkpoint, const EngineOptions& options)
    : state_(std::make_unique<State>(State{engine::open_checkpoint(checkpoint, options)})) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

std::int64_t Engine::submit(const Request& request) { return state_->core->submit(request); }
std::vector<TokenEvent> Engine::step() { return state_->core->step(); }
void Engine::stop(std::int64_t sequence) { state_->core->stop(sequence); }
bool Engine::idle() const { return state_->core->idle(); }
std::vector<std::int64_t> Engine::generate(const Request& request) {
  return state_->core->generate(request);
}
const std::vector<int>& Engine::precisions() const {
  return state_->core->decoder().weights().precisions;
}
std::int64_t Engine::vocabulary() const { return state_->core->decoder().config().vocabulary; }
std::int64_t Engine::max_sequence_length() const { return state_->core->max_sequence_length(); }

}  // namespace anyprec
