// The forward pass of llama, qwen2, qwen3 and gemma3, from token to logits, top to bottom.
//
// Every member of the team runs the whole function; work is shared by rows, by panels of weights, or by tiles
// of attention (llm/model/batch_attention.h), with a barrier wherever the next step reads what others wrote.
// How work is shared never changes a result: each number is computed by one member in one order
// (llm/kernel/kernel.h, llm/kv/attention.h).
#include "llm/model/forward.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/clock.h"

namespace frugal::llm {
namespace {

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void add(float* y, const float* x, size_t n) {
  for (size_t i = 0; i < n; ++i) y[i] += x[i];
}

// cos and sin of every pair at `position`: out[2 i], out[2 i + 1]. The angle is advanced by repeated
// products, as llama.cpp does, so that long contexts see the same rounding.
void rope_angles(const RopeConfig& rope, int n_rot, int position, const std::vector<float>& factors,
                 float* out) {
  const float step = std::pow(rope.base, -2.0f / static_cast<float>(n_rot));
  float theta = static_cast<float>(position);
  for (int pair = 0; pair < n_rot / 2; ++pair, theta *= step) {
    const float extrapolated = factors.empty() ? theta : theta / factors[static_cast<size_t>(pair)];
    float angle = rope.scale * extrapolated;
    if (rope.yarn_mix != 0) {
      const float along =
          (static_cast<float>(pair) - rope.ramp_low) / std::max(0.001f, rope.ramp_high - rope.ramp_low);
      const float mix = (1 - std::clamp(along, 0.0f, 1.0f)) * rope.yarn_mix;
      angle = angle * (1 - mix) + extrapolated * mix;
    }
    out[2 * pair] = std::cos(angle) * rope.magnitude;
    out[2 * pair + 1] = std::sin(angle) * rope.magnitude;
  }
}

void rotate(RopeLayout layout, const float* angles, int n_rot, float* head) {
  const int n_pairs = n_rot / 2;
  for (int pair = 0; pair < n_pairs; ++pair) {
    const int first = layout == RopeLayout::kInterleaved ? 2 * pair : pair;
    const int second = layout == RopeLayout::kInterleaved ? first + 1 : pair + n_pairs;
    const float cos = angles[2 * pair], sin = angles[2 * pair + 1];
    const float a = head[first], b = head[second];
    head[first] = a * cos - b * sin;
    head[second] = a * sin + b * cos;
  }
}

}  // namespace

Result<ForwardScratch> ForwardScratch::allocate(const ModelConfig& config, int max_rows, int max_logit_rows,
                                                int n_ctx, int n_threads) {
  ForwardScratch s;
  const auto rows = static_cast<size_t>(max_rows);
  const size_t n_q = static_cast<size_t>(config.n_heads) * static_cast<size_t>(config.head_dim);
  const size_t n_kv = static_cast<size_t>(config.n_kv_heads) * static_cast<size_t>(config.head_dim);
  s.hidden_stride_ = round_up(static_cast<size_t>(config.n_embd), 16);
  s.q_stride_ = round_up(n_q, 16);
  s.kv_stride_ = round_up(n_kv, 16);
  s.up_stride_ = round_up(static_cast<size_t>(config.n_ff), 16);
  s.logit_stride_ = round_up(static_cast<size_t>(config.n_vocab), 16);
  FRUGAL_TRY(s.x_, Activations::allocate(rows, static_cast<size_t>(config.n_embd)));
  FRUGAL_TRY(s.attn_, Activations::allocate(rows, n_q));
  FRUGAL_TRY(s.ffn_, Activations::allocate(rows, static_cast<size_t>(config.n_ff)));
  auto floats = [](Buffer& buffer, size_t n) -> Status {
    FRUGAL_TRY(buffer, Buffer::allocate(n * sizeof(float)));
    return {};
  };
  FRUGAL_TRY_STATUS(floats(s.residual_, rows * s.hidden_stride_));
  FRUGAL_TRY_STATUS(floats(s.projected_, rows * s.hidden_stride_));
  FRUGAL_TRY_STATUS(floats(s.q_, rows * s.q_stride_));
  FRUGAL_TRY_STATUS(floats(s.k_, rows * s.kv_stride_));
  FRUGAL_TRY_STATUS(floats(s.v_, rows * s.kv_stride_));
  FRUGAL_TRY_STATUS(floats(s.up_, rows * s.up_stride_));
  FRUGAL_TRY_STATUS(floats(s.logits_, static_cast<size_t>(max_logit_rows) * s.logit_stride_));
  FRUGAL_TRY_STATUS(floats(s.angles_, rows * static_cast<size_t>(config.n_rot)));
  FRUGAL_TRY_STATUS(floats(s.angles_window_, rows * static_cast<size_t>(config.n_rot)));
  FRUGAL_TRY(s.attention_, AttentionScratch::allocate(config, n_ctx, n_threads));
  return s;
}

// One member's walk through the layers.
class ForwardPass {
 public:
  ForwardPass(TeamMember member, const ModelConfig& config, const ModelWeights& weights, const Batch& batch,
              ForwardScratch& scratch)
      : member_(member),
        config_(config),
        weights_(weights),
        batch_(batch),
        s_(scratch),
        attention_(member, config, batch.spans, s_.q_.as<float>(), s_.q_stride_, s_.attn_, s_.attention_),
        rows_(member.share(batch.tokens.size())) {}

