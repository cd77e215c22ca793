// frugal dnn worker: joins a tier over NATS and computes what frames' plans give it.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_nats.h"
#include "cli/dnn_setup.h"
#include "dnn/link/worker.h"

namespace frugal::cli {
namespace {

struct Options {
  dnn::BusOptions bus;
  dnn::WorkerOptions worker;
  bool list = false;
};

std::string default_cache() {
  if (const char* cache = std::getenv("FRUGAL_CACHE"); cache != nullptr && *cache != 0)
    return std::string(cache) + "/dnn-weights";
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr && *home != 0 ? home : ".") + "/.cache/frugal/dnn-weights";
}

// What the key-value bucket tells: workers that were alive within half a minute, and plans in force.
int list(const dnn::BusOptions& options) {
  const auto bus = dnn::Bus::connect(options);
  if (!bus.ok()) return fail(bus.error());
  const auto entries = (*bus)->list();
  if (!entries.ok()) return fail(entries.error());
  std::string text;
  for (const auto& [key, value] : *entries) text += key + " " + value + "\n";
  if (entries->empty()) text = "no worker has said anything in the last half minute\n";
  return print(text) ? kExitOk : kExitNoResource;
}

int run(Options options) {
  if (options.bus.url.empty()) options.bus.url = "nats://127.0.0.1:4222";
  options.bus.name = "frugal dnn worker " + options.worker.tier;
  if (options.list) return list(options.bus);
  if (options.worker.cache_folder.empty()) options.worker.cache_folder = default_cache();
  keep_freed_memory();
  install_interrupt_handler();
  auto worker = dnn::Worker::start(options.bus, options.worker);
  if (!worker.ok()) return fail(worker.error());
  std::fprintf(stderr, "worker %s of tier '%s' at %s; Ctrl-C ends it\n", (*worker)->name().c_str(),
               options.worker.tier.c_str(), options.bus.url.c_str());
  bool was_connected = true;
  while (!interrupted()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (const bool connected = (*worker)->connected(); connected != was_connected) {
      std::fprintf(stderr, connected ? "connected again\n"
                                     : "the NATS server is gone; trying again until it is back\n");
      was_connected = connected;
    }
  }
  const dnn::WorkerCounts counts = (*worker)->counts();
  std::fprintf(stderr, "%lu frames, %lu tiles, %lu refused or failed, %s of models received\n",
               counts.n_frames, counts.n_tiles, counts.n_failed,
               human_bytes(static_cast<double>(counts.model_bytes_received)).c_str());
  return kExitOk;
}

}  // namespace

Action add_dnn_worker(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_dnn_nats_options(app, options->bus, "address of the NATS server (default nats://127.0.0.1:4222)");
  app.add_option("--tier", options->worker.tier, "the tier to join")
      ->check([](const std::string& name) {
        const bool ok = !name.empty() &&
                        name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
        return ok ? std::string() : std::string("a tier's name is of a-z, 0-9 and -");
      })
      ->capture_default_str();
  app.add_option("--name", options->worker.name, "name shown in messages (default: host and process)");
  app.add_option("--threads", options->worker.n_threads, "threads that compute")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--frames", options->worker.n_frames, "frames in hand at once; they take turns at computing")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--models", options->worker.n_models, "models kept loaded")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--cache", options->worker.cache_folder,
                 "folder for models that were sent (default: frugal's cache)");
  app.add_option("--slowdown", options->worker.slowdown,
                 "stand for a host so many times slower: rests after computing, by processor time")
      ->check(CLI::Range(1.0, 1e4))
      ->capture_default_str();
  app.add_option("--turns", options->worker.turns_file,
                 "emulated hosts on one machine compute in turn: hold this file locked meanwhile");
  app.add_flag("--list", options->list,
               "list workers and plans that the server's key-value bucket knows, and end");
  app.footer(
      "Examples:\n  frugal dnn worker --tier edge --nats nats://10.0.0.2:4222\n"
      "  frugal dnn worker --tier cloud --nats tls://hub:4222 --tls-ca ca.pem --creds worker.creds\n"
      "  frugal dnn worker --list --nats nats://10.0.0.2:4222");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
