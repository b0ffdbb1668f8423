#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "anyprec/checkpoint.h"
#include "src/engine/config.h"
#include "src/engine/projection.h"

namespace anyprec::engine {

struct LayerWeights {
  at::Tensor input_norm;           ///< before attention, [hidden]
  at::Tensor post_attention_norm;  ///< of attention's result; norms_around only
  at::Tensor mlp_norm;             ///< before the MLP
  at::Tensor post_mlp_norm;        ///< of the MLP's result; norms_around only
  at::Tensor query_norm;           ///< [head_dim]; query_key_norm only
  at::Tensor key_norm;
  ProjectionGroup query_key_value;
  ProjectionGroup attention_output;
  ProjectionGroup gate_up;
  ProjectionGroup down;
};

struct DecoderWeights {
  at::Tensor embedding;  ///< [vocabulary, hidden], may be `narrowed`
  std::vector<LayerWeights> layers;
  at::Tensor norm;
  ProjectionGroup head;
  std::vector<std::string> quantized;  ///< names, in the order of an Assignment
  std::vector<int> precisions;         ///< loaded, rising
};

/// A quantized projection that has no tensors yet.
Projection empty_projection(const QuantizedModule& module, std::size_t index,
                            const CodebookForm& form);

/// How large the linears are that stand for pieces of these sizes side by side: one each where
/// there are as many names, else one name for all of them.
std::vector<std::int64_t> sizes_of(const std::vector<std::string>& names,
                                   const std::vector<std::int64_t>& pieces);

/// Where tensors come from. Everything is handed out on the engine's device; dense tensors in the
/// activations' dtype.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// The quantized linears in the order of an Assignment, and the loaded precisions.
  virtual const std::vector<QuantizedModule>& modules() const = 0;
  virtual const std::vector<int>& precisions() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  virtual at::Tensor dense(const std::string& name) = 0;
  /// Planes and codebooks of modules()[index], without bias.
  virtual Projection quantized(std::size_t index) = 0;
  /// The names of all dense tensors that are there.
  virtual std::vector<std::string> dense_names() const = 0;
};

/// A checkpoint's tensors. Borrows the checkpoint.
std::unique_ptr<WeightSource> checkpoint_source(const Checkpoint& checkpoint, at::Device device,
                                                at::ScalarType dtype);

/// Tensors that live elsewhere already (a Hugging Face model's): dense ones by name, and of each
/// quantized linear P `P.planes` as packed for its device, `P.lut_<b>` and `P.alpha_<b>`. Nothing
/// is copied.
std::unique_ptr<WeightSource> tensor_source(std::map<std::string, at::Tensor> tensors,
                                            const CheckpointConfig& config,
                                            std::vector<int> precisions, at::ScalarType dtype);

/// Collects a decoder's weights and checks every shape. Throws FormatError where one is missing or
/// has another shape, UnsupportedModel where the source has a tensor of the decoder that the
/// engine would not use.
DecoderWeights load_weights(const ModelConfig& config, WeightSource& source);

}  // namespace anyprec::engine
