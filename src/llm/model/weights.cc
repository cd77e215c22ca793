#include "llm/model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "base/team.h"
#include "base/text.h"

namespace frugal::llm {
namespace {

// Collects what has to be loaded, checking as it goes; then loads everything in one parallel sweep.
class Loader {
 public:
  explicit Loader(const GgufFile& file, bool widen = false) : file_(file), widen_(widen) {}

  // A matrix of n_rows rows of k weights.
  Status matrix(Matrix& target, const std::string& name, size_t n_rows, size_t k) {
    const GgufTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) return missing(name);
    FRUGAL_TRY_STATUS(check_shape(*tensor, {k, n_rows}));
    const std::optional<PanelType> type = panel_type_of(tensor->type);
    if (!type) {
      return Error{ErrorCode::kUnsupported, strf("'%s': tensor %s has type %s, which frugal does not compute "
                                                 "with; convert the model to Q8_0, Q4_0, Q4_1, "
                                                 "Q5_0, Q4_K, Q5_K, Q6_K, F16, BF16 or F32",
                                                 file_.label().c_str(), printable_name(name).c_str(),
                                                 tensor_type_label(tensor->type).c_str())};
    }
    target.type = widen_ ? PanelType::kF32 : *type;
    target.n_rows = n_rows;
    target.k = k;
    jobs_.push_back({&target, tensor, *type});
    return {};
  }

  Status vector(std::vector<float>& target, const std::string& name, size_t n) {
    const GgufTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) return missing(name);
    FRUGAL_TRY_STATUS(check_shape(*tensor, {n}));
    target.resize(n);
    const std::byte* data = file_.data(*tensor).data();
    for (size_t i = 0; i < n; ++i) {
      uint16_t half;
      switch (tensor->type) {
        case TensorType::kF32:
          std::memcpy(&target[i], data + i * 4, 4);
          break;
        case TensorType::kF16:
          std::memcpy(&half, data + i * 2, 2);
          target[i] = f16_to_f32(half);
          break;
        case TensorType::kBF16:
          std::memcpy(&half, data + i * 2, 2);
          target[i] = bf16_to_f32(half);
          break;
        default:
          return Error{
              ErrorCode::kUnsupported,
              strf("'%s': tensor %s has type %s where F32, F16 or BF16 is expected", file_.label().c_str(),
                   printable_name(name).c_str(), tensor_type_label(tensor->type).c_str())};
      }
    }
    return {};
  }
  Status vector_if_there(std::vector<float>& target, const std::string& name, size_t n) {
    return file_.find_tensor(name) == nullptr ? Status{} : vector(target, name, n);
  }

  // One allocation for all matrices, in huge pages where the host has them: fewer faults at load, fewer walks
  // after.
  Status run(Buffer& arena, int n_threads, const std::function<bool(double)>& progress) {
    size_t total = 0;
    for (const Job& job : jobs_) total += padded(job.matrix->bytes());
    FRUGAL_TRY(arena, Buffer::allocate(total, Pages::kHuge));
    std::byte* next_panels = arena.data();
    for (const Job& job : jobs_) {
      job.matrix->panels = next_panels;
      next_panels += padded(job.matrix->bytes());
    }
    // Pieces of about a megabyte: small enough to share evenly and to cancel, large enough to cost nothing.
    struct Piece {
      const Job* job;
      size_t first, last;
    };
    std::vector<Piece> pieces;
    for (const Job& job : jobs_) {
      const size_t at_once =
          std::max<size_t>(1, (size_t{1} << 20) / panel_bytes(job.matrix->type, job.matrix->k));
      for (size_t first = 0; first < job.matrix->n_panels(); first += at_once) {
        pieces.push_back({&job, first, std::min(first + at_once, job.matrix->n_panels())});
      }
    }
    std::atomic<size_t> next{0};
    std::atomic<bool> cancelled{false};
    ThreadTeam team(std::max(1, n_threads));
    team.run([&](TeamMember member) {
      while (!cancelled.load(std::memory_order_relaxed)) {
        const size_t idx = next.fetch_add(1);
        if (idx >= pieces.size()) return;
        const Piece& piece = pieces[idx];
        const GgufTensor& tensor = *piece.job->tensor;
        pack_panels(*piece.job->matrix, piece.job->type, file_.data(tensor).data(), piece.first, piece.last);
        const size_t row_bytes = tensor.bytes / piece.job->matrix->n_rows;
        const size_t begin = piece.first * kPanelRows * row_bytes;
        const size_t end = std::min<size_t>(piece.last * kPanelRows * row_bytes, tensor.bytes);
        if (!file_.file().path().empty()) file_.file().release(tensor.offset + begin, end - begin);
        if (member.idx == 0 && progress &&
            !progress(static_cast<double>(idx + 1) / static_cast<double>(pieces.size()))) {
          cancelled = true;
        }
      }
    });
    if (cancelled) return Error{ErrorCode::kCancelled, "loading the model was cancelled"};
    return {};
  }

 private:
  struct Job {
    Matrix* matrix;
    const GgufTensor* tensor;
    PanelType type;  // the panels that the tensor's own type makes
  };

  static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

