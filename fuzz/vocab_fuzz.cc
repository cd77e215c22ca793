// Fuzzes the way from a model file to its vocabulary: whatever passes check_tokenizer() must load in
// llama.cpp or be refused by it, and then encode and decode, without ending the process.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/check.h"
#include "llm/model/gguf.h"
#include "llm/model/tokenizer_check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::llm;
  const auto parsed = GgufFile::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!parsed.ok() || !check_tokenizer(*parsed).ok()) return 0;
  // llama.cpp reads files by name.
  const int fd = memfd_create("fuzz", 0);
  FRUGAL_CHECK(fd >= 0 && write(fd, data, size) == static_cast<ssize_t>(size));
  const auto tokenizer = Tokenizer::open_checked("/proc/self/fd/" + std::to_string(fd));
  close(fd);
  if (!tokenizer.ok()) return 0;
  const Tokenizer& t = **tokenizer;
  const std::string text =
      "they know <|im_end|> \xC3\xA9\n" + t.spelling(t.eos()) + t.spelling(t.n_vocab() / 2);
  for (const bool special : {false, true}) {
    const auto tokens = t.encode(text, special, special);
    if (!tokens.ok()) continue;
    FRUGAL_CHECK(t.decode(*tokens).ok() || !t.decode(*tokens).error().message.empty());
    for (const Token token : *tokens) FRUGAL_CHECK(token >= 0 && token < t.n_vocab());
  }
  return 0;
}
