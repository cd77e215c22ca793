// frugal cascade simulate: a day of a synthetic recommender under a budget, window by window.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cascade/day.h"
#include "cascade/export.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string controller = "mpc", export_folder;
  int chains = 64, train_rows = 20000;
  bool truth = false, json = false, no_cap = false;
  cascade::DayOptions day;
};

int simulate(Options options) {
  const auto kind = budget::parse_controller(options.controller);
  if (!kind.ok()) return fail(kind.error());
  options.day.governor.controller.kind = *kind;
  options.day.governor.hard_cap = !options.no_cap;
  const auto world = cascade::SyntheticWorld::create({.n_chains = options.chains});
  if (!world.ok()) return fail(world.error());
  if (!options.export_folder.empty()) {
    const Status written = cascade::export_world(*world, options.export_folder, {.seed = options.day.seed});
    if (!written.ok()) return fail(written.error());
    std::printf("%s: a synthetic cascade of %d chains; next: frugal cascade train %s --out reward.frm\n",
                options.export_folder.c_str(), world->spec().n_chains(), options.export_folder.c_str());
    return kExitOk;
  }
  std::unique_ptr<cascade::RewardModel> model;
  if (!options.truth) {
    auto trained =
        cascade::RewardModel::train(world->spec(), world->logs(options.train_rows, options.day.seed), {});
    if (!trained.ok()) return fail(trained.error());
    model = std::make_unique<cascade::RewardModel>(*std::move(trained));
  }
  const auto day = cascade::simulate_day(*world, model.get(), options.day);
  if (!day.ok()) return fail(day.error());
  if (options.json) {
    nlohmann::json out = {{"controller", options.controller},
                          {"requests", day->requests},
                          {"flops", day->spent},
                          {"utilisation", day->utilisation},
                          {"over_use", day->over_use},
                          {"worst_over_use", day->worst_over},
                          {"regret", day->regret},
                          {"reward_predicted", day->predicted},
                          {"reward_true", day->truth},
                          {"spike_utilisation", day->spike.utilisation},
                          {"spike_over_use", day->spike.over_use},
                          {"price_swing", day->swing},
                          {"lp_price_swing", day->bound_swing},
                          {"ticks", day->ticks}};
    for (const auto& row : day->rows) {
      out["windows"].push_back({{"start_s", row.start_s},
                                {"requests", row.requests},
                                {"use", row.spent / row.budget},
                                {"price", row.price},
                                {"reward", row.truth}});
    }
    std::printf("%s\n", out.dump(1).c_str());
    return kExitOk;
  }
  std::printf("controller    %s%s\nrequests      %.0f in %zu windows of %.0f s\n", options.controller.c_str(),
              options.no_cap ? ", no cap" : "", day->requests, day->rows.size(),
              options.day.governor.window_s);
  std::printf(
      "utilisation   %.2f %%\nover-use      %.3f %% (worst window %.2f %%)\nin the spike  %.2f %% used, %.3f "
      "%% over; price "
      "steps %.1f %% a window (the LP's own: %.1f %%)\n",
      100 * day->utilisation, 100 * day->over_use, 100 * day->worst_over, 100 * day->spike.utilisation,
      100 * day->spike.over_use, 100 * day->swing, 100 * day->bound_swing);
  if (options.day.bound)
    std::printf("regret        %.2f %% of the LP optimum in hindsight\n", 100 * day->regret);
  std::printf("reward        %.4f clicks a request (true), %.4f (predicted)\n", day->truth / day->requests,
              day->predicted / day->requests);
  return kExitOk;
}

}  // namespace

Action add_cascade_simulate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--controller", options->controller, "static, primal_dual, bisection, pid or mpc")
      ->capture_default_str();
  app.add_option("--chains", options->chains, "64 or 1000")->capture_default_str();
  app.add_option("--seconds", options->day.seconds, "length of the day")->capture_default_str();
  app.add_option("--rps", options->day.mean_rps, "requests a second in the mean")->capture_default_str();
  app.add_option("--window", options->day.governor.window_s, "seconds over which the budget is kept")
      ->capture_default_str();
  app.add_option("--tick", options->day.tick_s, "seconds between price updates")->capture_default_str();
  app.add_option("--budget", options->day.budget_share,
                 "share of what the dearest chain for everyone would cost")
      ->capture_default_str();
  app.add_option("--spike", options->day.spike_factor, "factor of the load in the spike")
      ->capture_default_str();
  app.add_flag("--stationary", options->day.stationary, "the mean load all day, no peaks and no spike");
  app.add_flag("--no-cap", options->no_cap,
               "price control alone: do not fall back to the cheapest chain when a window's budget is gone");
  app.add_flag("--truth", options->truth, "decide by the true rewards instead of a trained reward model's");
  app.add_option("--export", options->export_folder,
                 "write the synthetic cascade to this folder, for train, report and serve, and stop");
  app.add_option("--train-rows", options->train_rows, "logged requests to train the reward model on")
      ->capture_default_str();
  app.add_option("--seed", options->day.seed, "seed")->capture_default_str();
  app.add_flag("--json", options->json, "print JSON, with every window");
  return [options] { return simulate(*options); };
}

}  // namespace frugal::cli
