// frugal cascade serve: the allocator as an HTTP service beside a recommender.
#include <CLI/CLI.hpp>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "cascade/pricing.h"
#include "cascade/serve/http.h"
#include "cli/carbon_source.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, controller = "mpc", shadow;
  std::string costs;
  double latency_ms = 0;
  bool items = false;
  int menu = 0;
  cascade::HttpServeOptions http{.port = 8077};
  cascade::SidecarOptions sidecar;
  budget::ShareOptions share;
  double ledger_every_s = 60;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
};

// Writes what the requests cost to the ledger: one row for those of a minute, and the rest at the end.
class RequestLedger {
 public:
  RequestLedger(const Options& options, const cascade::Sidecar& sidecar, meter::PowerMeter& meter)
      : options_(options),
        sidecar_(sidecar),
        meter_(meter),
        start_(meter.snapshot()),
        cpu_s_(process_cpu_seconds()) {
    thread_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      const auto interval = std::chrono::duration<double>(options_.ledger_every_s);
      while (!wake_.wait_for(lock, interval, [this] { return stop_; })) write();
      write();
    });
  }
  ~RequestLedger() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  void write() {
    const cascade::Sidecar::Totals now = sidecar_.totals();
    if (now.requests == before_.requests) return;  // an idle sidecar fills no ledger
    const meter::Snapshot end = meter_.snapshot();
    const double cpu_s = process_cpu_seconds();
    meter::LedgerEntry entry;
    entry.kind = "cascade";
    entry.name = "cascade serve " + options_.cascade_folder;
    entry.model = options_.sidecar.model_path;
    entry.unit = "request";
    entry.units = static_cast<double>(now.requests - before_.requests);
    entry.usage.flops = now.flops - before_.flops;
    entry.usage.cpu_seconds = cpu_s - cpu_s_;
    entry.usage.wall_seconds = end.host.wall_s - start_.host.wall_s;
    entry.usage.bytes_held = peak_memory_bytes();
    const meter::Charge charge = meter_.charge(start_, entry.usage);
    record(*options_.ledger, meter_, start_, charge, entry);
    start_ = end;
    cpu_s_ = cpu_s;
    before_ = now;
  }

  const Options& options_;
  const cascade::Sidecar& sidecar_;
  meter::PowerMeter& meter_;
  meter::Snapshot start_;
  double cpu_s_;
  cascade::Sidecar::Totals before_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

// What budgets of carbon and latency are reckoned by: the costs measured on this machine, and the grid.
Status read_budgets(Options& options, const cascade::CascadeSpec& spec) {
  cascade::BudgetOptions& budgets = options.sidecar.budgets;
  budgets.latency_s = 1e-3 * options.latency_ms;
  const bool carbon = budgets.gco2e_per_h > 0 || budgets.carbon_price > 0;
  if (!carbon && budgets.latency_s == 0) return {};
  const std::string costs = options.costs.empty() ? options.cascade_folder + "/costs.json" : options.costs;
  auto read = cascade::load_costs(costs, spec);
  if (!read.ok()) {
    return {read.error().code, read.error().message + "; `frugal cascade profile " + options.cascade_folder +
                                   "` measures the chains on this machine"};
  }
  budgets.costs = *std::move(read);
  if (!carbon) return {};
  if (options.meter->carbon_file.empty())
    return {ErrorCode::kInvalidArgument,
            "a carbon budget follows the grid's intensity: give it with --carbon-file"};
  FRUGAL_TRY(const std::string path, carbon_path(options.meter->carbon_file, options.meter->region));
  FRUGAL_TRY(budgets.intensity, meter::read_intensity(path, options.meter->region));
  return {};
}

int serve(Options options) {
  auto spec = cascade::load_cascade(options.cascade_folder);
  if (!spec.ok()) return fail(spec.error());
  const auto kind = budget::parse_controller(options.controller);
  if (!kind.ok()) return fail(kind.error());
  options.sidecar.governor.controller.kind = *kind;
  if (!options.shadow.empty()) {
    for (int j = 0; j < spec->n_chains() && options.sidecar.shadow_chain < 0; ++j) {
      if (cascade::chain_name(*spec, j) == options.shadow || std::to_string(j) == options.shadow)
        options.sidecar.shadow_chain = j;
    }
    if (options.sidecar.shadow_chain < 0) {
      return fail(
          {ErrorCode::kInvalidArgument, "--shadow: there is no chain '" + options.shadow +
                                            "'; give its number or its name as in an answer of /v1/decide"});
    }
  }
  if (options.menu > 0) {
    const auto model = cascade::RewardModel::load(options.sidecar.model_path, *spec);
    if (!model.ok()) return fail(model.error());
    auto menu = cascade::menu_of_fit(options.cascade_folder, *spec, *model, options.menu);
    if (!menu.ok()) return fail(menu.error());
    options.sidecar.menu = *std::move(menu);
  }
  if (const Status status = read_budgets(options, *spec); !status.ok()) return fail(status.error());
  if (options.items) options.sidecar.items_folder = options.cascade_folder;
  if (!options.share.url.empty()) options.sidecar.share = options.share;
  auto sidecar = cascade::Sidecar::create(*std::move(spec), options.sidecar);
  if (!sidecar.ok()) return fail(sidecar.error());
  const auto meter = open_meter(*options.meter);
  if (!meter.ok()) return fail(meter.error());
  install_log_sink();
  install_interrupt_handler();
  auto requests = std::make_unique<RequestLedger>(options, **sidecar, **meter);
  const Status served = cascade::serve_http(**sidecar, options.http, interrupted(), [&](int port) {
    std::fprintf(stderr, "frugal: %d chains on http://%s:%d/v1/decide%s; Ctrl-C ends\n",
                 (*sidecar)->spec().n_chains(), options.http.host.c_str(), port,
                 options.items ? " and /v1/recommend" : "");
  });
  requests.reset();
  if (!served.ok()) return fail(served.error());
  std::printf("%s\n", (*sidecar)->state().body.c_str());
  return kExitOk;
}

}  // namespace

