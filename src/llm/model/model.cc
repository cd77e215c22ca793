// Model: opens a GGUF file, checks it, repacks its weights while the vocabulary loads beside.
#include <algorithm>
#include <map>
#include <span>
#include <thread>

#include "base/hash.h"
#include "base/team.h"
#include "base/text.h"
#include "frugal/llm.h"
#include "llm/model/tokenizer_check.h"
#include "llm/model/weights.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {
namespace {

// Tells models apart without reading all of them: all metadata and the tensor table, and 64 bytes of every
// MiB of data, whose pages are given back at once: the kernel maps neighbours along, and they would count as
// ours.
uint64_t model_hash(const GgufFile& file) {
  constexpr size_t kStride = size_t{1} << 20;
  const auto bytes = file.bytes();
  uint64_t hash = checksum64(bytes.first(std::min<size_t>(bytes.size(), file.data_offset())));
  for (size_t at = file.data_offset(); at + 64 <= bytes.size(); at += kStride) {
    hash = fnv1a(bytes.subspan(at, 64), hash);
    file.file().release(at - std::min(at, kStride), 2 * kStride);
  }
  return hash;
}

// "Q4_1 99.8 %, F32 0.2 %", largest share first.
std::string describe_types(const GgufFile& file, uint64_t n_parameters) {
  std::map<std::string, uint64_t> by_type;
  for (const GgufTensor& tensor : file.tensors())
    by_type[tensor_type_label(tensor.type)] += tensor.n_elements();
  std::vector<std::pair<uint64_t, std::string>> shares;
  for (const auto& [type, n] : by_type) shares.emplace_back(n, type);
  std::sort(shares.rbegin(), shares.rend());
  std::string text;
  for (const auto& [n, type] : shares) {
    text += strf("%s%s %.3g %%", text.empty() ? "" : ", ", type.c_str(),
                 100.0 * static_cast<double>(n) / static_cast<double>(n_parameters));
  }
  return text;
}

ModelInfo describe(const GgufFile& file, const ModelConfig& config, const ModelWeights& weights,
                   float rope_scale) {
  ModelInfo info;
  info.path = file.label();
  info.architecture = config.architecture;
  info.name = config.name;
  info.n_layers = config.n_layers;
  info.n_embd = config.n_embd;
  info.n_heads = config.n_heads;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.n_ff = config.n_ff;
  info.n_vocab = config.n_vocab;
  info.n_ctx_train = config.n_ctx_train;
  info.sliding_window = config.sliding_window;
  for (const GgufTensor& tensor : file.tensors()) info.n_parameters += tensor.n_elements();
  info.weight_types = describe_types(file, std::max<uint64_t>(1, info.n_parameters));
  info.weight_bytes = weights.bytes();
  info.file_hash = model_hash(file);
  info.rope_scale = rope_scale;
  if (rope_scale != 1) info.file_hash = fnv1a(std::as_bytes(std::span(&rope_scale, 1)), info.file_hash);
  return info;
}

}  // namespace

ModelImpl::ModelImpl() = default;
ModelImpl::~ModelImpl() = default;

Model::Model(std::unique_ptr<ModelImpl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;
const ModelInfo& Model::info() const { return impl_->info; }
const Tokenizer& Model::tokenizer() const { return *impl_->tokenizer; }

Result<std::shared_ptr<const Model>> Model::load(const std::string& path, const ModelOptions& options) {
  if (options.n_threads < 0) return Error{ErrorCode::kInvalidArgument, "the number of threads is negative"};
  if (!(options.rope_scale >= 1 && options.rope_scale <= 64))
    return Error{ErrorCode::kInvalidArgument, strf("the RoPE scale is %g, but must be from 1 to 64",
                                                   static_cast<double>(options.rope_scale))};
  FRUGAL_TRY(const GgufFile file, GgufFile::open(path));
  auto impl = std::make_unique<ModelImpl>();
  FRUGAL_TRY(impl->config, parse_model_config(file));
  impl->config.rope.scale /= options.rope_scale;
  impl->config.n_ctx_train =
      static_cast<int>(static_cast<float>(impl->config.n_ctx_train) * options.rope_scale);

  // The vocabulary is built on one thread, the weights are repacked on all others and, once it is done, on
  // that too.
  const int n_threads = std::clamp(options.n_threads > 0 ? options.n_threads : usable_processors(), 1, 256);
  Result<ModelWeights> weights = Error{};
  std::thread packer;
  ModelOptions packing = options;
  packing.n_threads = n_threads;
  auto pack = [&] { weights = load_weights(file, impl->config, packing); };
  bool beside = true;
  try {
    packer = std::thread(pack);
  } catch (const std::system_error&) {
    beside = false;  // the host has no thread to spare: one after the other
  }
  auto tokenizer = load_tokenizer(file);
  if (beside)
    packer.join();
  else
    pack();
  if (!weights.ok()) return std::move(weights).error();
  if (!tokenizer.ok()) return std::move(tokenizer).error();
  impl->weights = std::move(weights).value();
  impl->tokenizer = std::move(tokenizer).value();
  impl->info = describe(file, impl->config, impl->weights, options.rope_scale);
  return std::shared_ptr<const Model>(new Model(std::move(impl)));
}

}  // namespace frugal::llm