  void run() {
    if (times()) step_began_ = wall_seconds();
    embed();
    for (int layer = 0; layer < config_.n_layers; ++layer) {
      const bool last = layer + 1 == config_.n_layers && batch_.logit_rows.empty();
      queries_keys_values(layer);
      store_and_attend(layer, !last);
      if (last) return;  // the cache was all that was wanted
      attention_output(layer);
      feed_forward_block(weights_.layers[static_cast<size_t>(layer)]);
    }
    output();
  }

 private:
  // Only the first member keeps time.
  bool times() const { return batch_.times != nullptr && member_.idx == 0; }
  void end_of(ForwardStep step) {
    if (!times()) return;
    const double now = wall_seconds();
    batch_.times->seconds[static_cast<size_t>(step)] += now - step_began_;
    step_began_ = now;
  }

  size_t n_rows() const { return batch_.tokens.size(); }
  float* residual(size_t row) { return s_.residual_.as<float>() + row * s_.hidden_stride_; }
  float* projected(size_t row) { return s_.projected_.as<float>() + row * s_.hidden_stride_; }
  float* angles(size_t row, bool windowed) {
    return (windowed ? s_.angles_window_ : s_.angles_).as<float>() + row * static_cast<size_t>(config_.n_rot);
  }

  // Token embeddings into the residual, and the rotation angles of each row.
  void embed() {
    const auto n_embd = static_cast<size_t>(config_.n_embd);
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      weights_.embedding.row(static_cast<size_t>(batch_.tokens[row]), residual(row));
      if (config_.embedding_scale != 1) {
        for (size_t i = 0; i < n_embd; ++i) residual(row)[i] *= config_.embedding_scale;
      }
      const int position = position_of(row);
      rope_angles(config_.rope, config_.n_rot, position, weights_.rope_factors, angles(row, false));
      if (config_.sliding_window > 0)
        rope_angles(config_.rope_window, config_.n_rot, position, {}, angles(row, true));
    }
    end_of(ForwardStep::kEmbed);
  }

  int position_of(size_t row) const {
    for (const BatchSpan& span : batch_.spans) {
      const size_t first = static_cast<size_t>(span.first_row);
      if (row >= first && row < first + static_cast<size_t>(span.n_rows))
        return span.first_position + static_cast<int>(row - first);
    }
    FRUGAL_CHECK(false);
    return 0;
  }

