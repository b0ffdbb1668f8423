#include "src/engine/core.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <exception>
#include <string>
#include <utility>

#include "anyprec/error.h"
#include "src/engine/sampler.h"

namespace anyprec::engine {
namespace {

std::string text(std::int64_t number) { return std::to_string(number); }

std::int64_t positive(std::int64_t value, const char* name) {
  if (value < 1)
    throw InvalidArgument(std::string(name) + ": found " + text(value) + ", wanted 1 or more");
  return value;
}

std::int64_t rounded_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t longest(const EngineOptions& options, const ModelConfig& config) {
  const std::int64_t cache = positive(options.cache_tokens, "cache_tokens");
  if (options.max_sequence_length == 0) return std::min(config.max_positions, cache);
  const std::int64_t wanted = positive(options.max_sequence_length, "max_sequence_length");
  if (wanted > config.max_positions || wanted > cache) {
    throw InvalidArgument("max_sequence_length: found " + text(wanted) + ", wanted at most " +
                          text(std::min(config.max_positions, cache)) +
                          " (the model's positions and cache_tokens)");
  }
  return wanted;
}

// The sizes of heads that attention has kernels for (src/engine/ops/ops.h).
void check_heads(const ModelConfig& config, at::Device device) {
  constexpr std::array<std::int64_t, 4> kOnGpu = {64, 96, 128, 256};
  if (device.is_cpu()) return;
  if (std::find(kOnGpu.begin(), kOnGpu.end(), config.head_dim) != kOnGpu.end()) return;
  throw UnsupportedModel("head_dim: found " + text(config.head_dim) +
                         ", the engine has 64, 96, 128 and 256 on a GPU");
}

std::optional<c10::Stream> own_stream(at::Device device) {
  if (device.is_cpu()) return std::nullopt;
  const c10::impl::VirtualGuardImpl guard(device.type());
  // Whatever the weights were made on has to be done.
  guard.getStream(device).synchronize();
  return guard.getStreamFromGlobalPool(device, false);
}

}  // namespace

at::Device engine_device(const EngineOptions& options) {
  at::Device device(at::kCPU);
  try {
    device = at::Device(options.device);
  } catch (const c10::Error&) {
    throw InvalidArgument("device: found '" + options.device + "', wanted cpu, cuda or cuda:N");
  }
  if (device.is_cpu()) return at::kCPU;
#ifdef ANYPREC_ENGINE_ON_CUDA
  if (device.is_cuda()) {
    if (!at::hasCUDA())
      throw InvalidArgument("device: found '" + options.device + "', but libtorch sees no GPU");
    return device.has_index() ? device : at::Device(at::kCUDA, 0);
  }
#endif
  throw InvalidArgument("device: found '" + options.device +
                        "', which this build of anyprec has no operators for");
}

at::ScalarType engine_dtype(const EngineOptions& options, const ModelConfig& config) {
  std::string name = options.dtype;
  if (name == "auto") {
    const bool half = !engine_device(options).is_cpu() && !config.dtype.empty();
    name = half ? config.dtype : "float32";
  }
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw InvalidArgument("dtype: found '" + name + "', wanted auto, float32, bfloat16 or float16");
}

EngineCore::EngineCore(ModelConfig config, DecoderWeights weights, const EngineOptions& options)
    : options_(options),
      max_length_(longest(options, config)),
      decoder_(std::move(config), std::move(weights), max_length_),
      device_(decoder_.weights().embedding.device()),
      stream_(own_stream(device_)),
      table_width_(0),
      pool_(rounded_up(options.cache_tokens, positive(options.block_size, "block_size")) /
            options.block_size) {
  check_heads(decoder_.config(), device_);
  positive(options.max_batch, "max_batch");
  positive(options.prefill_chunk, "prefill_chunk");
  table_width_ = blocks_for(static_cast<std::size_t>(max_length_));
  const c10::OptionalStreamGuard guard(stream_);
  cache_ = make_cache(decoder_.config(), pool_.free(), options.block_size, decoder_.options());
  if (!device_.is_cpu() && options.cuda_graphs) graphs_ = make_decode_graphs(decoder_, cache_);
  run_ahead_ = options.run_ahead.value_or(graphs_ != nullptr);
}

EngineCore::~EngineCore() {
  if (!flight_ || !stream_) return;
  try {
    stream_->synchronize();
  } catch (const std::exception&) {  // of an error on the device, which its next user hears of
  }
}

std::int64_t EngineCore::blocks_for(std::size_t tokens) const {
  return rounded_up(static_cast<std::int64_t>(tokens), options_.block_size) / options_.block_size;
}

std::int64_t EngineCore::cache_bytes_per_token() const {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < cache_.keys.size(); ++i) {
    bytes += static_cast<std::int64_t>(cache_.keys[i].nbytes() + cache_.values[i].nbytes());
  }
  return bytes / (cache_.blocks * cache_.block_size);
}

