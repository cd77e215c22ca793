// A stage's ONNX model through dnn/exec.
#include <cstring>

#include "base/text.h"
#include "cascade/runner.h"
#include "dnn/exec/network.h"

namespace frugal::cascade {
namespace {

class OnnxScorer final : public Scorer {
 public:
  OnnxScorer(std::string path, int history_length, bool first, int n_threads)
      : path_(std::move(path)), history_length_(history_length), first_(first), n_threads_(n_threads) {}

  Result<std::span<float>> score(std::span<const int64_t> histories, std::span<const int64_t> items,
                                 int batch, int n) override {
    int padded = 1;
    while (padded < batch) padded *= 2;
    FRUGAL_TRY(dnn::Part * part, compiled(padded, first_ ? 0 : n));
    fill(histories, padded, history_length_, history_);
    if (!first_) fill(items, padded, n, items_);
    const dnn::HostTensor* const inputs[] = {&history_, &items_};
    const size_t n_inputs = first_ ? 1 : 2;
    if (part->inputs().size() != n_inputs) {
      return Error{ErrorCode::kUnsupported,
                   strf("%s takes %zu inputs; a stage takes %s", path_.c_str(), part->inputs().size(),
                        first_ ? "the history alone if it is the first" : "history and items")};
    }
    if (Status status = part->run({inputs, n_inputs}, outputs_); !status.ok())
      return Error{status.error().code, path_ + ": " + status.error().message};
    const auto row = static_cast<size_t>(n);
    if (outputs_.size() != 1 || outputs_[0].type != "f32" ||
        outputs_[0].bytes.size() != static_cast<size_t>(padded) * row * sizeof(float)) {
      return Error{ErrorCode::kUnsupported,
                   strf("%s does not give one float32 score for each of %d items", path_.c_str(), n)};
    }
    return std::span(reinterpret_cast<float*>(outputs_[0].bytes.data()), static_cast<size_t>(batch) * row);
  }

  // Rows of `columns` numbers; those that fill up the batch repeat the first.
  static void fill(std::span<const int64_t> values, int padded, int columns, dnn::HostTensor& tensor) {
    const size_t row = static_cast<size_t>(columns) * sizeof(int64_t);
    tensor.type = "i64";
    tensor.shape.assign({padded, columns});
    tensor.bytes.resize(static_cast<size_t>(padded) * row);
    std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
    for (size_t at = values.size_bytes(); at < tensor.bytes.size(); at += row)
      std::memcpy(tensor.bytes.data() + at, tensor.bytes.data(), row);
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
  dnn::HostTensor history_, items_;
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
