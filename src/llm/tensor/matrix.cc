#include "llm/tensor/matrix.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/text.h"

namespace frugal::llm {
namespace {

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Columns that are multiplied with a panel while it is in the first-level cache, and panels for which a block
// of columns is kept: 48 columns of 576 int8 are 27 KiB, and 192 KiB of panels leave room in a second-level
// cache of 512 KiB.
constexpr size_t kColumnBlock = 48;
constexpr size_t kPanelBlockBytes = 192 << 10;

// Panels [begin, end) of a matrix times n_rows rows of the activations. The view of the columns is made once:
// made for each panel, its loads wait until the sums of the panel before are stored.
void multiply_panels(const Kernels& set, const Matrix& matrix, size_t begin, size_t end, const Activations& x,
                     size_t first_row, size_t n_rows, float* y, size_t y_stride) {
  auto quantised = [&](QuantPanelFn kernel) {
    const ActColumns columns = x.columns(matrix.type).from(first_row);
    for (size_t idx = begin; idx < end; ++idx)
      kernel(matrix.panel(idx), matrix.k, columns, n_rows, y + idx * kPanelRows, y_stride);
  };
  auto plain = [&]<typename T>(FloatPanelFn<T> kernel) {
    for (size_t idx = begin; idx < end; ++idx)
      kernel({reinterpret_cast<const T*>(matrix.panel(idx)), kPanelRows, 0, 1, matrix.k}, x.row(first_row),
             x.stride(), n_rows, y + idx * kPanelRows, y_stride, false);
  };
  switch (matrix.type) {
    case PanelType::kF32:
      return plain(set.panel_f32);
    case PanelType::kF16:
      return plain(set.panel_f16);
    case PanelType::kBF16:
      return plain(set.panel_bf16);
    case PanelType::kQ8_0:
      return quantised(set.panel_q8_0);
    case PanelType::kQ4_0:
      return quantised(set.panel_q4_0);
    case PanelType::kQ4_1:
      return quantised(set.panel_q4_1);
    case PanelType::kQ5_0:
      return quantised(set.panel_q5_0);
    case PanelType::kQ5_1:
      return quantised(set.panel_q5_1);
    case PanelType::kQ4_K:
      return quantised(set.panel_q4_k);
    case PanelType::kQ5_K:
      return quantised(set.panel_q5_k);
    case PanelType::kQ6_K:
      return quantised(set.panel_q6_k);
  }
}

}  // namespace

std::optional<PanelType> panel_type_of(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return PanelType::kF32;
    case TensorType::kF16:
      return PanelType::kF16;
    case TensorType::kBF16:
      return PanelType::kBF16;
    case TensorType::kQ8_0:
      return PanelType::kQ8_0;
    case TensorType::kQ4_0:
      return PanelType::kQ4_0;
    case TensorType::kQ4_1:
      return PanelType::kQ4_1;
    case TensorType::kQ5_0:
      return PanelType::kQ5_0;
    case TensorType::kQ5_1:
      return PanelType::kQ5_1;
    case TensorType::kQ4_K:
      return PanelType::kQ4_K;
    case TensorType::kQ5_K:
      return PanelType::kQ5_K;
    case TensorType::kQ6_K:
      return PanelType::kQ6_K;
    default:
      return std::nullopt;
  }
}

void Matrix::row(size_t row_idx, float* values) const {
  unpack_row(type, panel(row_idx / kPanelRows), static_cast<int>(row_idx % kPanelRows), k, values);
}

