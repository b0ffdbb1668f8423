#include "src/engine/ops/ops.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "src/engine/ops/launch.h"
#include "src/ops/checks.h"

namespace anyprec::engine {
namespace {

void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " is on ", tensor.device(),
                    ", wanted on ", like.device());
}

void check_rank(const char* name, const at::Tensor& tensor, std::int64_t rank) {
  TORCH_CHECK_VALUE(tensor.dim() == rank, name, ": found shape ", tensor.sizes(), ", wanted ", rank,
                    " dimensions");
}

/// A contiguous tensor of this dtype and shape, beside `like`.
void check(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes,
           const at::Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": found dtype ", tensor.scalar_type(),
                   ", wanted ", dtype);
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, ": found shape ", tensor.sizes(), ", wanted ",
                    sizes);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, ": wanted a contiguous tensor");
  check_device(name, tensor, like);
}

template <class T>
const T* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

at::Tensor normalize(const at::Tensor& x, const at::Tensor* residual, const at::Tensor& weight,
                     double eps, double offset, BitPlanes* planes) {
  check_rank("x", x, 2);
  const at::Tensor rows = x.contiguous();
  check("weight", weight, x.scalar_type(), {x.size(1)}, x);
  if (residual != nullptr) check("residual", *residual, x.scalar_type(), x.sizes(), x);
  at::Tensor y = at::empty(rows.sizes(), rows.options());
  decoder::RmsNorm norm;
  norm.type = ops::to_scalar_type(x.scalar_type());
  norm.rows = x.size(0);
  norm.columns = x.size(1);
  norm.x = rows.const_data_ptr();
  norm.residual = residual != nullptr ? residual->mutable_data_ptr() : nullptr;
  norm.weight = weight.const_data_ptr();
  norm.eps = static_cast<float>(eps);
  norm.offset = static_cast<float>(offset);
  norm.y = y.mutable_data_ptr();
  if (y.numel() > 0) launch(norm, y, planes);
  return y;
}

decoder::CacheShape check_cache(const at::Tensor& keys, const at::Tensor& values,
                                const at::Tensor& like) {
  check_rank("key_cache", keys, 4);
  check("key_cache", keys, like.scalar_type(), keys.sizes(), like);
  check("value_cache", values, like.scalar_type(), keys.sizes(), like);
  TORCH_CHECK_VALUE(keys.size(1) > 0 && keys.size(2) > 0 && keys.size(3) > 0 &&
                        keys.size(3) % 2 == 0 && keys.size(3) <= 1024,
                    "key_cache: found shape ", keys.sizes(),
                    ", wanted blocks of positions and heads of an even size up to 1024");
  return {.blocks = keys.size(0),
          .block_size = static_cast<int>(keys.size(1)),
          .heads = static_cast<int>(keys.size(2)),
          .head_size = static_cast<int>(keys.size(3))};
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset,
                    BitPlanes* planes) {
  return normalize(x, nullptr, weight, eps, offset, planes);
}

at::Tensor add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                        double eps, double offset, BitPlanes* planes) {
  return normalize(x, &residual, weight, eps, offset, planes);
}

at::Tensor gated(const at::Tensor& gate_up, decoder::Activation activation, BitPlanes* planes) {
  check_rank("gate_up", gate_up, 2);
  TORCH_CHECK_VALUE(gate_up.size(1) % 2 == 0, "gate_up: found shape ", gate_up.sizes(),
                    ", wanted [M, 2 F]");
  const at::Tensor rows = gate_up.contiguous();
  at::Tensor y = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  decoder::Gated gated;
  gated.type = ops::to_scalar_type(gate_up.scalar_type());
  gated.rows = y.size(0);
  gated.columns = y.size(1);
  gated.activation = activation;
  gated.gate_up = rows.const_data_ptr();
  gated.y = y.mutable_data_ptr();
  if (y.numel() > 0) launch(gated, y, planes);
  return y;
}