Action add_cascade_serve(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder, "folder with cascade.json")->required();
  app.add_option("--model,-m", options->sidecar.model_path,
                 "reward model of `frugal cascade train`; replaced under load when the file changes")
      ->required();
  app.add_option("--budget", options->sidecar.budgets.flops_per_s,
                 "FLOPs a second that may be spent; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option(
         "--carbon-budget", options->sidecar.budgets.gco2e_per_h,
         "grams of CO2 equivalent an hour that may be spent, by the intensity of --carbon-file at the time; "
         "0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option(
         "--carbon-price", options->sidecar.budgets.carbon_price,
         "reward that a gram has to earn, a fixed price instead of a budget (where a budget of grams is "
         "given, the price it starts at)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--latency", options->latency_ms,
                 "milliseconds that the stages of a request may take in the mean; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--costs", options->costs,
                 "costs of the chains, for carbon and latency (default: costs.json in the cascade's folder)");
  app.add_option("--window", options->sidecar.governor.window_s, "seconds over which the budget is kept")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--controller", options->controller, "static, primal_dual, bisection, pid or mpc")
      ->capture_default_str();
  app.add_option("--shadow", options->shadow,
                 "always answer this chain (number or name) and only count what would have been chosen");
  app.add_option(
         "--menu", options->menu,
         "choose among so many chains, picked once by what they are worth to the cascade's fitting requests: "
         "fuller batches of each; 0: all chains")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--items", options->items,
               "also run the cascade's stages (ONNX files or http:// addresses) and answer /v1/recommend");
  app.add_option("--runners", options->sidecar.items.n_runners, "threads that run stages, with --items")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  options->share.url.clear();
  app.add_option("--share", options->share.url,
                 "NATS server with JetStream (nats://HOST:4222): budget and price are then those of all "
                 "allocators that name the same bucket");
  app.add_option("--share-bucket", options->share.bucket, "key-value bucket of the shared price")
      ->capture_default_str();
  app.add_option("--share-id", options->share.id, "this allocator's name (default: drawn at random)");
  app.add_option("--share-sync", options->share.sync_s, "seconds between reports to the others")
      ->check(CLI::Range(0.01, 60.0))
      ->capture_default_str();
  app.add_option("--share-lease", options->share.lease_s,
                 "a leader silent for so many seconds is taken for dead")
      ->check(CLI::Range(0.03, 600.0))
      ->capture_default_str();
  app.add_option("--share-stale", options->share.max_stale_s,
                 "without news for so many seconds this allocator steers its own price")
      ->check(CLI::Range(0.03, 86400.0))
      ->capture_default_str();
  app.add_option("--host", options->http.host, "address to listen on")->capture_default_str();
  app.add_option("--port,-p", options->http.port, "port; 0 takes a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--threads", options->http.n_loops,
                 "threads that serve, each any number of connections; one saturates a core")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--ledger-every", options->ledger_every_s,
                 "seconds of requests that one row of the ledger holds")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  app.footer(
      "Examples:\n"
      "  frugal cascade serve shop -m reward.frm --budget 1e9\n"
      "  curl -d '{\"features\": [0.3, -1.2, ...]}' http://127.0.0.1:8077/v1/decide\n"
      "  frugal cascade serve shop -m reward.frm --carbon-budget 0.2 --carbon-file es.csv --latency 0.1\n"
      "  frugal cascade serve shop -m reward.frm --budget 1e9 --items    items out of /v1/recommend\n"
      "  frugal cascade serve shop -m reward.frm --budget 1e9 --shadow 63    change nothing, log what would "
      "be "
      "saved\n"
      "  frugal cascade serve shop -m reward.frm --budget 8e9 --share nats://10.0.0.5:4222    on each of "
      "several "
      "hosts");
  return [options] { return serve(*options); };
}

}  // namespace frugal::cli
