#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

// The decode engine: from a checkpoint directory to tokens without Python. Tokens go in and come
// out; tokenization stays with the caller. Link anyprec::torch (no torch type appears here).
namespace anyprec {

/// How a model is loaded and what it may hold.
struct EngineOptions {
  std::string device = "cpu";   ///< "cpu", "cuda" or "cuda:<index>"
  std::string dtype = "auto";   ///< of activations and cache: "float32", "bfloat16", "float16";
                                ///< auto: float32 on a CPU, else the checkpoint's
  std::vector<int> precisions;  ///< to load, rising; empty: all of the checkpoint
  std::int64_t max_sequence_length = 0;  ///< tokens of one sequence; 0: the model's, or the cache's
  std::int64_t cache_tokens = 4096;      ///< tokens whose keys and values fit, of all sequences
  std::int64_t block_size = 16;          ///< tokens of one block of the cache
  std::int64_t max_batch = 32;           ///< sequences that run at the same time
  std::int64_t prefill_chunk = 512;      ///< prompt tokens of one step, of all sequences
  bool cuda_graphs = true;               ///< capture decode steps, one graph a precision and batch
  std::optional<bool> run_ahead;  ///< launch a decode step before the tokens of the one before are
                                  ///< read, so that a GPU does not wait for the host; the tokens
                                  ///< are the same. Unset: on a GPU with cuda_graphs
};

/// A precision for every quantized linear: one number, or glob patterns of linears' names of which
/// the first that matches decides.
struct Precision {
  std::vector<std::pair<std::string, int>> patterns;
  Precision() = default;  ///< the widest that is loaded
  Precision(int bits) : patterns{{"*", bits}} {}
  explicit Precision(std::vector<std::pair<std::string, int>> map) : patterns(std::move(map)) {}
};

/// How the next token is drawn. Temperature 0 takes the likeliest. The filters apply in the order
/// of transformers: repetition penalty (CTRL, arXiv 1909.05858), temperature, top-k, top-p
/// (arXiv 1904.09751), min-p (arXiv 2407.01082). The same seed gives the same tokens.
struct Sampling {
  double temperature = 0;
  std::int64_t top_k = 0;  ///< 0: all
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  std::uint64_t seed = 0;
};

struct Request {
  std::vector<std::int64_t> prompt;  ///< at least one token
  std::int64_t max_new_tokens = 128;
  std::vector<std::int64_t> stop_tokens;       ///< the one that comes is still reported
  Precision precision;                         ///< of decoding
  std::optional<Precision> prefill_precision;  ///< of the prompt; that of decoding by default
  Sampling sampling;
};

enum class Finish {
  kNot,        ///< more tokens will come
  kStopToken,  ///< this token is a stop token
  kLength,     ///< max_new_tokens, or the longest sequence, is reached
};

/// One token of one sequence.
struct TokenEvent {
  std::int64_t sequence = 0;
  std::int64_t token = 0;
  Finish finish = Finish::kNot;
};

/// Decodes any number of sequences together. Each `step` advances every running sequence: a chunk
/// of waiting prompts, then one token of every sequence that is decoding, sequences of one
/// precision in one pass. A sequence starts as soon as a place in the batch and room in the cache
/// for all its tokens are free, in order of submission. Not thread-safe.
class Engine {
 public:
  /// Throws UnsupportedModel where config.json asks for what the engine lacks, FormatError,
  /// PrecisionError and IoError as Checkpoint does, InvalidArgument for the options.
  explicit Engine(const std::filesystem::path& checkpoint, const EngineOptions& options = {});
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Queues a sequence and returns its number. Throws InvalidArgument for a token outside the
  /// vocabulary, or a sequence that can never fit; PrecisionError for a precision not loaded.
  std::int64_t submit(const Request& request);
  /// Advances all sequences; the tokens that came, by sequence in order of submission. Empty when
  /// there is nothing to do, and in a step that only read prompts.
  std::vector<TokenEvent> step();
  /// Ends a sequence at once; one that is not there (any more) is ignored.
  void stop(std::int64_t sequence);
  /// Whether no sequence is waiting or running.
  bool idle() const;
  /// Submits, and steps until that sequence is done: its new tokens.
  std::vector<std::int64_t> generate(const Request& request);

  /// The loaded precisions, rising.
  const std::vector<int>& precisions() const;
  std::int64_t vocabulary() const;
  std::int64_t max_sequence_length() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace anyprec
