// Matrix: the weights of a linear map, repacked into panels; and the product of matrices with batches of
// rows.
#pragma once

#include <span>
#include <vector>

#include "base/team.h"
#include "frugal/result.h"
#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"
#include "llm/tensor/buffer.h"
#include "llm/tensor/type.h"

namespace frugal::llm {

// The panel type that holds weights of `type`; nothing when frugal has no kernel for them.
std::optional<PanelType> panel_type_of(TensorType type);

// y = W x, W [n_rows, k]. The panels lie in memory of the model's (ModelWeights::arena), read-only once
// packed.
struct Matrix {
  PanelType type = PanelType::kF32;
  size_t n_rows = 0;
  size_t k = 0;
  std::byte* panels = nullptr;  // [n_panels][panel_bytes(type, k)], aligned to 64 bytes

  size_t n_panels() const { return (n_rows + kPanelRows - 1) / kPanelRows; }
  // Rows with their padding to whole panels: what an output row must have room for.
  size_t padded_rows() const { return n_panels() * kPanelRows; }
  size_t bytes() const { return n_panels() * panel_bytes(type, k); }
  const std::byte* panel(size_t idx) const { return panels + idx * panel_bytes(type, k); }
  bool empty() const { return n_rows == 0; }

  // Row `row` as floats [k]: an embedding.
  void row(size_t row_idx, float* values) const;
};

// Packs panels [first, last) from GGUF's row-major data, whose own panel type is `from`: that of the matrix,
// or any when the matrix is F32 and the weights are widened.
void pack_panels(const Matrix& matrix, PanelType from, const std::byte* rows, size_t first, size_t last);

// Rows of activations [n_rows, k] and, where a matrix wants them, their quantised forms. Memory is taken
// once.
class Activations {
 public:
  static Result<Activations> allocate(size_t max_rows, size_t max_k);

  // Row `row` of a batch of width k; k <= max_k, and the stride between rows is row_stride(k).
  float* row(size_t row_idx) { return x_.as<float>() + row_idx * stride_; }
  const float* row(size_t row_idx) const { return x_.as<float>() + row_idx * stride_; }
  size_t stride() const { return stride_; }

  // Quantises row `row_idx` in the forms that `type` is multiplied with; nothing to do for float weights.
  void quantize_row(size_t row_idx, size_t k, PanelType type);
  ActColumns columns(PanelType type) const;

 private:
  size_t stride_ = 0;  // floats between rows: max_k rounded up to a cache line
  Buffer x_, q_blocks_, scales_, sums_, q_super_, super_scales_, super_sums_;
};

// One product of a group: y[row * y_stride + r] for the first n_rows rows of the activations. y has room for
// padded_rows() in each row.
struct Product {
  const Matrix* matrix = nullptr;
  float* y = nullptr;
  size_t y_stride = 0;
};

// Computes this member's share of all products, whose panels are divided over the team. All take the same
// activations, quantised beforehand in every form needed. No barrier at the end.
void multiply(TeamMember member, std::span<const Product> products, const Activations& x, size_t n_rows);

}  // namespace frugal::llm
