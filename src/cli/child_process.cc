#include "cli/child_process.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/text.h"

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

}  // namespace

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

bool finds_command(const std::string& name) {
  if (name.find('/') != std::string::npos) return ::access(name.c_str(), X_OK) == 0;
  const char* set = std::getenv("PATH");
  const std::string path = set == nullptr ? "" : set;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    if (::access((path.substr(at, end - at) + "/" + name).c_str(), X_OK) == 0) return true;
    at = end + 1;
  }
  return false;
}

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
  const size_t end = command.find_first_of(":@"), at_sign = command.find('@');
  if (at_sign != std::string::npos)
    n_tokens = std::min(n_tokens, std::max(2, std::atoi(command.c_str() + at_sign + 1)));
  std::vector<std::string> words = {"timeout",
                                    "60",
                                    command.substr(0, end),
                                    "-m",
                                    model,
                                    "-p",
                                    prompt,
                                    "--no-escape",
                                    "-n",
                                    strf("%d", n_tokens),
                                    "-t",
                                    strf("%d", n_threads),
                                    "-c",
                                    "0",
                                    "--temp",
                                    "0",
                                    "--ignore-eos"};
  if (end != std::string::npos && command[end] == ':')
    words.insert(words.end(), {"--spec-type", command.substr(end + 1, at_sign - end - 1)});
  FRUGAL_TRY(const ChildOutput out, run_command(std::move(words), /*with_stderr=*/true));
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