  Error missing(const std::string& name) const {
    return {
        ErrorCode::kCorrupt,
        strf(
            "'%s': tensor %s is missing; the file is incomplete or of an unusual variant of its architecture",
            file_.label().c_str(), name.c_str())};
  }
  Status check_shape(const GgufTensor& tensor, std::vector<uint64_t> expected) const {
    std::vector<uint64_t> shape = tensor.shape;
    while (shape.size() > expected.size() && shape.back() == 1) shape.pop_back();
    if (shape == expected) return {};
    std::string want;
    for (const uint64_t n : expected)
      want += strf("%s%llu", want.empty() ? "" : " x ", static_cast<unsigned long long>(n));
    return Error{ErrorCode::kCorrupt,
                 strf("'%s': tensor %s has shape %s, but the metadata asks for [%s]", file_.label().c_str(),
                      printable_name(tensor.name).c_str(), tensor.shape_label().c_str(), want.c_str())};
  }

  const GgufFile& file_;
  bool widen_;
  std::vector<Job> jobs_;
};

}  // namespace

uint64_t ModelWeights::bytes() const {
  uint64_t total = embedding.bytes() + (output.empty() ? 0 : output.bytes());
  for (const LayerWeights& layer : layers) {
    for (const Matrix* matrix :
         {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.gate, &layer.up, &layer.down})
      total += matrix->bytes();
    for (const std::vector<float>* vector : {&layer.attn_norm, &layer.ffn_norm})
      total += vector->size() * sizeof(float);
  }
  return total;
}

namespace {

// Finds and checks every tensor of the network; nothing large is read.
Status plan_weights(const GgufFile& file, const ModelConfig& config, Loader& loader, ModelWeights& weights) {
  const auto n_embd = static_cast<size_t>(config.n_embd), n_vocab = static_cast<size_t>(config.n_vocab);
  const auto n_ff = static_cast<size_t>(config.n_ff), head_dim = static_cast<size_t>(config.head_dim);
  const size_t n_q = static_cast<size_t>(config.n_heads) * head_dim,
               n_kv = static_cast<size_t>(config.n_kv_heads) * head_dim;

  FRUGAL_TRY_STATUS(loader.matrix(weights.embedding, "token_embd.weight", n_vocab, n_embd));
  if (file.find_tensor("output.weight") != nullptr) {
    FRUGAL_TRY_STATUS(loader.matrix(weights.output, "output.weight", n_vocab, n_embd));
  }
  FRUGAL_TRY_STATUS(loader.vector(weights.output_norm, "output_norm.weight", n_embd));
  FRUGAL_TRY_STATUS(loader.vector_if_there(weights.rope_factors, "rope_freqs.weight",
                                           static_cast<size_t>(config.n_rot / 2)));

  weights.layers.resize(static_cast<size_t>(config.n_layers));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string prefix = "blk." + std::to_string(i) + ".";
    FRUGAL_TRY_STATUS(loader.vector(layer.attn_norm, prefix + "attn_norm.weight", n_embd));
    FRUGAL_TRY_STATUS(loader.vector(layer.ffn_norm, prefix + "ffn_norm.weight", n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.wq, prefix + "attn_q.weight", n_q, n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.wk, prefix + "attn_k.weight", n_kv, n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.wv, prefix + "attn_v.weight", n_kv, n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.wo, prefix + "attn_output.weight", n_embd, n_q));
    FRUGAL_TRY_STATUS(loader.matrix(layer.gate, prefix + "ffn_gate.weight", n_ff, n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.up, prefix + "ffn_up.weight", n_ff, n_embd));
    FRUGAL_TRY_STATUS(loader.matrix(layer.down, prefix + "ffn_down.weight", n_embd, n_ff));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.bq, prefix + "attn_q.bias", n_q));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.bk, prefix + "attn_k.bias", n_kv));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.bv, prefix + "attn_v.bias", n_kv));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.bo, prefix + "attn_output.bias", n_embd));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.gate_bias, prefix + "ffn_gate.bias", n_ff));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.up_bias, prefix + "ffn_up.bias", n_ff));
    FRUGAL_TRY_STATUS(loader.vector_if_there(layer.down_bias, prefix + "ffn_down.bias", n_embd));
    if (config.architecture == "qwen3" || config.architecture == "gemma3") {
      FRUGAL_TRY_STATUS(loader.vector(layer.q_norm, prefix + "attn_q_norm.weight", head_dim));
      FRUGAL_TRY_STATUS(loader.vector(layer.k_norm, prefix + "attn_k_norm.weight", head_dim));
    }
    if (config.architecture == "gemma3") {
      FRUGAL_TRY_STATUS(loader.vector(layer.attn_post_norm, prefix + "post_attention_norm.weight", n_embd));
      FRUGAL_TRY_STATUS(loader.vector(layer.ffn_post_norm, prefix + "post_ffw_norm.weight", n_embd));
    }
  }
  return {};
}

}  // namespace

Status check_weights(const GgufFile& file, const ModelConfig& config) {
  ModelWeights weights;
  Loader loader(file);
  return plan_weights(file, config, loader, weights);
}

Result<ModelWeights> load_weights(const GgufFile& file, const ModelConfig& config,
                                  const ModelOptions& options) {
  ModelWeights weights;
  Loader loader(file, options.widen);
  FRUGAL_TRY_STATUS(plan_weights(file, config, loader, weights));
  FRUGAL_TRY_STATUS(loader.run(weights.arena, options.n_threads, options.progress));
  return weights;
}

}  // namespace frugal::llm
