#include "src/engine/request_json.h"

#include "anyprec/error.h"

namespace anyprec::engine {
namespace {

using format::Json;

template <typename T>
void read(const Json& value, const std::string& key, T& to) {
  try {
    value.get_to(to);
  } catch (const Json::exception&) {
    throw InvalidArgument(key + ": found " + format::shown(value.dump()) +
                          ", wanted another type of value");
  }
}

[[noreturn]] void unknown(const std::string& what, const std::string& key) {
  throw InvalidArgument(what + ": found " + format::shown(key) + ", which is none of its keys");
}

Sampling sampling_from_json(const Json& json) {
  Sampling sampling;
  for (const auto& [key, value] : json.items()) {
    if (key == "temperature") {
      read(value, key, sampling.temperature);
    } else if (key == "top_k") {
      read(value, key, sampling.top_k);
    } else if (key == "top_p") {
      read(value, key, sampling.top_p);
    } else if (key == "min_p") {
      read(value, key, sampling.min_p);
    } else if (key == "repetition_penalty") {
      read(value, key, sampling.repetition_penalty);
    } else if (key == "seed") {
      read(value, key, sampling.seed);
    } else {
      unknown("sampling", key);
    }
  }
  return sampling;
}

}  // namespace

Precision precision_from_json(const Json& json) {
  if (json.is_number_integer()) return Precision(json.get<int>());
  std::vector<std::pair<std::string, int>> patterns;
  read(json, "precision", patterns);
  return Precision(std::move(patterns));
}

EngineOptions options_from_json(const Json& json) {
  EngineOptions options;
  for (const auto& [key, value] : json.items()) {
    if (key == "device") {
      read(value, key, options.device);
    } else if (key == "dtype") {
      read(value, key, options.dtype);
    } else if (key == "precisions") {
      read(value, key, options.precisions);
    } else if (key == "max_sequence_length") {
      read(value, key, options.max_sequence_length);
    } else if (key == "cache_tokens") {
      read(value, key, options.cache_tokens);
    } else if (key == "block_size") {
      read(value, key, options.block_size);
    } else if (key == "max_batch") {
      read(value, key, options.max_batch);
    } else if (key == "prefill_chunk") {
      read(value, key, options.prefill_chunk);
    } else if (key == "cuda_graphs") {
      read(value, key, options.cuda_graphs);
    } else if (key == "run_ahead") {
      read(value, key, options.run_ahead.emplace());
    } else {
      unknown("engine options", key);
    }
  }
  return options;
}

Request request_from_json(const Json& json) {
  Request request;
  for (const auto& [key, value] : json.items()) {
    if (key == "max_new_tokens") {
      read(value, key, request.max_new_tokens);
    } else if (key == "stop_tokens") {
      read(value, key, request.stop_tokens);
    } else if (key == "precision") {
      request.precision = precision_from_json(value);
    } else if (key == "prefill_precision") {
      request.prefill_precision = precision_from_json(value);
    } else if (key == "sampling") {
      request.sampling = sampling_from_json(value);
    } else {
      unknown("request", key);
    }
  }
  return request;
}

}  // namespace anyprec::engine
