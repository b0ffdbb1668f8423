#include "src/engine/decode_graph.h"

namespace anyprec::engine {

std::int64_t graph_rows(std::int64_t rows) {
  // Powers of two up to 8, where kernels differ most, then multiples of 8.
  std::int64_t bucket = 1;
  while (bucket < rows && bucket < 8) bucket *= 2;
  return rows <= bucket ? bucket : (rows + 7) / 8 * 8;
}

#ifndef ANYPREC_ENGINE_ON_CUDA
std::unique_ptr<DecodeGraphs> make_decode_graphs(const Decoder&, KeyValueCache&) { return nullptr; }
#endif

}  // namespace anyprec::engine
