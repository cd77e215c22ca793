#include "cli/bench_tools.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <vector>

#include "base/clock.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"

namespace frugal::cli {

namespace {

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(fd, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;
    text.remove_prefix(static_cast<size_t>(put));
  }
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
  // Vectors read faster than words where they are wide: products of float panels, an addition for 64 bytes.
  constexpr size_t kDepth = 4096, kPanelFloats = kDepth * llm::kPanelRows;
  const std::vector<float> zeros(kDepth);
  for (int pass = 0; pass < 6; ++pass) {
    const double begin = wall_seconds();
    team.run([&](TeamMember member) {
      const auto* floats =
          reinterpret_cast<const float*>(buffer.data() + kWordsEach * static_cast<size_t>(member.idx));
      float y[llm::kPanelRows];
      for (size_t i = 0; i < kWordsEach * 2; i += kPanelFloats)
        llm::kernels().panel_f32({floats + i, llm::kPanelRows, 0, 1, kDepth, floats + i + kPanelFloats},
                                 zeros.data(), kDepth, 1, y, llm::kPanelRows, false);
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
  const std::vector<llm::ActSum> sums(scales.size(), {32.0f, -8 * 32});
  const llm::ActColumns x{q.data(), scales.data(), sums.data(), nullptr, kDepth, kDepth / 32, kDepth / 32};
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

int report_bench(const BenchContext& context, const std::vector<BenchRow>& rows, const std::string& out,
                 bool json) {
  if (!out.empty()) {
    if (const Status status = write_bench(out, context, rows); !status.ok()) return fail(status.error());
  }
  return print(json ? bench_json(context, rows) : bench_table(rows))
             ? kExitOk
             : fail({ErrorCode::kIo, "the result could not be written to stdout"});
}

}  // namespace frugal::cli