void EngineCore::check_tokens(std::span<const std::int64_t> tokens) const {
  if (tokens.empty()) throw InvalidArgument("prompt: found no tokens, wanted at least one");
  for (const std::int64_t token : tokens) {
    if (token < 0 || token >= decoder_.config().vocabulary) {
      throw InvalidArgument("prompt: found token " + text(token) + ", the vocabulary has " +
                            text(decoder_.config().vocabulary));
    }
  }
}

SharedAssignment EngineCore::assignment(const Precision& precision) {
  const std::vector<int>& loaded = decoder_.weights().precisions;
  const Precision widest = loaded.empty() ? Precision() : Precision(loaded.back());
  SharedAssignment found = resolve(precision.patterns.empty() ? widest : precision,
                                   decoder_.weights().quantized, loaded);
  return assignments_.try_emplace(*found, found).first->second;
}

std::int64_t EngineCore::submit(const Request& request) {
  check_tokens(request.prompt);
  check_sampling(request.sampling);
  positive(request.max_new_tokens, "max_new_tokens");
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  if (prompt >= max_length_) {
    throw InvalidArgument("prompt: found " + text(prompt) + " tokens, wanted fewer than the " +
                          text(max_length_) + " of the longest sequence");
  }
  const std::int64_t room = max_length_ - prompt;
  Sequence sequence;
  sequence.tokens = request.prompt;
  sequence.prompt = request.prompt.size();
  sequence.limit = static_cast<std::size_t>(prompt + std::min(request.max_new_tokens, room));
  sequence.stop_tokens = request.stop_tokens;
  sequence.decode = assignment(request.precision);
  sequence.prefill =
      request.prefill_precision ? assignment(*request.prefill_precision) : sequence.decode;
  sequence.sampling = request.sampling;
  sequence.tokens.reserve(sequence.limit);
  sequence.id = next_id_++;
  waiting_.push_back(std::move(sequence));
  return waiting_.back().id;
}

void EngineCore::admit() {
  while (!waiting_.empty() && static_cast<std::int64_t>(running_.size()) < options_.max_batch) {
    const std::int64_t blocks = blocks_for(waiting_.front().limit);
    if (blocks > pool_.free()) break;
    waiting_.front().blocks = pool_.take(blocks);
    running_.splice(running_.end(), waiting_, waiting_.begin());
  }
}

Sequence* EngineCore::running(std::int64_t id) {
  const auto has_id = [id](const Sequence& each) { return each.id == id; };
  const auto found = std::find_if(running_.begin(), running_.end(), has_id);
  return found == running_.end() ? nullptr : &*found;
}

void EngineCore::finish(std::int64_t id) {
  const Sequence* const found = running(id);
  if (found == nullptr) return;
  pool_.give_back(found->blocks);
  running_.remove_if([found](const Sequence& each) { return &each == found; });
}

void EngineCore::stop(std::int64_t id) {
  waiting_.remove_if([id](const Sequence& each) { return each.id == id; });
  finish(id);
}

std::vector<TokenEvent> EngineCore::step() {
  const c10::InferenceMode inference;
  const c10::OptionalStreamGuard guard(stream_);
  admit();
  // Those that decode now; a prompt that is read in this step has its first token of it.
  std::vector<std::pair<SharedAssignment, std::vector<Sequence*>>> groups;
  for (Sequence& sequence : running_) {
    if (!sequence.decoding() || sequence.in_flight()) continue;
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& each) { return each.first == sequence.decode; });
    if (group == groups.end()) group = groups.insert(groups.end(), {sequence.decode, {}});
    group->second.push_back(&sequence);
  }
  std::vector<TokenEvent> events;
  read_prompts(events);
  if (!flight_ && groups.size() == 1) {
    flight_ = decode(groups.front().second, nullptr);
    groups.clear();
  }
  if (flight_) {
    const std::vector<Sequence*> next = next_of(*flight_);
    std::optional<Flight> ahead;
    if (!next.empty()) ahead = decode(next, &*flight_);
    land(*flight_, events);
    flight_ = std::move(ahead);
  }
  for (const auto& [precision, group] : groups) land(decode(group, nullptr), events);
  std::sort(events.begin(), events.end(),
            [](const TokenEvent& a, const TokenEvent& b) { return a.sequence < b.sequence; });
  for (const TokenEvent& event : events) {
    if (event.finish != Finish::kNot) finish(event.sequence);
  }
  return events;
}

