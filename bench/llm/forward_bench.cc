// Bench of a whole forward pass without a peer, for profiles and for comparing two builds: milliseconds a
// step of B tokens at a depth of the cache, median and in steps of one token.
//
//   bench_llm_forward MODEL.gguf [DEPTH] [WIDTHS, "1,4,8"] [THREADS] [REPS]
//
// Widths take turns, so that a slow second of the machine falls on all of them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/team.h"
#include "frugal/llm.h"

namespace frugal::llm {
namespace {

int fail(const Error& error) {
  std::fprintf(stderr, "%s\n", error.message.c_str());
  return 1;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

int run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL.gguf [DEPTH] [WIDTHS] [THREADS] [REPS]\n", argv[0]);
    return 2;
  }
  const int depth = argc > 2 ? std::atoi(argv[2]) : 600;
  std::vector<size_t> widths;
  const std::string list = argc > 3 ? argv[3] : "1,2,4,8,16";
  for (size_t at = 0; at < list.size();
       at = list.find(',', at) == std::string::npos ? list.size() : list.find(',', at) + 1)
    widths.push_back(static_cast<size_t>(std::max(1, std::atoi(list.c_str() + at))));
  const int reps = argc > 5 ? std::atoi(argv[5]) : 40;
  auto model = Model::load(argv[1]);
  if (!model.ok()) return fail(model.error());
  EngineOptions options;
  options.n_threads = argc > 4 ? std::atoi(argv[4]) : usable_processors();
  options.n_ctx = depth + 64;
  auto engine = Engine::create(*model, options);
  if (!engine.ok()) return fail(engine.error());
  const auto sequence = (*engine)->open_sequence();
  if (!sequence.ok()) return fail(sequence.error());
  std::vector<Token> tokens(static_cast<size_t>(depth) + 64);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(1000 + i * 7919 % 7000);
  double begin = wall_seconds();
  if (const Status s = (*engine)->prefill(*sequence, std::span(tokens).first(static_cast<size_t>(depth)));
      !s.ok())
    return fail(s.error());
  std::printf("prefill %.1f tokens/s\n", depth / (wall_seconds() - begin));
  std::vector<std::vector<double>> times(widths.size());
  for (int rep = -2; rep < reps; ++rep) {
    for (size_t w = 0; w < widths.size(); ++w) {
      const BatchItem item{*sequence, std::span(tokens).subspan(static_cast<size_t>(depth), widths[w]),
                           LogitRows::kAll};
      begin = wall_seconds();
      const Status s = (*engine)->forward({&item, 1});
      const double took = wall_seconds() - begin;
      if (!s.ok()) return fail(s.error());
      if (rep >= 0) times[w].push_back(took);
      if (const Status back = (*engine)->truncate(*sequence, depth); !back.ok()) return fail(back.error());
    }
  }
  for (size_t w = 0; w < widths.size(); ++w) {
    std::printf("B=%-3zu %8.3f ms, best %8.3f  %6.2f steps\n", widths[w], 1e3 * median(times[w]),
                1e3 * *std::min_element(times[w].begin(), times[w].end()),
                median(times[w]) / median(times[0]));
  }
  return 0;
}

}  // namespace
}  // namespace frugal::llm

int main(int argc, char** argv) { return frugal::llm::run(argc, argv); }
