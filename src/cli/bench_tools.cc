#include "cli/bench_tools.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/clock.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/llm_options.h"
#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"

namespace frugal::cli {

namespace {

// Everything that can be read from `fd`.
std::string drain(int fd) {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;
    text.remove_prefix(static_cast<size_t>(put));
  }
}

struct ChildOutput {
  std::string text;
  bool ok = false;
};

// Forks; the child writes to a pipe that becomes `ChildOutput::text`.
Result<ChildOutput> fork_and_read(const std::function<int(int fd)>& child) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Error{ErrorCode::kNoMemory, "no pipe for a child process"};
  const pid_t pid = ::fork();
  if (pid < 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    return Error{ErrorCode::kNoMemory, "the host refuses a child process"};
  }
  if (pid == 0) {
    ::close(ends[0]);
    _exit(child(ends[1]));
  }
  ::close(ends[1]);
  ChildOutput out;
  out.text = drain(ends[0]);
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  out.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return out;
}

// What the command prints, its stderr too if asked for.
Result<ChildOutput> run_command(std::vector<std::string> words, bool with_stderr) {
  return fork_and_read([&](int fd) {
    ::dup2(fd, STDOUT_FILENO);
    const int other = with_stderr ? fd : ::open("/dev/null", O_WRONLY);
    if (other >= 0) ::dup2(other, STDERR_FILENO);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    return 127;
  });
}

}  // namespace

Result<double> peak_memory_of_child(const std::function<Status()>& work) {
  FRUGAL_TRY(const ChildOutput out, fork_and_read([&](int fd) {
               const Status status = work();
               write_all(fd, status.ok() ? strf("%.0f", peak_memory_bytes()) : status.error().message);
               return status.ok() ? 0 : 1;
             }));
  if (!out.ok) return Error{ErrorCode::kUnavailable, "measuring memory in a child process: " + out.text};
  return std::strtod(out.text.c_str(), nullptr);
}

double read_bandwidth(int n_threads) {
  ThreadTeam team(n_threads);
  constexpr size_t kWordsEach = size_t{96} << 17;  // 96 MiB a thread: beyond any cache of its own
  std::vector<uint64_t> buffer(kWordsEach * static_cast<size_t>(team.size()), 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    const double begin = wall_seconds();
    team.run([&](TeamMember member) {
      const uint64_t* words = buffer.data() + kWordsEach * static_cast<size_t>(member.idx);
      uint64_t sums[8] = {};
      for (size_t i = 0; i < kWordsEach; i += 8) {
        for (size_t lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
      }
      for (const uint64_t sum : sums) sink.fetch_add(sum, std::memory_order_relaxed);
    });
    const double seconds = wall_seconds() - begin;
    if (pass > 0) best = std::max(best, static_cast<double>(buffer.size() * sizeof(uint64_t)) / seconds);
  }
  return sink.load() > 0 ? best : 0;
}

double product_peak(int n_threads) {
  ThreadTeam team(n_threads);
  constexpr size_t kDepth = 256, kColumns = 8, kRounds = 20'000;  // some 10 ms
  // One panel and its columns, 5 KiB, stay in the first-level cache. Zeros take as long as other numbers.
  const std::vector<std::byte> panel(llm::panel_bytes(llm::PanelType::kQ4_1, kDepth));
  const std::vector<int8_t> q(kDepth * kColumns, 1);
  const std::vector<float> scales(kDepth / 32 * kColumns, 1.0f);
  const llm::ActColumns x{q.data(), scales.data(), scales.data(), nullptr, kDepth, kDepth / 32, kDepth / 32};
  double best = 0;
  for (int pass = 0; pass < 8; ++pass) {
    const double begin = wall_seconds();
    team.run([&](TeamMember) {
      float y[kColumns * llm::kPanelRows];
      for (size_t i = 0; i < kRounds; ++i) {
        llm::kernels().panel_q4_1(panel.data(), kDepth, x, kColumns, y, llm::kPanelRows);
      }
    });
    const auto products = static_cast<double>(kRounds * kDepth * kColumns * llm::kPanelRows) * team.size();
    best = std::max(best, products / (wall_seconds() - begin));
  }
  return best;
}

std::string kernel_isa() { return llm::kernels().name; }

Result<double> run_llama_bench(const LlamaBenchCase& bench) {
  FRUGAL_TRY(const ChildOutput out, run_command({bench.command,
                                                 "-m",
                                                 bench.model,
                                                 "-t",
                                                 strf("%d", bench.n_threads),
                                                 "-p",
                                                 strf("%d", bench.n_prompt),
                                                 "-n",
                                                 strf("%d", bench.n_generate),
                                                 "-d",
                                                 strf("%d", bench.depth),
                                                 "-r",
                                                 "1",
                                                 "-o",
                                                 "json",
                                                 "-ngl",
                                                 "0",
                                                 "-ctk",
                                                 bench.kv,
                                                 "-ctv",
                                                 bench.kv,
                                                 "-fa",
                                                 "0,1"},
                                                /*with_stderr=*/false));
  const auto rows = nlohmann::json::parse(out.text, nullptr, /*allow_exceptions=*/false);
  double best = 0;
  if (out.ok && rows.is_array()) {
    for (const auto& row : rows) {
      if (row.is_object() && row.contains("avg_ts") && row["avg_ts"].is_number()) {
        best = std::max(best, row["avg_ts"].get<double>());
      }
    }
  }
  if (best <= 0)
    return Error{ErrorCode::kUnavailable,
                 "'" + bench.command + "' gave no speed; is it llama.cpp's llama-bench?"};
  return best;
}

Result<LlamaSpeculation> run_llama_speculation(const std::string& command, const std::string& model,
                                               const std::string& prompt, int n_tokens, int n_threads) {
  FRUGAL_TRY(const ChildOutput out,
             run_command({command, "-m", model, "-p", prompt, "--no-escape", "-n", strf("%d", n_tokens), "-t",
                          strf("%d", n_threads), "-c", "0", "--temp", "0", "--ignore-eos"},
                         /*with_stderr=*/true));
  // "decoded  256 tokens in    1.234 seconds"
  LlamaSpeculation said;
  const size_t at = out.text.find("decoded ");
  if (!out.ok || at == std::string::npos ||
      std::sscanf(out.text.c_str() + at, "decoded %d tokens in %lf seconds", &said.tokens, &said.seconds) !=
          2 ||
      said.tokens < 1 || said.seconds <= 0) {
    return Error{ErrorCode::kUnavailable,
                 "'" + command +
                     "' did not say how fast it decoded; is it llama.cpp's llama-lookup or "
                     "llama-lookahead? (scripts/bootstrap.py --peers builds both)"};
  }
  return said;
}

}  // namespace frugal::cli
