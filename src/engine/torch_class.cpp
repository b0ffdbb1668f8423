// torch.classes.anyprec.Engine: the engine for Python (python/anyprec/native.py). Options and
// requests come as JSON.
#include <ATen/ATen.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "anyprec/error.h"
#include "src/engine/open.h"
#include "src/engine/random_weights.h"
#include "src/engine/request_json.h"

namespace anyprec::engine {
namespace {

using format::Json;

Json parsed(const std::string& text) { return format::parse_json(text, "argument"); }

// Python's exceptions: ValueError, NotImplementedError, OSError's nearest, RuntimeError.
template <typename Body>
auto translated(const Body& body) {
  try {
    return body();
  } catch (const UnsupportedModel& error) {
    C10_THROW_ERROR(NotImplementedError, error.what());
  } catch (const Error& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

class PythonEngine final : public ::torch::CustomClassHolder {
 public:
  explicit PythonEngine(std::unique_ptr<EngineCore> core) : core_(std::move(core)) {}

  std::int64_t submit(std::vector<std::int64_t> prompt, const std::string& request_json) {
    return translated([&] {
      Request request = request_from_json(parsed(request_json));
      request.prompt = std::move(prompt);
      return core_->submit(request);
    });
  }
  // Of each token: sequence, token, 0 or (1) a stop token or (2) the length ended it.
  std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> step() {
    return translated([&] {
      std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> events;
      for (const TokenEvent& event : core_->step()) {
        events.emplace_back(event.sequence, event.token, static_cast<std::int64_t>(event.finish));
      }
      return events;
    });
  }
  void stop(std::int64_t sequence) { core_->stop(sequence); }
  bool idle() { return core_->idle(); }
  at::Tensor logits(std::vector<std::int64_t> tokens, const std::string& precision_json) {
    return translated(
        [&] { return core_->logits(tokens, precision_from_json(parsed(precision_json))); });
  }
  std::int64_t weight_bytes(const std::string& precision_json) {
    return translated([&] {
      return core_->decoder().weight_bytes(
          *core_->assignment(precision_from_json(parsed(precision_json))));
    });
  }
  std::int64_t cache_bytes_per_token() { return core_->cache_bytes_per_token(); }
  std::int64_t max_sequence_length() { return core_->max_sequence_length(); }

 private:
  std::unique_ptr<EngineCore> core_;
};

using EnginePtr = c10::intrusive_ptr<PythonEngine>;

EnginePtr wrapped(std::unique_ptr<EngineCore> core) {
  return c10::make_intrusive<PythonEngine>(std::move(core));
}

// lut_bits, cell_groups and group_size of an object.
CodebookForm form_of(const Json& json) {
  return {.lut_bits = json.at("lut_bits").get<int>(),
          .cell_groups = parse_cell_groups(json.at("cell_groups").get<std::string>()),
          .group_size = json.at("group_size").get<std::int64_t>()};
}

EnginePtr from_directory(const std::string& directory, const std::string& options_json) {
  return translated(
      [&] { return wrapped(open_checkpoint(directory, options_from_json(parsed(options_json)))); });
}

// tensors: what a Hugging Face model holds already. modules: [[name, N, K], ...], in the order of
// its precision controller; codebook: lut_bits, cell_groups, group_size.
EnginePtr from_tensors(const std::string& config_json, const std::string& layout_json,
                       const c10::Dict<std::string, at::Tensor>& tensors,
                       const std::string& options_json) {
  return translated([&] {
    const EngineOptions options = options_from_json(parsed(options_json));
    ModelConfig config = read_model_config(config_json, "config.json");
    const Json layout = parsed(layout_json);
    CheckpointConfig checkpoint;
    checkpoint.codebook = form_of(layout.at("codebook"));
    for (const Json& module : layout.at("modules")) {
      checkpoint.modules.push_back({.name = module.at(0).get<std::string>(),
                                    .out_features = module.at(1).get<std::int64_t>(),
                                    .in_features = module.at(2).get<std::int64_t>()});
    }
    std::map<std::string, at::Tensor> named;
    for (const auto& entry : tensors) named.emplace(entry.key(), entry.value());
    const auto source = tensor_source(std::move(named), checkpoint, options.precisions,
                                      engine_dtype(options, config));
    return wrapped(make_core(std::move(config), *source, options));
  });
}

// weights_json: precisions (empty: dense), quantize_head, and of a codebook lut_bits, cell_groups
// and group_size.
EnginePtr from_shape(const std::string& config_json, const std::string& weights_json,
                     const std::string& options_json) {
  return translated([&] {
    const EngineOptions options = options_from_json(parsed(options_json));
    ModelConfig config = read_model_config(config_json, "config.json");
    const Json json = parsed(weights_json);
    RandomWeights what;
    what.precisions = json.at("precisions").get<std::vector<int>>();
    what.quantize_head = json.at("quantize_head").get<bool>();
    what.form = form_of(json);
    what.form.validate();
    const auto source = random_source(config, std::move(what), engine_device(options),
                                      engine_dtype(options, config));
    return wrapped(make_core(std::move(config), *source, options));
  });
}

// The reason why the engine cannot run a model with this config.json, or an empty string.
std::string refusal(const std::string& config_json) {
  try {
    read_model_config(config_json, "config.json");
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace
}  // namespace anyprec::engine

TORCH_LIBRARY_FRAGMENT(anyprec, m) {
  using anyprec::engine::PythonEngine;
  m.class_<PythonEngine>("Engine")
      .def("submit", &PythonEngine::submit)
      .def("step", &PythonEngine::step)
      .def("stop", &PythonEngine::stop)
      .def("idle", &PythonEngine::idle)
      .def("logits", &PythonEngine::logits)
      .def("weight_bytes", &PythonEngine::weight_bytes)
      .def("cache_bytes_per_token", &PythonEngine::cache_bytes_per_token)
      .def("max_sequence_length", &PythonEngine::max_sequence_length);
  m.def("engine_from_directory", &anyprec::engine::from_directory);
  m.def("engine_from_tensors", &anyprec::engine::from_tensors);
  m.def("engine_from_shape", &anyprec::engine::from_shape);
  m.def("engine_refusal", &anyprec::engine::refusal);
}