  // q, k and v of every row from norm(residual).
  void queries_keys_values(int layer_idx) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(layer_idx)];
    const auto n_embd = static_cast<size_t>(config_.n_embd);
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      norm_into(s_.x_, row, residual(row), layer.attn_norm);
      quantize(s_.x_, row, n_embd, {&layer.wq, &layer.wk, &layer.wv});
    }
    member_.barrier();
    const Product qkv[] = {{&layer.wq, s_.q_.as<float>(), s_.q_stride_},
                           {&layer.wk, s_.k_.as<float>(), s_.kv_stride_},
                           {&layer.wv, s_.v_.as<float>(), s_.kv_stride_}};
    multiply(member_, qkv, s_.x_, n_rows());
    member_.barrier();
    end_of(ForwardStep::kQkv);
  }

  // Keys and values into the caches, and attention of the rows over them; in pieces of as many rows of a
  // sequence as its cache lets be stored ahead.
  void store_and_attend(int layer_idx, bool attends) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(layer_idx)];
    int ahead = 0, longest = 0;
    for (const BatchSpan& span : batch_.spans) {
      longest = std::max(longest, span.n_rows);
      const int limit = span.cache->max_rows_ahead();
      if (limit > 0) ahead = ahead == 0 ? limit : std::min(ahead, limit);
    }
    if (ahead == 0) ahead = longest;
    for (int begin = 0; begin < longest; begin += ahead) {
      piece_ = {begin, begin + ahead};
      // Rows whose positions share a panel of the cache belong to one member, or each part of them to one.
      size_t n_panels = 0;
      bool apart = true;
      for (const BatchSpan& span : batch_.spans) {
        n_panels += panels_in_piece(span);
        apart = apart && span.cache->stores_parts();
      }
      apart = apart && n_panels < 4 * static_cast<size_t>(member_.size);
      const size_t n_parts = apart ? 2 * static_cast<size_t>(config_.n_kv_heads) : 1;
      const TeamMember::Range mine = member_.share(n_panels * n_parts);
      size_t at = 0;  // first part of the panel
      for (const BatchSpan& span : batch_.spans) {
        for (int i = 0; i < rows_in_piece(span); ++i) {
          if (i > 0 && (span.first_position + begin + i) % kPanelRows == 0) at += n_parts;
          for (size_t part = std::max(at, mine.begin); part < std::min(at + n_parts, mine.end); ++part) {
            if (apart) {
              place_part(layer_idx, layer, span, begin + i, static_cast<int>(part - at));
            } else {
              place_row(layer_idx, layer, span, begin + i);
            }
          }
        }
        if (rows_in_piece(span) > 0) at += n_parts;
      }
      if (apart) settle(layer_idx);
      member_.barrier();
      end_of(ForwardStep::kStoreKv);
      if (attends) attention_.run(layer_idx, piece_.begin, piece_.end);
      member_.barrier();
      end_of(ForwardStep::kAttention);
    }
  }
  // What the caches have to do before the piece is attended: dealt out in turn.
  void settle(int layer_idx) {
    int at = 0;
    for (const BatchSpan& span : batch_.spans) {
      const int first = span.first_position + piece_.begin, n = rows_in_piece(span);
      for (int part = 0; n > 0 && part < 2 * config_.n_kv_heads; ++part) {
        if (at++ % member_.size == member_.idx) span.cache->settle(layer_idx, part, first, first + n);
      }
    }
  }
  int rows_in_piece(const BatchSpan& span) const {
    return std::max(0, std::min(span.n_rows, piece_.end) - piece_.begin);
  }
  size_t panels_in_piece(const BatchSpan& span) const {
    const int first = span.first_position + piece_.begin, n = rows_in_piece(span);
    return n == 0 ? 0 : static_cast<size_t>((first + n - 1) / kPanelRows - first / kPanelRows + 1);
  }

  // residual += wo(attention)
  void attention_output(int layer_idx) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(layer_idx)];
    const auto n_q = static_cast<size_t>(config_.n_heads * config_.head_dim);
    for (size_t row = rows_.begin; row < rows_.end; ++row) quantize(s_.attn_, row, n_q, {&layer.wo});
    member_.barrier();
    const Product out[] = {{&layer.wo, s_.projected_.as<float>(), s_.hidden_stride_}};
    multiply(member_, out, s_.attn_, n_rows());
    member_.barrier();
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      add_if_any(projected(row), layer.bo);
      add_projected(row, layer.attn_post_norm);
    }
    end_of(ForwardStep::kAttentionOut);
  }

  // Biases, head norms and rotation of one row's q and k; k and v go into the cache.
  void place_row(int layer_idx, const LayerWeights& layer, const BatchSpan& span, int row_in_span) {
    for (int head = 0; head < config_.n_kv_heads; ++head) {
      turn_head(layer_idx, layer, span, row_in_span, head);
      add_if_any(value_of(span, row_in_span, head), layer.bv, head);
    }
    span.cache->store(layer_idx, span.first_position + row_in_span, key_of(span, row_in_span, 0),
                      value_of(span, row_in_span, 0));
  }
  // A part of that: the keys of head part / 2, with its queries, or its values.
  void place_part(int layer_idx, const LayerWeights& layer, const BatchSpan& span, int row_in_span,
                  int part) {
    const int head = part / 2, position = span.first_position + row_in_span;
    if (part % 2 == 0) {
      turn_head(layer_idx, layer, span, row_in_span, head);
      span.cache->store_part(layer_idx, head, position, key_of(span, row_in_span, head), nullptr);
    } else {
      float* v = value_of(span, row_in_span, head);
      add_if_any(v, layer.bv, head);
      span.cache->store_part(layer_idx, head, position, nullptr, v);
    }
  }
  void turn_head(int layer_idx, const LayerWeights& layer, const BatchSpan& span, int row_in_span, int head) {
    const auto row = static_cast<size_t>(span.first_row + row_in_span);
    const auto dim = static_cast<size_t>(config_.head_dim);
    const float* turn = angles(row, config_.window_of(layer_idx) > 0);
    const auto place = [&](float* x, const std::vector<float>& norm) {
      if (!norm.empty()) kernels().rms_norm(x, norm.data(), dim, config_.norm_eps, x);
      rotate(config_.rope_layout, turn, config_.n_rot, x);
    };
    for (int i = head * config_.group(); i < (head + 1) * config_.group(); ++i) {
      float* q = s_.q_.as<float>() + row * s_.q_stride_ + static_cast<size_t>(i) * dim;
      add_if_any(q, layer.bq, i);
      place(q, layer.q_norm);
      for (size_t j = 0; j < dim; ++j) q[j] *= config_.attention_scale;
    }
    float* k = key_of(span, row_in_span, head);
    add_if_any(k, layer.bk, head);
    place(k, layer.k_norm);
  }
  static void add_if_any(float* y, const std::vector<float>& bias) { add(y, bias.data(), bias.size()); }
  // A head's part of a bias.
  void add_if_any(float* y, const std::vector<float>& bias, int head) const {
    const auto dim = static_cast<size_t>(config_.head_dim);
    if (!bias.empty()) add(y, bias.data() + static_cast<size_t>(head) * dim, dim);
  }
  float* key_of(const BatchSpan& span, int row_in_span, int head) {
    return s_.k_.as<float>() + place_of(span, row_in_span, head);
  }
  float* value_of(const BatchSpan& span, int row_in_span, int head) {
    return s_.v_.as<float>() + place_of(span, row_in_span, head);
  }
  size_t place_of(const BatchSpan& span, int row_in_span, int head) const {
    return static_cast<size_t>(span.first_row + row_in_span) * s_.kv_stride_ +
           static_cast<size_t>(head * config_.head_dim);
  }

  // residual += down(act(gate(x)) * up(x)), x = norm(residual)
  void feed_forward_block(const LayerWeights& layer) {
    const auto n_embd = static_cast<size_t>(config_.n_embd), n_ff = static_cast<size_t>(config_.n_ff);
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      norm_into(s_.x_, row, residual(row), layer.ffn_norm);
      quantize(s_.x_, row, n_embd, {&layer.gate, &layer.up});
    }
    member_.barrier();
    const Product in[] = {{&layer.gate, s_.ffn_.row(0), s_.ffn_.stride()},
                          {&layer.up, s_.up_.as<float>(), s_.up_stride_}};
    multiply(member_, in, s_.x_, n_rows());
    member_.barrier();
    end_of(ForwardStep::kGateUp);
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      float* gate = s_.ffn_.row(row);
      float* up = s_.up_.as<float>() + row * s_.up_stride_;
      add_if_any(gate, layer.gate_bias);
      add_if_any(up, layer.up_bias);
      (config_.activation == Activation::kSilu ? kernels().silu_mul : kernels().gelu_mul)(gate, up,
                                                                                          round_up(n_ff, 16));
      quantize(s_.ffn_, row, n_ff, {&layer.down});
    }
    member_.barrier();
    const Product out[] = {{&layer.down, s_.projected_.as<float>(), s_.hidden_stride_}};
    multiply(member_, out, s_.ffn_, n_rows());
    member_.barrier();
    for (size_t row = rows_.begin; row < rows_.end; ++row) {
      add_if_any(projected(row), layer.down_bias);
      add_projected(row, layer.ffn_post_norm);
    }
    end_of(ForwardStep::kDown);
  }

  // Logits of the rows that want them.
  void output() {
    member_.barrier();  // rows of others are read below
    const size_t n_logits = batch_.logit_rows.size();
    if (n_logits == 0) return;
    const Matrix& matrix = weights_.output_matrix();
    const auto mine = member_.share(n_logits);
    for (size_t i = mine.begin; i < mine.end; ++i) {
      norm_into(s_.x_, i, residual(static_cast<size_t>(batch_.logit_rows[i])), weights_.output_norm);
      quantize(s_.x_, i, static_cast<size_t>(config_.n_embd), {&matrix});
    }
    member_.barrier();
    const Product out[] = {{&matrix, s_.logits_.as<float>(), s_.logit_stride_}};
    multiply(member_, out, s_.x_, n_logits);
    if (config_.final_logit_softcap == 0) return end_of(ForwardStep::kLogits);
    member_.barrier();
    for (size_t i = mine.begin; i < mine.end; ++i) {
      float* logits = s_.logits_.as<float>() + i * s_.logit_stride_;
      for (int token = 0; token < config_.n_vocab; ++token) {
        logits[token] = config_.final_logit_softcap * std::tanh(logits[token] / config_.final_logit_softcap);
      }
    }
    end_of(ForwardStep::kLogits);
  }

  // ---- small steps ----

  void norm_into(Activations& to, size_t row, const float* x, const std::vector<float>& weight) {
    kernels().rms_norm(x, weight.data(), weight.size(), config_.norm_eps, to.row(row));
  }

  // Quantises a row in each form that the matrices want, once.
  static void quantize(Activations& x, size_t row, size_t k, std::initializer_list<const Matrix*> matrices) {
    bool blocks = false, super_blocks = false;
    for (const Matrix* matrix : matrices) {
      const int size = panel_block_size(matrix->type);
      bool& done = size == 256 ? super_blocks : blocks;
      if (size == 1 || done) continue;
      x.quantize_row(row, k, matrix->type);
      done = true;
    }
  }

  void add_projected(size_t row, const std::vector<float>& post_norm) {
    float* x = projected(row);
    if (!post_norm.empty()) kernels().rms_norm(x, post_norm.data(), post_norm.size(), config_.norm_eps, x);
    add(residual(row), x, static_cast<size_t>(config_.n_embd));
  }

  TeamMember member_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  const Batch& batch_;
  ForwardScratch& s_;
  BatchAttention attention_;
  TeamMember::Range rows_;  // this member's rows in row-wise steps
  struct {
    int begin = 0, end = 0;
  } piece_;  // rows of each span that are being stored and attended
  double step_began_ = 0;
};

std::vector<float> rope_turns(const ModelConfig& config, const ModelWeights& weights, int layer) {
  std::vector<float> angles(static_cast<size_t>(config.n_rot)), turns(angles.size() / 2);
  const bool windowed = config.window_of(layer) > 0;
  static const std::vector<float> kNone;
  rope_angles(windowed ? config.rope_window : config.rope, config.n_rot, 1,
              windowed ? kNone : weights.rope_factors, angles.data());
  for (size_t pair = 0; pair < turns.size(); ++pair)
    turns[pair] = std::atan2(angles[2 * pair + 1], angles[2 * pair]);
  return turns;
}

void run_forward(ThreadTeam& team, const ModelConfig& config, const ModelWeights& weights, const Batch& batch,
                 ForwardScratch& scratch) {
  team.run([&](TeamMember member) { ForwardPass(member, config, weights, batch, scratch).run(); });
}

}  // namespace frugal::llm
