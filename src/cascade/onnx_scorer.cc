// A stage's ONNX model through dnn/exec.
#include <cstring>

#include "base/text.h"
#include "cascade/runner.h"
#include "dnn/exec/network.h"

namespace frugal::cascade {
namespace {

dnn::HostTensor whole_numbers(std::span<const int64_t> values, int64_t rows, int64_t columns) {
  dnn::HostTensor tensor{"i64", {rows, columns}, std::vector<std::byte>(values.size() * sizeof(int64_t))};
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

class OnnxScorer final : public Scorer {
 public:
  OnnxScorer(std::string path, int history_length, bool first, int n_threads)
      : path_(std::move(path)), history_length_(history_length), first_(first), n_threads_(n_threads) {}

  Status score(std::span<const int64_t> histories, std::span<const int64_t> items, int batch, int n,
               std::vector<float>& scores) override {
    int padded = 1;
    while (padded < batch) padded *= 2;
    FRUGAL_TRY(dnn::Part * part, compiled(padded, first_ ? 0 : n));
    // Rows that fill up the batch repeat the first request.
    filled_.assign(histories.begin(), histories.end());
    const auto fill = [&](std::span<const int64_t> values, int64_t columns) {
      filled_.assign(values.begin(), values.end());
      for (int row = batch; row < padded; ++row)
        filled_.insert(filled_.end(), filled_.begin(), filled_.begin() + columns);
      return whole_numbers(filled_, padded, columns);
    };
    const dnn::HostTensor history = fill(histories, history_length_);
    dnn::HostTensor item;
    std::vector<const dnn::HostTensor*> inputs{&history};
    if (!first_) {
      item = fill(items, n);
      inputs.push_back(&item);
    }
    if (part->inputs().size() != inputs.size()) {
      return {ErrorCode::kUnsupported,
              strf("%s takes %zu inputs; a stage takes %s", path_.c_str(), part->inputs().size(),
                   first_ ? "the history alone if it is the first" : "history and items")};
    }
    if (Status status = part->run(inputs, outputs_); !status.ok())
      return {status.error().code, path_ + ": " + status.error().message};
    const size_t wanted = static_cast<size_t>(batch) * static_cast<size_t>(n);
    if (outputs_.size() != 1 || outputs_[0].type != "f32" ||
        outputs_[0].bytes.size() != static_cast<size_t>(padded) * static_cast<size_t>(n) * sizeof(float)) {
      return {ErrorCode::kUnsupported,
              strf("%s does not give one float32 score for each of %d items", path_.c_str(), n)};
    }
    scores.resize(wanted);
    std::memcpy(scores.data(), outputs_[0].bytes.data(), wanted * sizeof(float));
    return {};
  }

  Result<dnn::Part*> compiled(int batch, int n) {
    const auto found = parts_.find({batch, n});
    if (found != parts_.end()) return found->second.get();
    std::vector<std::vector<int64_t>> shapes{{batch, history_length_}};
    if (!first_) shapes.push_back({batch, n});
    // All shapes share the tables of the first.
    std::shared_ptr<const dnn::Network> network;
    if (loaded_ == nullptr) {
      FRUGAL_TRY(network, dnn::Network::load(path_, {.input_shapes = shapes}));
      loaded_ = network;
    } else {
      FRUGAL_TRY(network, loaded_->reshaped(shapes));
    }
    FRUGAL_TRY(auto part, network->compile_whole(n_threads_));
    return (parts_[{batch, n}] = std::move(part)).get();
  }

 private:
  std::string path_;
  int history_length_;
  bool first_;
  int n_threads_;
  std::shared_ptr<const dnn::Network> loaded_;
  std::map<std::pair<int, int>, std::unique_ptr<dnn::Part>> parts_;  // by padded batch and items
  std::vector<int64_t> filled_;
  std::vector<dnn::HostTensor> outputs_;
};

}  // namespace

Result<std::unique_ptr<Scorer>> open_onnx_scorer(const std::string& folder, const CascadeSpec& spec,
                                                 int stage, int model, int n_threads) {
  const StageModel& one = spec.stages[static_cast<size_t>(stage)].models[static_cast<size_t>(model)];
  if (one.file.empty())
    return {ErrorCode::kInvalidArgument, "model '" + one.name + "' names no file: this cascade cannot run"};
  const std::string path = one.file.front() == '/' ? one.file : folder + "/" + one.file;
  auto scorer = std::make_unique<OnnxScorer>(path, spec.history_length, stage == 0, n_threads);
  // Compiling one shape now shows a damaged model when the cascade is loaded, not at the first request.
  FRUGAL_TRY(const dnn::Part* part, scorer->compiled(1, stage == 0 ? 0 : spec.shown));
  static_cast<void>(part);
  return std::unique_ptr<Scorer>(std::move(scorer));
}

}  // namespace frugal::cascade
