// Fuzzes the bodies that clients send to `frugal cascade serve`: an answer is always JSON, a refusal says
// why, and whoever was refused is not counted as served.
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/check.h"
#include "cascade/serve/sidecar.h"
#include "cascade/synthetic.h"

namespace {

using namespace frugal;
using namespace frugal::cascade;

std::unique_ptr<Sidecar> sidecar() {
  const auto world = SyntheticWorld::create({}).value();
  const std::string path =
      (std::filesystem::temp_directory_path() / ("cascade_body_fuzz_" + std::to_string(getpid()) + ".frm"))
          .string();
  TrainOptions train;
  train.epochs = 1;
  FRUGAL_CHECK(RewardModel::train(world.spec(), world.logs(200, 1), train).value().save(path).ok());
  SidecarOptions options;
  options.model_path = path;
  options.budgets.flops_per_s = 1e9;
  auto made = Sidecar::create(world.spec(), options).value();
  std::filesystem::remove(path);
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<Sidecar> served = sidecar();
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const uint64_t before = served->totals().requests;
  const Sidecar::Answer answer = served->decide(body);
  const auto json = nlohmann::json::parse(answer.body, nullptr, false);
  FRUGAL_CHECK(!json.is_discarded());
  if (answer.status == 200) {
    const auto decided = json.contains("decisions") ? json["decisions"].size() : 1;
    FRUGAL_CHECK(served->totals().requests == before + decided);
  } else {
    FRUGAL_CHECK(answer.status == 400 && !json["error"]["message"].get<std::string>().empty());
  }
  int answers = 0;
  served->recommend(body, [&](const Sidecar::Answer& refused) {
    FRUGAL_CHECK(refused.status == 404 || refused.status == 400);  // stages do not run here
    ++answers;
  });
  FRUGAL_CHECK(answers == 1);
  return 0;
}
