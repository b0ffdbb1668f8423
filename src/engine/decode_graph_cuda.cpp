#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>

#include <map>
#include <utility>

#include "src/engine/decode_graph.h"

namespace anyprec::engine {
namespace {

class CapturedGraphs final : public DecodeGraphs {
 public:
  CapturedGraphs(const Decoder& decoder, KeyValueCache& cache)
      : decoder_(decoder), cache_(cache), pool_(at::cuda::graph_pool_handle()) {}

  at::Tensor replay(const StepBuffers& buffers, const SharedAssignment& assignment) override {
    const Key key(assignment, buffers.batch().tokens.size(0));
    auto found = captured_.find(key);
    if (found == captured_.end())
      found = captured_.emplace(key, capture(buffers, *assignment)).first;
    found->second.graph->replay();
    return found->second.logits;
  }

 private:
  // The assignment is held, so that no other can get its address.
  using Key = std::pair<SharedAssignment, std::int64_t>;
  struct Captured {
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    at::Tensor logits;
  };

  Captured capture(const StepBuffers& buffers, const Assignment& assignment) {
    // Libraries make their handles and load their kernels in a pass outside the capture. What it
    // writes into the cache is what the replay writes.
    decoder_.forward(buffers.batch(), cache_, assignment);
    Captured captured{.graph = std::make_unique<at::cuda::CUDAGraph>(), .logits = {}};
    captured.graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    try {
      captured.logits = decoder_.forward(buffers.batch(), cache_, assignment);
    } catch (...) {
      try {  // the capture must end, and the first error is the one to tell
        captured.graph->capture_end();
      } catch (...) {
      }
      throw;
    }
    captured.graph->capture_end();
    return captured;
  }

  const Decoder& decoder_;
  KeyValueCache& cache_;
  at::cuda::MempoolId_t pool_;
  std::map<Key, Captured> captured_;
};

}  // namespace

std::unique_ptr<DecodeGraphs> make_decode_graphs(const Decoder& decoder, KeyValueCache& cache) {
  return std::make_unique<CapturedGraphs>(decoder, cache);
}

}  // namespace anyprec::engine