void pack_panels(const Matrix& matrix, PanelType from, const std::byte* rows, size_t first, size_t last) {
  const bool widens = from != matrix.type;
  FRUGAL_CHECK(!widens || matrix.type == PanelType::kF32);
  const size_t row_bytes = matrix.k / static_cast<size_t>(panel_block_size(from)) * gguf_block_bytes(from);
  std::vector<std::byte> narrow(widens ? panel_bytes(from, matrix.k) : 0);
  std::vector<float> values(widens ? matrix.k : 0);
  for (size_t idx = first; idx < last; ++idx) {
    const auto n_rows = static_cast<int>(std::min<size_t>(kPanelRows, matrix.n_rows - idx * kPanelRows));
    const std::byte* in = rows + idx * kPanelRows * row_bytes;
    std::byte* out = matrix.panels + idx * panel_bytes(matrix.type, matrix.k);
    if (!widens) {
      pack_panel(from, in, row_bytes, n_rows, matrix.k, out);
      continue;
    }
    pack_panel(from, in, row_bytes, n_rows, matrix.k, narrow.data());  // rows that are missing become zero
    for (int row = 0; row < kPanelRows; ++row) {
      unpack_row(from, narrow.data(), row, matrix.k, values.data());
      for (size_t i = 0; i < matrix.k; ++i)
        std::memcpy(out + (i * kPanelRows + static_cast<size_t>(row)) * sizeof(float), &values[i],
                    sizeof(float));
    }
  }
}

Result<Activations> Activations::allocate(size_t max_rows, size_t max_k) {
  Activations a;
  a.stride_ = round_up(max_k, 256);
  const size_t n = max_rows * a.stride_;
  FRUGAL_TRY(a.x_, Buffer::allocate(n * sizeof(float)));
  FRUGAL_TRY(a.q_blocks_, Buffer::allocate(n));
  FRUGAL_TRY(a.scales_, Buffer::allocate(n / 32 * sizeof(float)));
  FRUGAL_TRY(a.sums_, Buffer::allocate(n / 32 * sizeof(ActSum)));
  FRUGAL_TRY(a.q_super_, Buffer::allocate(n));
  FRUGAL_TRY(a.super_scales_, Buffer::allocate(n / 256 * sizeof(float)));
  FRUGAL_TRY(a.super_sums_, Buffer::allocate(n / 256 * kActSuperSums * sizeof(int16_t)));
  return a;
}

void Activations::quantize_row(size_t row_idx, size_t k, PanelType type) {
  const size_t block_size = static_cast<size_t>(panel_block_size(type));
  if (block_size == 1) return;
  if (block_size == 256) {
    kernels().quantize_super_blocks(row(row_idx), k, q_super_.as<int8_t>() + row_idx * stride_,
                                    super_scales_.as<float>() + row_idx * (stride_ / 256),
                                    super_sums_.as<int16_t>() + row_idx * (stride_ / 256 * kActSuperSums));
  } else {
    kernels().quantize_blocks(row(row_idx), k, q_blocks_.as<int8_t>() + row_idx * stride_,
                              scales_.as<float>() + row_idx * (stride_ / 32),
                              sums_.as<ActSum>() + row_idx * (stride_ / 32));
  }
}

ActColumns Activations::columns(PanelType type) const {
  if (panel_block_size(type) == 256) {
    return {q_super_.as<int8_t>(), super_scales_.as<float>(),    nullptr, super_sums_.as<int16_t>(), stride_,
            stride_ / 256,         stride_ / 256 * kActSuperSums};
  }
  return {q_blocks_.as<int8_t>(), scales_.as<float>(), sums_.as<ActSum>(), nullptr, stride_,
          stride_ / 32,           stride_ / 32};
}

void multiply(TeamMember member, std::span<const Product> products, const Activations& x, size_t n_rows) {
  const Kernels& set = kernels();
  size_t total = 0;
  for (const Product& product : products) total += product.matrix->n_panels();
  const auto share = member.share(total);
  size_t before = 0;  // panels of the products already passed
  for (const Product& product : products) {
    const Matrix& matrix = *product.matrix;
    const size_t begin = std::max(share.begin, before) - before;
    const size_t end = std::min(std::max(share.end, before) - before, matrix.n_panels());
    const size_t panels_at_once = std::max<size_t>(1, kPanelBlockBytes / panel_bytes(matrix.type, matrix.k));
    for (size_t group = begin; group < end; group += panels_at_once) {
      const size_t group_end = std::min(end, group + panels_at_once);
      for (size_t first = 0; first < n_rows; first += kColumnBlock) {
        const size_t n_cols = std::min(kColumnBlock, n_rows - first);
        multiply_panels(set, matrix, group, group_end, x, first, n_cols, product.y + first * product.y_stride,
                        product.y_stride);
      }
    }
    before += matrix.n_panels();
  }
}

}  // namespace frugal::llm
