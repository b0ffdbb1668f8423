#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "anyprec/engine.h"
#include "src/engine/block_pool.h"
#include "src/engine/decode_graph.h"
#include "src/engine/decoder.h"
#include "src/engine/key_value_cache.h"
#include "src/engine/precisions.h"
#include "src/engine/step_buffers.h"

namespace anyprec::engine {

/// A sequence that waits or runs.
struct Sequence {
  std::int64_t id = 0;
  std::vector<std::int64_t> tokens;  ///< prompt and what came after
  std::size_t prompt = 0;            ///< tokens of the prompt
  std::size_t computed = 0;          ///< tokens whose keys and values are in the cache
  std::size_t limit = 0;             ///< tokens at most
  std::vector<std::int32_t> blocks;  ///< empty while it waits
  std::vector<std::int64_t> stop_tokens;
  SharedAssignment prefill;
  SharedAssignment decode;
  Sampling sampling;

  bool decoding() const { return computed >= prompt; }
  /// Whether the token that the newest pass gives has not been read yet.
  bool in_flight() const { return decoding() && tokens.size() <= computed; }
  /// New tokens before the one that the newest pass gives.
  std::size_t drawn() const { return computed - prompt; }
};

/// Tokens that the device draws, on their way to the host.
struct Flight {
  std::vector<std::int64_t> sequences;  ///< ids, one a row
  at::Tensor drawn;                     ///< int64 [rows] on the device
  at::Tensor tokens;                    ///< the same on the host, there after `landed`
  std::optional<c10::Event> landed;     ///< none on a CPU
};

/// What Engine does, on libtorch tensors: scheduling, cache, passes of the decoder, sampling.
class EngineCore {
 public:
  EngineCore(ModelConfig config, DecoderWeights weights, const EngineOptions& options);
  /// Waits for a step that was launched ahead: it writes into the cache.
  ~EngineCore();
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  std::int64_t submit(const Request& request);
  std::vector<TokenEvent> step();
  void stop(std::int64_t id);
  bool idle() const { return waiting_.empty() && running_.empty(); }
  std::vector<std::int64_t> generate(const Request& request);

  /// Logits of every token, fp32 [T, vocabulary] on the CPU's or GPU's side where the model is.
  /// Throws InvalidArgument where they do not fit into what is free of the cache.
  at::Tensor logits(std::span<const std::int64_t> tokens, const Precision& precision);

  const Decoder& decoder() const { return decoder_; }
  std::int64_t max_sequence_length() const { return max_length_; }
  SharedAssignment assignment(const Precision& precision);
  /// Bytes of keys and values of one token, all layers.
  std::int64_t cache_bytes_per_token() const;

 private:
  void admit();
  void check_tokens(std::span<const std::int64_t> tokens) const;
  std::int64_t blocks_for(std::size_t tokens) const;
  void read_prompts(std::vector<TokenEvent>& events);
  /// Launches a decode step of sequences of one precision. before: the flight, of the same
  /// sequences, that has their newest tokens; null: the host has them.
  Flight decode(const std::vector<Sequence*>& group, const Flight* before);
  /// Launches the drawing of the next token of each.
  Flight draw(const at::Tensor& logits, const std::vector<Sequence*>& rows);
  /// Waits for the tokens and gives them to those of the sequences that still run.
  void land(const Flight& flight, std::vector<TokenEvent>& events);
  /// All running sequences, where all are in this flight and will want another token whatever
  /// theirs are; else none.
  std::vector<Sequence*> next_of(const Flight& flight);
  Sequence* running(std::int64_t id);
  void finish(std::int64_t id);
  void fill_chunk(StepBuffers& buffers, std::int64_t index, std::int64_t row,
                  const Sequence& sequence, std::size_t count) const;
  StepBuffers& decode_buffers(std::int64_t rows);

  EngineOptions options_;
  std::int64_t max_length_;  ///< tokens of the longest sequence
  Decoder decoder_;
  at::Device device_;
  std::optional<c10::Stream> stream_;  ///< the engine's own; none on a CPU
  std::int64_t table_width_;           ///< blocks of the longest sequence
  KeyValueCache cache_;
  BlockPool pool_;
  std::unique_ptr<DecodeGraphs> graphs_;  ///< null: passes are launched kernel by kernel
  bool run_ahead_ = false;
  std::map<Assignment, SharedAssignment> assignments_;
  std::map<std::int64_t, StepBuffers> decode_buffers_;
  std::list<Sequence> waiting_;
  std::list<Sequence> running_;
  std::optional<Flight> flight_;  ///< of a decode step that was launched ahead
  std::int64_t next_id_ = 0;
};

/// Tensors' device and dtype that options and config ask for. Throws InvalidArgument.
at::Device engine_device(const EngineOptions& options);
at::ScalarType engine_dtype(const EngineOptions& options, const ModelConfig& config);

}  // namespace anyprec::engine