void EngineCore::fill_chunk(StepBuffers& buffers, std::int64_t index, std::int64_t row,
                            const Sequence& sequence, std::size_t count) const {
  const auto block_size = static_cast<std::size_t>(options_.block_size);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t position = sequence.computed + i;
    const auto at = static_cast<std::size_t>(row) + i;
    // One that is in flight comes from the device.
    buffers.tokens()[at] = position < sequence.tokens.size() ? sequence.tokens[position] : 0;
    buffers.positions()[at] = static_cast<std::int32_t>(position);
    buffers.slots()[at] = sequence.blocks[position / block_size] * options_.block_size +
                          static_cast<std::int64_t>(position % block_size);
  }
  const auto at = static_cast<std::size_t>(index);
  buffers.sequence_start()[at] = static_cast<std::int32_t>(row);
  buffers.sequence_start()[at + 1] =
      static_cast<std::int32_t>(row) + static_cast<std::int32_t>(count);
  buffers.lengths()[at] = static_cast<std::int32_t>(sequence.computed + count);
  const std::span<std::int32_t> table = buffers.blocks(index);
  const auto end = std::copy(sequence.blocks.begin(), sequence.blocks.end(), table.begin());
  std::fill(end, table.end(), 0);
}

void EngineCore::read_prompts(std::vector<TokenEvent>& events) {
  std::vector<std::pair<Sequence*, std::size_t>> chunks;  // and how many tokens of each
  auto budget = static_cast<std::size_t>(options_.prefill_chunk);
  SharedAssignment precision;
  std::int64_t complete = 0;
  for (Sequence& sequence : running_) {
    if (sequence.decoding() || budget == 0) continue;
    if (precision && precision != sequence.prefill) continue;
    precision = sequence.prefill;
    const std::size_t count = std::min(budget, sequence.prompt - sequence.computed);
    budget -= count;
    complete += sequence.computed + count == sequence.prompt ? 1 : 0;
    chunks.emplace_back(&sequence, count);
  }
  if (chunks.empty()) return;

  std::int64_t rows = 0;
  for (const auto& [sequence, count] : chunks) rows += static_cast<std::int64_t>(count);
  StepBuffers buffers(rows, static_cast<std::int64_t>(chunks.size()), table_width_, complete,
                      device_);
  std::vector<Sequence*> done;
  std::int64_t row = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    auto& [sequence, count] = chunks[i];
    fill_chunk(buffers, static_cast<std::int64_t>(i), row, *sequence, count);
    row += static_cast<std::int64_t>(count);
    sequence->computed += count;
    if (!sequence->decoding()) continue;
    buffers.logit_rows()[done.size()] = row - 1;
    done.push_back(sequence);
  }
  buffers.upload();
  const at::Tensor logits = decoder_.forward(buffers.batch(), cache_, *precision);
  if (!done.empty()) land(draw(logits, done), events);
}

StepBuffers& EngineCore::decode_buffers(std::int64_t rows) {
  auto found = decode_buffers_.find(rows);
  if (found == decode_buffers_.end()) {
    found =
        decode_buffers_.try_emplace(rows, rows, rows, table_width_, StepBuffers::kEveryRow, device_)
            .first;
  }
  return found->second;
}

std::vector<Sequence*> EngineCore::next_of(const Flight& flight) {
  if (!run_ahead_ || flight.sequences.size() != running_.size()) return {};
  std::vector<Sequence*> sequences;
  for (const std::int64_t id : flight.sequences) {
    Sequence* const sequence = running(id);
    // The penalty is of all tokens, and the last is not there yet.
    if (sequence == nullptr || sequence->tokens.size() + 1 >= sequence->limit ||
        sequence->sampling.repetition_penalty != 1) {
      return {};
    }
    sequences.push_back(sequence);
  }
  return sequences;
}

