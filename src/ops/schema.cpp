// The operators' schemas. Loading this library makes them torch.ops.anyprec.*.
//
//   linear        y = x W_b^T + bias            x [..., K] -> [..., N], in x's dtype
//   dequantize    W_b as a dense matrix [N, K] of `dtype`
//   pack_planes   canonical planes uint8 [P, N, ceil(K/8)] -> the layout of the tensor's device
//   unpack_planes the inverse
//   sum_by_code   sums of values [N, K] over the columns of each code: fp32 [N, G, 2^b]
//   kl_gradient_  KL divergence between two models' logits, and its gradient in their place
//   binary_codes  codes for binary coding, which fit begins with (src/fit)
//   quantize_matrix, codes_to_planes: those of anyprec/quantize.h and anyprec/planes.h on a GPU
//   fit           codes and codebooks of a weight matrix against a Hessian (src/fit)
//
// planes: packed, at least `precision` of them; lut: fp16 [N, G, 2^min(b, L)]; alpha: fp16
// [N, G, b - L, C] where b > L, else None. L follows from the tensors: see codebook_of in checks.h.
//
// quantize_matrix: weight fp32, bf16 or fp16 [N, K]; sensitivities fp32 [N, K], None for all ones.
// Returns codes uint8 [N, K] at the parent precision, for each precision from the lowest on a table
// fp32 [N, G, 2^b], and fp64 [precisions], the sums of sensitivity * (weight - value)^2; `name` is
// what errors call the matrix. codes_to_planes: uint8 [N, K] -> [parent, N, ceil(K/8)].
//
// kl_gradient_: logits [R, V'] and [R, V] of one dtype; V' and V may differ, the shorter vocabulary
// counts. Returns KL(wanted || found) of each row, fp32 [R], nats; `found` becomes scale times its
// gradient: scale * (softmax(found) - softmax(wanted)), zero beyond the vocabulary of both.
//
// binary_codes: weight fp32 [N, K]; curvature fp32 [K], what a squared error in each column costs;
// start: "range" or "greedy". Returns codes uint8 [N, K] at the widest of `precisions`.
//
// fit: weight fp32 [N, K]; codes uint8 [N, K] at the widest of `precisions`, to begin with, or
// [S, N, K], of which a descent begins with each and every row keeps the best; hessian fp32 [K, K],
// 0.01 of its mean diagonal is added; taus: the weight of each precision in the joint descent, 0
// where it takes no part; rounds: of descent, 0 for a refit of codebooks alone; child_sweeps: for
// each bit beyond the widest precision with a tau. Returns codes, for each precision lut and alpha
// (fp32 with values of fp16; alpha has no elements where b <= L), and fp64 [precisions], the sums
// over rows of (w - value)^T H (w - value) with the damped Hessian.
#include <torch/library.h>

TORCH_LIBRARY(anyprec, m) {
  m.def(
      "linear(Tensor x, Tensor planes, Tensor lut, Tensor? alpha, Tensor? bias, int precision, "
      "int in_features, int group_size, str cell_groups) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "dequantize(Tensor planes, Tensor lut, Tensor? alpha, int precision, int in_features, "
      "int group_size, str cell_groups, ScalarType dtype) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("pack_planes(Tensor planes, int in_features) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("unpack_planes(Tensor planes, int out_features, int in_features) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("sum_by_code(Tensor values, Tensor codes, int precision, int group_size) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("kl_gradient_(Tensor wanted, Tensor(a!) found, float scale) -> Tensor");
  m.def(
      "quantize_matrix(str name, Tensor weight, Tensor? sensitivities, int lowest_precision, "
      "int seed_precision, int parent_precision, int group_size) -> (Tensor codes, Tensor[] luts, "
      "Tensor errors)");
  m.def("codes_to_planes(Tensor codes, int parent_precision) -> Tensor");
  m.def(
      "binary_codes(Tensor weight, Tensor curvature, int group_size, int[] precisions, str start) "
      "-> Tensor");
  m.def(
      "fit(Tensor weight, Tensor codes, Tensor hessian, int lut_bits, str cell_groups, "
      "int group_size, int[] precisions, int seed_precision, float[] taus, int rounds, "
      "int child_sweeps) -> (Tensor codes, Tensor[] luts, Tensor[] alphas, Tensor energies)");
}