at::Tensor rotary_to_cache(const at::Tensor& qkv, const at::Tensor& positions,
                           const at::Tensor& slots, const at::Tensor& cos, const at::Tensor& sin,
                           const std::optional<at::Tensor>& q_norm,
                           const std::optional<at::Tensor>& k_norm, double eps, double offset,
                           const at::Tensor& key_cache, const at::Tensor& value_cache) {
  check_rank("qkv", qkv, 2);
  const at::Tensor rows = qkv.contiguous();
  const std::int64_t m = qkv.size(0);
  decoder::RotaryToCache rotary;
  rotary.type = ops::to_scalar_type(qkv.scalar_type());
  rotary.rows = m;
  rotary.cache = check_cache(key_cache, value_cache, qkv);
  const std::int64_t head_size = rotary.cache.head_size;
  const std::int64_t heads = qkv.size(1) / head_size;
  rotary.query_heads = static_cast<int>(heads) - 2 * rotary.cache.heads;
  TORCH_CHECK_VALUE(qkv.size(1) % head_size == 0 && rotary.query_heads > 0, "qkv: found shape ",
                    qkv.sizes(), ", wanted [M, (Hq + 2 * ", rotary.cache.heads, ") * ", head_size,
                    "]");
  check("positions", positions, at::kInt, {m}, qkv);
  check("slots", slots, at::kLong, {m}, qkv);
  check_rank("cos", cos, 2);
  check("cos", cos, at::kFloat, cos.sizes(), qkv);
  check("sin", sin, at::kFloat, cos.sizes(), qkv);
  TORCH_CHECK_VALUE(2 * cos.size(1) <= head_size, "cos: found shape ", cos.sizes(),
                    ", wanted at most ", head_size / 2, " columns");
  if (q_norm.has_value()) check("q_norm", *q_norm, qkv.scalar_type(), {head_size}, qkv);
  if (k_norm.has_value()) check("k_norm", *k_norm, qkv.scalar_type(), {head_size}, qkv);
  at::Tensor q = at::empty({m, rotary.query_heads, head_size}, qkv.options());
  rotary.table_rows = cos.size(0);
  rotary.rotary = static_cast<int>(2 * cos.size(1));
  rotary.qkv = rows.const_data_ptr();
  rotary.positions = positions.const_data_ptr<std::int32_t>();
  rotary.slots = slots.const_data_ptr<std::int64_t>();
  rotary.cos = cos.const_data_ptr<float>();
  rotary.sin = sin.const_data_ptr<float>();
  rotary.q_norm = data_or_null<void>(q_norm);
  rotary.k_norm = data_or_null<void>(k_norm);
  rotary.eps = static_cast<float>(eps);
  rotary.offset = static_cast<float>(offset);
  rotary.key_cache = key_cache.mutable_data_ptr();
  rotary.value_cache = value_cache.mutable_data_ptr();
  rotary.q = q.mutable_data_ptr();
  if (m > 0) launch(rotary, q);
  return q;
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& key_cache,
                     const at::Tensor& value_cache, const at::Tensor& block_table,
                     const at::Tensor& sequence_start, const at::Tensor& lengths, double scale,
                     std::int64_t window, double softcap, BitPlanes* planes) {
  check_rank("q", q, 3);
  const at::Tensor queries = q.contiguous();
  decoder::Attention attention;
  attention.type = ops::to_scalar_type(q.scalar_type());
  attention.cache = check_cache(key_cache, value_cache, q);
  attention.rows = q.size(0);
  attention.query_heads = static_cast<int>(q.size(1));
  TORCH_CHECK_VALUE(q.size(1) > 0 && q.size(1) % attention.cache.heads == 0 &&
                        q.size(2) == attention.cache.head_size,
                    "q: found shape ", q.sizes(), ", wanted [M, a multiple of ",
                    attention.cache.heads, ", ", attention.cache.head_size, "]");
  check_rank("block_table", block_table, 2);
  check("block_table", block_table, at::kInt, block_table.sizes(), q);
  const std::int64_t sequences = block_table.size(0);
  check("sequence_start", sequence_start, at::kInt, {sequences + 1}, q);
  check("lengths", lengths, at::kInt, {sequences}, q);
  TORCH_CHECK_VALUE(window >= 0 && window < std::int64_t{1} << 31, "window: found ", window,
                    ", wanted 0 (none) or more");
  TORCH_CHECK_VALUE(softcap >= 0.0, "softcap: found ", softcap, ", wanted 0 (none) or more");
  at::Tensor y = at::empty({q.size(0), q.size(1) * q.size(2)}, q.options());
  attention.sequences = static_cast<int>(sequences);
  attention.max_blocks = static_cast<int>(block_table.size(1));
  attention.scale = static_cast<float>(scale);
  attention.window = static_cast<int>(window);
  attention.softcap = static_cast<float>(softcap);
  attention.q = queries.const_data_ptr();
  attention.key_cache = key_cache.const_data_ptr();
  attention.value_cache = value_cache.const_data_ptr();
  attention.block_table = block_table.const_data_ptr<std::int32_t>();
  attention.sequence_start = sequence_start.const_data_ptr<std::int32_t>();
  attention.lengths = lengths.const_data_ptr<std::int32_t>();
  attention.y = y.mutable_data_ptr();
  if (y.numel() > 0) launch(attention, y, planes);
  return y;
}