Flight EngineCore::decode(const std::vector<Sequence*>& group, const Flight* before) {
  const auto count = static_cast<std::int64_t>(group.size());
  StepBuffers& buffers = decode_buffers(graphs_ ? graph_rows(count) : count);
  const SharedAssignment& precision = group.front()->decode;
  for (std::int64_t i = 0; i < count; ++i) {
    fill_chunk(buffers, i, i, *group[static_cast<std::size_t>(i)], 1);
  }
  // Rows that fill a graph up read one token of block 0 and write none.
  const std::int64_t rows = buffers.batch().tokens.size(0);
  for (auto i = static_cast<std::size_t>(count); i < static_cast<std::size_t>(rows); ++i) {
    buffers.tokens()[i] = 0;
    buffers.positions()[i] = 0;
    buffers.slots()[i] = -1;
    buffers.sequence_start()[i + 1] = static_cast<std::int32_t>(i + 1);
    buffers.lengths()[i] = 1;
    const auto table = buffers.blocks(static_cast<std::int64_t>(i));
    std::fill(table.begin(), table.end(), 0);
  }
  buffers.upload();
  if (before != nullptr) buffers.batch().tokens.narrow(0, 0, count).copy_(before->drawn);
  const at::Tensor logits = graphs_ ? graphs_->replay(buffers, precision)
                                    : decoder_.forward(buffers.batch(), cache_, *precision);
  for (Sequence* const sequence : group) ++sequence->computed;
  return draw(logits.narrow(0, 0, count), group);
}

Flight EngineCore::draw(const at::Tensor& logits, const std::vector<Sequence*>& rows) {
  Flight flight;
  for (const Sequence* const sequence : rows) flight.sequences.push_back(sequence->id);
  flight.drawn = sample_tokens(logits, rows);
  if (!stream_) {
    flight.tokens = flight.drawn;
    return flight;
  }
  flight.tokens = at::empty(flight.drawn.sizes(), at::TensorOptions(at::kLong).pinned_memory(true));
  flight.tokens.copy_(flight.drawn, /*non_blocking=*/true);
  flight.landed.emplace(device_.type());
  flight.landed->record(*stream_);
  return flight;
}

void EngineCore::land(const Flight& flight, std::vector<TokenEvent>& events) {
  if (flight.landed) flight.landed->synchronize();
  const std::int64_t* token_of_row = flight.tokens.const_data_ptr<std::int64_t>();
  for (const std::int64_t id : flight.sequences) {
    const std::int64_t token = *token_of_row++;
    Sequence* const found = running(id);
    if (found == nullptr) continue;  // it ended while this was on its way
    Sequence& sequence = *found;
    sequence.tokens.push_back(token);
    const std::vector<std::int64_t>& stops = sequence.stop_tokens;
    Finish finish = Finish::kNot;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      finish = Finish::kStopToken;
    } else if (sequence.tokens.size() >= sequence.limit) {
      finish = Finish::kLength;
    }
    events.push_back({.sequence = sequence.id, .token = token, .finish = finish});
  }
}

std::vector<std::int64_t> EngineCore::generate(const Request& request) {
  const std::int64_t id = submit(request);
  std::vector<std::int64_t> tokens;
  for (;;) {
    for (const TokenEvent& event : step()) {
      if (event.sequence != id) continue;
      tokens.push_back(event.token);
      if (event.finish != Finish::kNot) return tokens;
    }
  }
}

at::Tensor EngineCore::logits(std::span<const std::int64_t> tokens, const Precision& precision) {
  const c10::InferenceMode inference;
  const c10::OptionalStreamGuard guard(stream_);
  check_tokens(tokens);
  const SharedAssignment chosen = assignment(precision);
  const std::int64_t blocks = blocks_for(tokens.size());
  if (blocks > pool_.free() || static_cast<std::int64_t>(tokens.size()) > max_length_) {
    throw InvalidArgument(
        "tokens: found " + text(static_cast<std::int64_t>(tokens.size())) + ", wanted at most " +
        text(std::min(max_length_, pool_.free() * options_.block_size)) + " (free in the cache)");
  }
  Sequence sequence;
  sequence.tokens.assign(tokens.begin(), tokens.end());
  sequence.blocks = pool_.take(blocks);
  std::vector<at::Tensor> parts;
  try {
    while (sequence.computed < tokens.size()) {
      const std::size_t count = std::min(static_cast<std::size_t>(options_.prefill_chunk),
                                         tokens.size() - sequence.computed);
      StepBuffers buffers(static_cast<std::int64_t>(count), 1, table_width_, StepBuffers::kEveryRow,
                          device_);
      fill_chunk(buffers, 0, 0, sequence, count);
      buffers.upload();
      parts.push_back(decoder_.forward(buffers.batch(), cache_, *chosen).to(at::kFloat));
      if (stream_) stream_->synchronize();
      sequence.computed += count;
    }
  } catch (...) {
    pool_.give_back(sequence.blocks);
    throw;
  }
  pool_.give_back(sequence.blocks);
  const at::Tensor all = at::cat(parts);
  if (stream_) stream_->synchronize();
  return all;
}

}  // namespace anyprec::engine
