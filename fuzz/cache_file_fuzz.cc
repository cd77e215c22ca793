// Fuzzes the reader of cache files: what it accepts must decode on. A file that an engine wrote is changed
// at places, cut, and given a right checksum again. Input: a byte (bit 0: a csr cache; bit 1: the checksum is
// repaired), then records of 4 bytes of place and one of value; a place of 0xffffffff cuts to value / 255.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <unistd.h>

#include "base/check.h"
#include "base/file.h"
#include "base/hash.h"
#include "frugal/llm.h"
#include "llm/kv/dictionary.h"
#include "support/tiny_dictionary.h"
#include "support/tiny_gguf.h"

namespace {

using namespace frugal;
using namespace frugal::llm;

constexpr size_t kHeadBytes = 64, kTokensAt = 36, kChecksumAt = 56;
constexpr int kTokens = 150;  // csr: the first block is coded

// One file of this process, written over and over.
const std::string& scratch_path() {
  static const std::string path =
      (std::filesystem::temp_directory_path() / ("frugal_fuzz_" + std::to_string(::getpid()))).string();
  return path;
}

struct Subject {
  std::unique_ptr<Engine> engine;
  std::string file;
};

Subject make(std::shared_ptr<const Model> model, std::shared_ptr<const KvSource> source) {
  EngineOptions options;
  options.n_threads = 1;
  options.n_ctx = 256;
  options.max_sequences = 1;
  options.kv_source = std::move(source);
  Subject subject;
  subject.engine = Engine::create(std::move(model), options).value();
  const SequenceId sequence = subject.engine->open_sequence().value();
  std::vector<Token> tokens(kTokens);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i * 7 % 300);
  FRUGAL_CHECK(subject.engine->prefill(sequence, tokens, nullptr).ok());
  FRUGAL_CHECK(subject.engine->save_sequence(sequence, scratch_path()).ok());
  subject.file = read_file(scratch_path()).value();
  subject.engine->close_sequence(sequence);
  return subject;
}

Subject& subject(bool coded) {
  static const std::shared_ptr<const Model> model = [] {
    frugal::llm::test::TinyModel tiny;
    tiny.architecture = "llama";
    tiny.head_dim = 32;
    tiny.n_ctx = 256;
    FRUGAL_CHECK(write_file_atomically(scratch_path(), frugal::llm::test::tiny_gguf(tiny)).ok());
    return Model::load(scratch_path()).value();
  }();
  static Subject dense = make(model, nullptr);
  static Subject csr = [] {
    const ModelInfo& info = model->info();
    auto dictionary = std::make_shared<const Dictionary>(
        frugal::llm::test::tiny_dictionary(1, info.n_layers, info.n_kv_heads, info.head_dim));
    return make(model, make_csr_source(dictionary, 2).value());
  }();
  return coded ? csr : dense;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  Subject& of = subject((data[0] & 1) != 0);
  std::string bytes = of.file;
  for (size_t at = 1; at + 5 <= size; at += 5) {
    uint32_t place;
    std::memcpy(&place, data + at, sizeof place);
    if (place == 0xffffffff) {
      bytes.resize(bytes.size() * data[at + 4] / 255);
    } else if (!bytes.empty()) {
      bytes[place % bytes.size()] = static_cast<char>(data[at + 4]);
    }
  }
  if ((data[0] & 2) != 0 && bytes.size() >= kHeadBytes) {
    const auto all = std::as_bytes(std::span(bytes));
    uint32_t n_tokens;
    std::memcpy(&n_tokens, bytes.data() + kTokensAt, sizeof n_tokens);
    const size_t n = std::min<size_t>(size_t{n_tokens} * sizeof(Token), bytes.size() - kHeadBytes);
    const uint64_t sum =
        checksum64(all.subspan(kHeadBytes, n)) * 31 + checksum64(all.subspan(kHeadBytes + n));
    std::memcpy(bytes.data() + kChecksumAt, &sum, sizeof sum);
  }
  FRUGAL_CHECK(write_file_atomically(scratch_path(), bytes).ok());
  const auto loaded = of.engine->load_sequence(scratch_path());
  std::filesystem::remove(scratch_path());
  if (!loaded.ok()) {
    FRUGAL_CHECK(!loaded.error().message.empty());
    return 0;
  }
  const Token next = 5;
  const BatchItem item{*loaded, {&next, 1}, LogitRows::kLast};
  (void)of.engine->forward({&item, 1});
  of.engine->close_sequence(*loaded);
  return 0;
}