at::Tensor sample(const at::Tensor& logits, const SamplingRows& rows) {
  check_rank("logits", logits, 2);
  const at::Tensor values = logits.contiguous();
  const std::int64_t b = logits.size(0);
  TORCH_CHECK_VALUE(logits.size(1) >= 1 && logits.size(1) < std::int64_t{1} << 22,
                    "logits: found shape ", logits.sizes(), ", wanted 1 to 2^22 - 1 columns");
  check("temperature", rows.temperature, at::kFloat, {b}, logits);
  check("top_k", rows.top_k, at::kInt, {b}, logits);
  check("top_p", rows.top_p, at::kFloat, {b}, logits);
  check("min_p", rows.min_p, at::kFloat, {b}, logits);
  check("repetition_penalty", rows.repetition_penalty, at::kFloat, {b}, logits);
  check("seed", rows.seed, at::kLong, {b}, logits);
  check("step", rows.step, at::kLong, {b}, logits);
  check_rank("history", rows.history, 2);
  check("history", rows.history, at::kLong, {b, rows.history.size(1)}, logits);
  at::Tensor tokens = at::empty({b}, logits.options().dtype(at::kLong));
  const at::Tensor adjusted = at::empty(values.sizes(), values.options().dtype(at::kFloat));
  decoder::Sampling sampling;
  sampling.type = ops::to_scalar_type(logits.scalar_type());
  sampling.rows = b;
  sampling.vocabulary = logits.size(1);
  sampling.logits = values.const_data_ptr();
  sampling.temperature = rows.temperature.const_data_ptr<float>();
  sampling.top_k = rows.top_k.const_data_ptr<std::int32_t>();
  sampling.top_p = rows.top_p.const_data_ptr<float>();
  sampling.min_p = rows.min_p.const_data_ptr<float>();
  sampling.repetition_penalty = rows.repetition_penalty.const_data_ptr<float>();
  sampling.seed = rows.seed.const_data_ptr<std::int64_t>();
  sampling.step = rows.step.const_data_ptr<std::int64_t>();
  sampling.history = rows.history.const_data_ptr<std::int64_t>();
  sampling.history_length = rows.history.size(1);
  sampling.adjusted = adjusted.mutable_data_ptr<float>();
  sampling.tokens = tokens.mutable_data_ptr<std::int64_t>();
  if (b > 0) launch(sampling, logits);
  return tokens;
}

}  // namespace anyprec::engine
