// Fuzzes the GGUF reader and all that its metadata feeds without touching tensor data: typed getters, the
// model's configuration, the plan of its weights, the check of its vocabulary.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "llm/model/config.h"
#include "llm/model/gguf.h"
#include "llm/model/tokenizer_check.h"
#include "llm/model/weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::llm;
  const auto file = GgufFile::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!file.ok()) {
    FRUGAL_CHECK(!file.error().message.empty());
    return 0;
  }
  size_t n_touched = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    FRUGAL_CHECK(file->find_tensor(tensor.name) == &tensor);
    const auto bytes = file->data(tensor);
    if (!bytes.empty()) n_touched += static_cast<size_t>(bytes.front()) + static_cast<size_t>(bytes.back());
    n_touched += tensor.n_elements() + tensor.shape_label().size();
  }
  for (const GgufValue& value : file->metadata()) {
    FRUGAL_CHECK(file->find_value(value.key) == &value);
    n_touched += value.display(60).size() + value.type_label().size();
    n_touched += file->require_u32(value.key).ok() + file->require_u64(value.key).ok();
    n_touched += file->require_f32(value.key).ok() + file->require_bool(value.key).ok();
    n_touched += file->require_string(value.key).ok() + file->require_u32_each(value.key, 3).ok();
    n_touched += file->require_array<uint32_t>(value.key).ok() + file->require_array<float>(value.key).ok();
    n_touched += file->require_array<std::string_view>(value.key).ok();
  }
  [[maybe_unused]] static volatile size_t sink;
  sink = n_touched;
  if (const auto config = parse_model_config(*file); config.ok()) {
    FRUGAL_CHECK(config->n_layers > 0 && config->n_heads % config->n_kv_heads == 0);
    FRUGAL_CHECK(config->n_rot <= config->head_dim);
    if (config->n_layers <= 64) sink = check_weights(*file, *config).ok();
  }
  sink = check_tokenizer(*file).ok();
  return 0;
}
