// frugal cascade train: fits the reward model on logged chains of a cascade, and says how good it is.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cascade/evaluate.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, out, from;
  int logs_per_request = cascade::EvaluateOptions{}.logs_per_request;  // as what is judged
  bool json = false;
  cascade::TrainOptions train = cascade::EvaluateOptions{}.train;
};

int train(const Options& options) {
  const auto spec = cascade::load_cascade(options.cascade_folder);
  if (!spec.ok()) return fail(spec.error());
  const auto fit = cascade::load_replayed(options.cascade_folder, "fit", *spec);
  if (!fit.ok()) return fail(fit.error());
  const auto test = cascade::load_replayed(options.cascade_folder, "test", *spec);
  if (!test.ok()) return fail(test.error());
  std::vector<int> rows(static_cast<size_t>(fit->n));
  std::iota(rows.begin(), rows.end(), 0);
  const auto logs =
      cascade::sample_logs(*fit, rows, spec->n_chains(), options.logs_per_request, options.train.seed);
  const auto make = [&]() -> Result<cascade::RewardModel> {
    if (options.from.empty()) return cascade::RewardModel::train(*spec, logs, options.train);
    FRUGAL_TRY(const auto old, cascade::RewardModel::load(options.from, *spec));
    return cascade::RewardModel::retrain(old, *spec, logs, options.train);
  };
  const auto model = make();
  if (!model.ok()) return fail(model.error());
  if (const Status saved = model->save(options.out); !saved.ok()) return fail(saved.error());
  const cascade::Quality quality = cascade::judge(*model, test->features, test->rewards, test->n);
  if (options.json) {
    std::printf("%s\n", nlohmann::json{{"model", options.out},
                                       {"parameters", model->n_parameters()},
                                       {"flops", model->flops()},
                                       {"spearman", quality.spearman},
                                       {"within_spearman", quality.within_spearman},
                                       {"rmse", quality.rmse},
                                       {"bias", quality.bias},
                                       {"calibration", quality.calibration}}
                            .dump(1)
                            .c_str());
    return kExitOk;
  }
  std::printf("%s: %d parameters, %.0f FLOPs a request, trained on %d logged chains of %d requests\n",
              options.out.c_str(), model->n_parameters(), model->flops(), logs.n, fit->n);
  std::printf(
      "on %d requests kept apart, against clicks: rank correlation %.3f (within a request %.3f), bias %+.1f "
      "%%, calibration error %.1f %%\n",
      test->n, quality.spearman, quality.within_spearman, 100 * quality.bias, 100 * quality.calibration);
  return kExitOk;
}

}  // namespace

Action add_cascade_train(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder, "folder with cascade.json and replayed requests")
      ->required();
  app.add_option("--out,-o", options->out, "file to write the reward model to")->required();
  app.add_option("--from", options->from, "an older reward model to go on from");
  app.add_option("--logs", options->logs_per_request, "logged chains of each request")->capture_default_str();
  app.add_option("--epochs", options->train.epochs, "passes over the logs")->capture_default_str();
  app.add_option("--rate", options->train.rate, "learning rate")->capture_default_str();
  app.add_option("--hidden", options->train.model.hidden, "units that mix features, 0 to 32")
      ->capture_default_str();
  app.add_option("--seed", options->train.seed, "seed")->capture_default_str();
  app.add_flag("--json", options->json, "print JSON");
  return [options] { return train(*options); };
}

}  // namespace frugal::cli
