// write_tiny_gguf FILE: a llama of six layers for tests that run the command.
#include <cstdio>

#include "support/tiny_gguf.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  frugal::llm::test::TinyModel tiny;
  tiny.head_dim = 32;
  tiny.n_layers = 6;
  tiny.n_ctx = 1024;
  const frugal::Status status = frugal::llm::test::write_tiny_gguf(tiny, argv[1]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return status.ok() ? 0 : 1;
}
