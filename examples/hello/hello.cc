// The smallest program on top of frugal: loads a model, continues a prompt of tokens greedily, once with one
// thread and once with two, and says what the work cost. The tokens are the same to the last one: exactness
// is the default.
//
//   hello MODEL.gguf TOKEN...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "frugal/llm.h"
#include "frugal/log.h"
#include "frugal/result.h"

namespace {

using frugal::llm::Token;

constexpr int kNewTokens = 16;

frugal::Result<std::vector<Token>> continue_greedily(std::shared_ptr<const frugal::llm::Model> model,
                                                     const std::vector<Token>& prompt, int n_threads) {
  frugal::llm::EngineOptions options;
  options.n_threads = n_threads;
  options.n_ctx = static_cast<int>(prompt.size()) + kNewTokens;
  options.max_sequences = 1;
  FRUGAL_TRY(auto engine, frugal::llm::Engine::create(std::move(model), options));
  FRUGAL_TRY(const frugal::llm::SequenceId sequence, engine->open_sequence());
  FRUGAL_TRY_STATUS(engine->prefill(sequence, prompt));
  std::vector<Token> answer;
  while (static_cast<int>(answer.size()) < kNewTokens) {
    const auto logits = engine->logits(0);
    const auto best = std::distance(logits.begin(), std::max_element(logits.begin(), logits.end()));
    answer.push_back(static_cast<Token>(best));
    const frugal::llm::BatchItem item{sequence, std::span(answer).last(1), frugal::llm::LogitRows::kLast};
    FRUGAL_TRY_STATUS(engine->forward({&item, 1}));
  }
  std::printf("%d thread(s): %.2f GFLOP, %.0f ms of processor time:", n_threads, engine->usage().flops * 1e-9,
              engine->usage().cpu_seconds * 1e3);
  for (const Token token : answer) std::printf(" %d", token);
  std::printf("\n");
  return answer;
}

frugal::Result<bool> hello(const char* path, const std::vector<Token>& prompt) {
  FRUGAL_TRY(const auto model, frugal::llm::Model::load(path));
  std::printf("%s (%s), %.0f M parameters\n", model->info().name.c_str(), model->info().architecture.c_str(),
              static_cast<double>(model->info().n_parameters) * 1e-6);
  FRUGAL_TRY(const auto one, continue_greedily(model, prompt, 1));
  FRUGAL_TRY(const auto two, continue_greedily(model, prompt, 2));
  return one == two;
}

}  // namespace

int main(int argc, char** argv) {
  frugal::set_log_sink([](frugal::LogLevel level, std::string_view message) {
    if (level < frugal::LogLevel::kWarning) return;
    std::fprintf(stderr, "hello: %.*s\n", static_cast<int>(message.size()), message.data());
  });
  if (argc < 3) {
    std::fprintf(stderr, "usage: hello MODEL.gguf TOKEN...\n");
    return 2;
  }
  std::vector<Token> prompt;
  for (int i = 2; i < argc; ++i) prompt.push_back(static_cast<Token>(std::atoi(argv[i])));
  const auto same = hello(argv[1], prompt);
  if (!same.ok()) {
    std::fprintf(stderr, "hello: %s\n", same.error().message.c_str());
    return 1;
  }
  std::printf("the tokens are %s\n", *same ? "the same" : "NOT the same");
  return *same ? 0 : 1;
}
