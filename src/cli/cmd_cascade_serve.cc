// frugal cascade serve: the allocator as an HTTP service beside a recommender.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cascade/serve/sidecar.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, host = "127.0.0.1", controller = "mpc", shadow;
  int port = 8077, threads = 8;
  cascade::SidecarOptions sidecar;
};

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
  auto sidecar = cascade::Sidecar::create(*std::move(spec), options.sidecar);
  if (!sidecar.ok()) return fail(sidecar.error());
  install_log_sink();
  install_interrupt_handler();
  const Status served = cascade::serve_http(
      **sidecar, options.host, options.port, options.threads, interrupted(), [&](int port) {
        std::fprintf(stderr, "frugal: %d chains on http://%s:%d/v1/decide; Ctrl-C ends\n",
                     (*sidecar)->spec().n_chains(), options.host.c_str(), port);
      });
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
  app.add_option("--budget", options->sidecar.flops_per_s, "FLOPs a second that may be spent; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--window", options->sidecar.governor.window_s, "seconds over which the budget is kept")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--controller", options->controller, "static, primal_dual, bisection, pid or mpc")
      ->capture_default_str();
  app.add_option("--shadow", options->shadow,
                 "always answer this chain (number or name) and only count what would have been chosen");
  app.add_option("--host", options->host, "address to listen on")->capture_default_str();
  app.add_option("--port,-p", options->port, "port; 0 takes a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--threads", options->threads, "connections served at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  return [options] { return serve(*options); };
}

}  // namespace frugal::cli
