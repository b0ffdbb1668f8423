#include <ATen/ATen.h>

#include <utility>

#include "anyprec/error.h"
#include "anyprec/torch.h"
#include "src/engine/weights.h"

namespace anyprec::engine {
namespace {

at::ScalarType type_of(const TensorView& view) {
  if (view.dtype == "F32") return at::kFloat;
  if (view.dtype == "F16") return at::kHalf;
  if (view.dtype == "BF16") return at::kBFloat16;
  if (view.dtype == "U8") return at::kByte;
  throw FormatError(view.name + ": found dtype " + view.dtype + ", wanted F32, F16, BF16 or U8");
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(const Checkpoint& checkpoint, at::Device device, at::ScalarType dtype)
      : checkpoint_(checkpoint), device_(device), dtype_(dtype) {}

  const std::vector<QuantizedModule>& modules() const override {
    return checkpoint_.config().modules;
  }
  const std::vector<int>& precisions() const override { return checkpoint_.precisions(); }
  bool contains(const std::string& name) const override { return checkpoint_.contains(name); }

  at::Tensor dense(const std::string& name) override {
    return mapped(name).to(at::TensorOptions().device(device_).dtype(dtype_), false, true);
  }

  Projection quantized(std::size_t index) override {
    const QuantizedModule& module = modules()[index];
    Projection projection = empty_projection(module, index, checkpoint_.config().codebook);
    std::vector<at::Tensor> planes;
    for (int i = 0; i < precisions().back(); ++i) {
      planes.push_back(mapped(module.name + ".plane." + std::to_string(i)));
    }
    projection.planes = torch::pack_planes(at::stack(planes).to(device_), projection.in_features);
    for (const int b : precisions()) {
      const auto at = static_cast<std::size_t>(b);
      projection.lut[at] = owned(module.name + ".lut." + std::to_string(b));
      const std::string alpha = module.name + ".alpha." + std::to_string(b);
      if (contains(alpha)) projection.alpha[at] = owned(alpha);
    }
    return projection;
  }

  std::vector<std::string> dense_names() const override {
    std::set<std::string> quantized;
    for (const QuantizedModule& module : modules()) {
      for (int b = 0; b <= kMaxPrecision; ++b) {
        for (const char* kind : {".plane.", ".lut.", ".alpha."}) {
          quantized.insert(module.name + kind + std::to_string(b));
        }
      }
    }
    std::vector<std::string> names;
    for (const std::string& name : checkpoint_.tensor_names()) {
      if (!quantized.contains(name)) names.push_back(name);
    }
    return names;
  }

 private:
  // A view of the mapped file, which nothing writes through.
  at::Tensor mapped(const std::string& name) const {
    const TensorView view = checkpoint_.tensor(name);
    return at::from_blob(const_cast<std::byte*>(view.data), view.shape,
                         at::TensorOptions().dtype(type_of(view)));
  }
  at::Tensor owned(const std::string& name) const {
    return mapped(name).to(at::TensorOptions().device(device_), false, true);
  }

  const Checkpoint& checkpoint_;
  at::Device device_;
  at::ScalarType dtype_;
};

class TensorSource final : public WeightSource {
 public:
  TensorSource(std::map<std::string, at::Tensor> tensors, const CheckpointConfig& config,
               std::vector<int> precisions, at::ScalarType dtype)
      : tensors_(std::move(tensors)),
        modules_(config.modules),
        form_(config.codebook),
        precisions_(std::move(precisions)),
        dtype_(dtype) {}

  const std::vector<QuantizedModule>& modules() const override { return modules_; }
  const std::vector<int>& precisions() const override { return precisions_; }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }
  at::Tensor dense(const std::string& name) override { return find(name).to(dtype_); }

  Projection quantized(std::size_t index) override {
    const QuantizedModule& module = modules_[index];
    Projection projection = empty_projection(module, index, form_);
    projection.planes = find(module.name + ".planes");
    for (const int b : precisions_) {
      const auto at = static_cast<std::size_t>(b);
      projection.lut[at] = find(module.name + ".lut_" + std::to_string(b));
      const std::string alpha = module.name + ".alpha_" + std::to_string(b);
      if (contains(alpha)) projection.alpha[at] = find(alpha);
    }
    return projection;
  }

  std::vector<std::string> dense_names() const override {
    std::set<std::string> quantized;
    for (const QuantizedModule& module : modules_) {
      quantized.insert(module.name + ".planes");
      for (int b = 0; b <= kMaxPrecision; ++b) {
        quantized.insert(module.name + ".lut_" + std::to_string(b));
        quantized.insert(module.name + ".alpha_" + std::to_string(b));
      }
    }
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) {
      if (!quantized.contains(name)) names.push_back(name);
    }
    return names;
  }

 private:
  const at::Tensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw FormatError(name + ": no such tensor was given");
    return found->second;
  }

  std::map<std::string, at::Tensor> tensors_;
  std::vector<QuantizedModule> modules_;
  CodebookForm form_;
  std::vector<int> precisions_;
  at::ScalarType dtype_;
};

}  // namespace

std::unique_ptr<WeightSource> checkpoint_source(const Checkpoint& checkpoint, at::Device device,
                                                at::ScalarType dtype) {
  return std::make_unique<CheckpointSource>(checkpoint, device, dtype);
}

std::unique_ptr<WeightSource> tensor_source(std::map<std::string, at::Tensor> tensors,
                                            const CheckpointConfig& config,
                                            std::vector<int> precisions, at::ScalarType dtype) {
  return std::make_unique<TensorSource>(std::move(tensors), config, std::move(precisions), dtype);
}

}  // namespace anyprec::engine
