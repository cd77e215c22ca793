#include "dnn/exec/network.h"

#include <algorithm>
#include <cstring>
#include <openvino/op/matmul.hpp>
#include <openvino/op/util/avg_pool_base.hpp>
#include <openvino/op/util/convolution_base.hpp>
#include <openvino/op/util/max_pool_base.hpp>
#include <openvino/opsets/opset8.hpp>
#include <openvino/pass/constant_folding.hpp>
#include <openvino/pass/manager.hpp>
#include <set>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "dnn/exec/openvino.h"

namespace frugal::dnn {
namespace {

using Node = std::shared_ptr<ov::Node>;

Error executor_error(const std::exception& error) {
  const std::string text = brief(error);
  if (text.find("not support") != std::string::npos || text.find("No conversion rule") != std::string::npos) {
    return {ErrorCode::kUnsupported, text};
  }
  return {ErrorCode::kCorrupt, text};
}

int64_t planes_in(const std::vector<int64_t>& shape) { return shape.size() == 4 ? shape[0] * shape[1] : 1; }

ov::Shape to_ov(const std::vector<int64_t>& shape) { return ov::Shape(shape.begin(), shape.end()); }

class OpenVinoPart final : public Part {
 public:
  OpenVinoPart(const ov::CompiledModel& model, std::vector<int> inputs, std::vector<int> outputs)
      : model_(model),
        request_(model_.create_infer_request()),
        inputs_(std::move(inputs)),
        outputs_(std::move(outputs)) {}

  const std::vector<int>& inputs() const override { return inputs_; }
  const std::vector<int>& outputs() const override { return outputs_; }

  Status run(std::span<const HostTensor* const> inputs, std::vector<HostTensor>& outputs) override {
    if (inputs.size() != inputs_.size()) {
      return {ErrorCode::kInvalidArgument,
              strf("%zu inputs given, %zu wanted", inputs.size(), inputs_.size())};
    }
    try {
      for (size_t i = 0; i < inputs.size(); ++i) {
        const auto& port = model_.input(i);
        const HostTensor& given = *inputs[i];
        if (given.type != port.get_element_type().get_type_name() || to_ov(given.shape) != port.get_shape() ||
            given.bytes.size() != ov::shape_size(port.get_shape()) * port.get_element_type().size()) {
          return {
              ErrorCode::kInvalidArgument,
              strf("input %zu is %s %s; the model takes %s %s", i, given.type.c_str(),
                   to_ov(given.shape).to_string().c_str(), port.get_element_type().get_type_name().c_str(),
                   port.get_shape().to_string().c_str())};
        }
        // The executor only reads its inputs.
        auto* data = const_cast<std::byte*>(given.bytes.data());
        request_.set_input_tensor(i, ov::Tensor(port.get_element_type(), port.get_shape(), data));
      }
      outputs.resize(outputs_.size());
      for (size_t i = 0; i < outputs.size(); ++i) {
        const auto& port = model_.output(i);
        HostTensor& out = outputs[i];
        out.type = port.get_element_type().get_type_name();
        out.shape.assign(port.get_shape().begin(), port.get_shape().end());
        out.bytes.resize(ov::shape_size(port.get_shape()) * port.get_element_type().size());
        request_.set_output_tensor(i,
                                   ov::Tensor(port.get_element_type(), port.get_shape(), out.bytes.data()));
      }
      request_.infer();
    } catch (const std::exception& error) {
      return Error{ErrorCode::kIo, "the executor failed: " + brief(error)};
    }
    return {};
  }

  std::string precision() const override {
    return model_.get_property(ov::hint::inference_precision).get_type_name();
  }

 private:
  ov::CompiledModel model_;
  ov::InferRequest request_;
  std::vector<int> inputs_, outputs_;
};

// Builds a model of some operators: those of a part, or of a tile.
class Builder {
 public:
  Builder(const Imported& imported, const Tile* tile) : imported_(imported), tile_(tile) {}

  // Adds the operators of a vertex; `row` is its place in tile->vertices.
  void add(int v, size_t row) {
    const Vertex& vertex = imported_.graph.vertices[static_cast<size_t>(v)];
    const auto& nodes = imported_.nodes[static_cast<size_t>(v)];
    std::set<const ov::Node*> inside;
    for (const Node& node : nodes) inside.insert(node.get());
    for (const Node& node : nodes) {
      ov::OutputVector sources;
      std::optional<size_t> windowed_input;
      for (size_t i = 0; i < node->get_input_size(); ++i) {
        const ov::Output<ov::Node> source = node->input_value(i);
        ov::Output<ov::Node> mapped = value(source);
        if (tile_ != nullptr && vertex.is_dense) {
          const int64_t axis = is_constant(*source.get_node(), known_) ? column_axis(*node, i) : -1;
          if (axis >= 0) mapped = cut_columns(mapped, axis, tile_->output.axes[1]);
        } else if (tile_ != nullptr && !inside.count(source.get_node()) &&
                   !is_constant(*source.get_node(), known_)) {
          const size_t input = input_of(vertex, source);
          mapped = cut_out(mapped, tile_->held.at(vertex.inputs[input]), tile_->reads[row][input].region);
          if (i == 0) windowed_input = input;
        }
        sources.push_back(mapped);
      }
      const Node copy = node->clone_with_new_inputs(sources);
      copy->set_friendly_name(node->get_friendly_name());
      if (tile_ != nullptr && windowed_input) set_pads(*copy, tile_->reads[row][*windowed_input]);
      for (size_t o = 0; o < node->get_output_size(); ++o) values_[node->output(o)] = copy->output(o);
    }
  }

  std::shared_ptr<ov::Model> finish(const std::vector<int>& inputs, const std::vector<int>& outputs) {
    ov::ParameterVector parameters;
    for (const int t : inputs) {
      const ov::Output<ov::Node>& old = imported_.values[static_cast<size_t>(t)];
      value(old);  // made even if nothing has asked for it
      parameters.push_back(
          std::dynamic_pointer_cast<ov::op::v0::Parameter>(values_.at(old).get_node_shared_ptr()));
    }
    ov::ResultVector results;
    for (const int t : outputs) {
      results.push_back(
          std::make_shared<ov::op::v0::Result>(value(imported_.values[static_cast<size_t>(t)])));
    }
    return std::make_shared<ov::Model>(results, parameters, imported_.graph.name);
  }

 private:
  // What stands for a value of the whole model here: a copy made before, a constant, or a new input.
  ov::Output<ov::Node> value(const ov::Output<ov::Node>& old) {
    const auto at = values_.find(old);
    if (at != values_.end()) return at->second;
    Node made;
    if (is_constant(*old.get_node(), known_)) {
      ov::OutputVector sources;
      for (size_t i = 0; i < old.get_node()->get_input_size(); ++i)
        sources.push_back(value(old.get_node()->input_value(i)));
      made = old.get_node()->clone_with_new_inputs(sources);
      made->set_friendly_name(old.get_node()->get_friendly_name());
      for (size_t o = 0; o < made->get_output_size(); ++o)
        values_[old.get_node()->output(o)] = made->output(o);
      return values_.at(old);
    }
    ov::Shape shape = old.get_shape();
    if (tile_ != nullptr) {
      for (const auto& [t, region] : tile_->held) {
        if (imported_.values[static_cast<size_t>(t)] != old) continue;
        for (size_t a = 0; a < 2; ++a)
          shape[shape.size() - 2 + a] = static_cast<size_t>(region.axes[a].size());
      }
    }
    made = std::make_shared<ov::op::v0::Parameter>(old.get_element_type(), shape);
    made->set_friendly_name(old.get_node()->get_friendly_name() + "/in");
    return values_[old] = made->output(0);
  }

  size_t input_of(const Vertex& vertex, const ov::Output<ov::Node>& source) const {
    for (size_t i = 0; i < vertex.inputs.size(); ++i) {
      if (imported_.values[static_cast<size_t>(vertex.inputs[i])] == source) return i;
    }
    FRUGAL_CHECK(false && "every outside source of a vertex is one of its inputs");
    return 0;
  }

  static ov::Output<ov::Node> cut_out(const ov::Output<ov::Node>& held_value, const Region& held,
                                      const Region& part) {
    if (held == part) return held_value;
    std::vector<int64_t> begin, end;
    for (size_t a = 0; a < 2; ++a) {
      begin.push_back(part.axes[a].begin - held.axes[a].begin);
      end.push_back(part.axes[a].end - held.axes[a].begin);
    }
    const auto constant = [](const std::vector<int64_t>& values) {
      return ov::op::v0::Constant::create(ov::element::i64, {values.size()}, values);
    };
    return std::make_shared<ov::op::v8::Slice>(held_value, constant(begin), constant(end), constant({1, 1}),
                                               constant({2, 3}))
        ->output(0);
  }

  // Of a dense layer's operator: the axis of its constant input that goes with the columns of its output, -1
  // if none does.
  static int64_t column_axis(const ov::Node& node, size_t input) {
    if (const auto* product = dynamic_cast<const ov::op::v0::MatMul*>(&node))
      return product->get_transpose_b() ? 0 : 1;
    const ov::Shape& shape = node.get_input_shape(input);
    const bool along = node.get_input_element_type(input).is_real() && !shape.empty() &&
                       shape.back() == node.get_output_shape(0).back() && shape.back() > 1;
    return along ? static_cast<int64_t>(shape.size()) - 1 : -1;
  }

  static ov::Output<ov::Node> cut_columns(const ov::Output<ov::Node>& whole, int64_t axis, Range columns) {
    const auto one = [](int64_t value) {
      return ov::op::v0::Constant::create(ov::element::i64, {1}, {value});
    };
    return std::make_shared<ov::op::v8::Slice>(whole, one(columns.begin), one(columns.end), one(1), one(axis))
        ->output(0);
  }

  static void set_pads(ov::Node& node, const TileRead& read) {
    const auto pads = [](auto kind, const std::array<int64_t, 2>& values) {
      return decltype(kind)(values.begin(), values.end());
    };
    if (auto* conv = dynamic_cast<ov::op::util::ConvolutionFwdPropBase*>(&node)) {
      conv->set_auto_pad(ov::op::PadType::EXPLICIT);
      conv->set_pads_begin(pads(ov::CoordinateDiff(), read.pad_begin));
      conv->set_pads_end(pads(ov::CoordinateDiff(), read.pad_end));
    } else if (auto* max_pool = dynamic_cast<ov::op::util::MaxPoolBase*>(&node)) {
      max_pool->set_auto_pad(ov::op::PadType::EXPLICIT);
      max_pool->set_rounding_type(ov::op::RoundingType::FLOOR);
      max_pool->set_pads_begin(pads(ov::Shape(), read.pad_begin));
      max_pool->set_pads_end(pads(ov::Shape(), read.pad_end));
    } else if (auto* avg_pool = dynamic_cast<ov::op::util::AvgPoolBase*>(&node)) {
      avg_pool->set_auto_pad(ov::op::PadType::EXPLICIT);
      avg_pool->set_rounding_type(ov::op::RoundingType::FLOOR);
      avg_pool->set_pads_begin(pads(ov::Shape(), read.pad_begin));
      avg_pool->set_pads_end(pads(ov::Shape(), read.pad_end));
    } else {
      return;
    }
    node.validate_and_infer_types();
  }

  const Imported& imported_;
  const Tile* tile_;
  std::map<ov::Output<ov::Node>, ov::Output<ov::Node>> values_;
  std::map<const ov::Node*, bool> known_;
};

Result<std::shared_ptr<const Network>> from_model(std::shared_ptr<ov::Model> model, const std::string& name,
                                                  uint64_t hash, const NetworkOptions& options);

class OpenVinoNetwork final : public Network {
 public:
  OpenVinoNetwork(std::shared_ptr<ov::Model> model, Imported imported)
      : model_(std::move(model)), imported_(std::move(imported)) {}

  const Graph& graph() const override { return imported_.graph; }

  Result<std::shared_ptr<const Network>> reshaped(
      const std::vector<std::vector<int64_t>>& input_shapes) const override {
    try {
      return from_model(model_->clone(), imported_.graph.name, imported_.graph.model_hash,
                        {.input_shapes = input_shapes});
    } catch (const std::exception& error) {
      return executor_error(error);
    }
  }

  Result<std::unique_ptr<Part>> compile(std::span<const int> vertices, int n_threads,
                                        std::span<const int> wanted) const override {
    const Graph& graph = imported_.graph;
    std::vector<int> order;
    for (const int v : vertices) {
      if (v < 0 || static_cast<size_t>(v) >= graph.vertices.size()) {
        return Error{ErrorCode::kInvalidArgument, strf("there is no vertex %d", v)};
      }
      if (graph.vertices[static_cast<size_t>(v)].kind != "Input") order.push_back(v);
    }
    std::sort(order.begin(), order.end());
    order.erase(std::unique(order.begin(), order.end()), order.end());
    if (order.empty())
      return Error{ErrorCode::kInvalidArgument, "a part has at least one vertex that computes"};
    const std::set<int> inside(order.begin(), order.end());
    std::set<int> inputs, outputs(wanted.begin(), wanted.end());
    for (const int v : order) {
      const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
      for (const int t : vertex.inputs) {
        if (!inside.count(graph.tensors[static_cast<size_t>(t)].producer)) inputs.insert(t);
      }
      for (const int t : vertex.outputs) {
        const Tensor& tensor = graph.tensors[static_cast<size_t>(t)];
        const bool leaves = tensor.is_output || std::any_of(tensor.consumers.begin(), tensor.consumers.end(),
                                                            [&](int w) { return !inside.count(w); });
        if (leaves && wanted.empty()) outputs.insert(t);
      }
    }
    for (const int t : outputs) {
      if (t < 0 || static_cast<size_t>(t) >= graph.tensors.size() ||
          !inside.count(graph.tensors[static_cast<size_t>(t)].producer)) {
        return Error{ErrorCode::kInvalidArgument, strf("tensor %d is not made by this part", t)};
      }
    }
    try {
      Builder builder(imported_, nullptr);
      for (const int v : order) builder.add(v, 0);
      std::vector<int> in(inputs.begin(), inputs.end()), out(outputs.begin(), outputs.end());
      return finish(builder.finish(in, out), in, out, n_threads);
    } catch (const std::exception& error) {
      return executor_error(error);
    }
  }

  Result<std::unique_ptr<Part>> compile_whole(int n_threads) const override {
    std::vector<int> inputs, outputs;
    const auto tensor_of = [&](const ov::Output<ov::Node>& value) {
      for (size_t t = 0; t < imported_.values.size(); ++t) {
        if (imported_.values[t] == value) return static_cast<int>(t);
      }
      return -1;
    };
    // The folded model has the same inputs and results in the same order.
    for (const auto& parameter : imported_.model->get_parameters())
      inputs.push_back(tensor_of(parameter->output(0)));
    for (const auto& result : imported_.model->get_results())
      outputs.push_back(tensor_of(result->input_value(0)));
    if (std::count(inputs.begin(), inputs.end(), -1) + std::count(outputs.begin(), outputs.end(), -1) > 0) {
      return Error{ErrorCode::kUnsupported,
                   "the model has an input that nothing reads, or a constant output"};
    }
    try {
      return finish(model_, inputs, outputs, n_threads);
    } catch (const std::exception& error) {
      return executor_error(error);
    }
  }

  Result<Measurement> measure(int n_threads, int repetitions) const override {
    try {
      ov::AnyMap settings = compile_settings(n_threads);
      ov::CompiledModel plain = executor().compile_model(imported_.model, "CPU", settings);
      settings.insert(ov::enable_profiling(true));
      ov::CompiledModel profiled = executor().compile_model(imported_.model, "CPU", settings);
      // Which vertex each step of the executor works for, by the names of the operators that went into it.
      std::map<std::string, size_t> vertex_of;
      for (size_t v = 0; v < imported_.nodes.size(); ++v) {
        for (const Node& node : imported_.nodes[v]) vertex_of[node->get_friendly_name()] = v;
      }
      std::map<std::string, size_t> vertex_of_step;
      for (const Node& step : profiled.get_runtime_model()->get_ordered_ops()) {
        const auto names = step->get_rt_info().find("originalLayersNames");
        if (names == step->get_rt_info().end()) continue;
        for (const std::string& name : split(names->second.as<std::string>(), ',')) {
          const auto at = vertex_of.find(name);
          if (at != vertex_of.end()) vertex_of_step[step->get_friendly_name()] = at->second;
        }
      }
      const size_t n = imported_.graph.vertices.size(), runs = static_cast<size_t>(std::max(1, repetitions));
      ov::InferRequest request = profiled.create_infer_request();
      fill(request, profiled);
      request.infer();
      std::vector<std::vector<double>> samples(n);
      for (size_t run = 0; run < runs; ++run) {
        request.infer();
        std::vector<double> seconds(n, 0);
        for (const ov::ProfilingInfo& info : request.get_profiling_info()) {
          const auto at = vertex_of_step.find(info.node_name);
          if (at != vertex_of_step.end())
            seconds[at->second] += 1e-6 * static_cast<double>(info.real_time.count());
        }
        for (size_t v = 0; v < n; ++v) samples[v].push_back(seconds[v]);
      }
      ov::InferRequest whole = plain.create_infer_request();
      fill(whole, plain);
      whole.infer();
      std::vector<double> totals;
      for (size_t run = 0; run < runs; ++run) {
        const double start = wall_seconds(), cpu_start = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
        whole.infer();
        const double wall = wall_seconds() - start, cpu = clock_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
        // One thread computes on the caller's: its processor time is what an idle host would take. A share
        // far below the wall time means that it computed elsewhere.
        totals.push_back(n_threads == 1 && cpu > 0.25 * wall ? cpu : wall);
      }
      const auto median = [](std::vector<double>& values) {
        std::sort(values.begin(), values.end());
        return values[values.size() / 2];
      };
      Measurement measurement;
      measurement.whole_seconds = median(totals);
      double sum = 0;
      for (size_t v = 0; v < n; ++v) {
        measurement.vertex_seconds.push_back(median(samples[v]));
        sum += measurement.vertex_seconds.back();
      }
      for (double& seconds : measurement.vertex_seconds) {
        seconds *= sum > 0 ? measurement.whole_seconds / sum : 0;
      }
      return measurement;
    } catch (const std::exception& error) {
      return executor_error(error);
    }
  }

  Result<std::unique_ptr<Part>> compile_tile(const Segment& segment, const Tile& tile,
                                             int n_threads) const override {
    try {
      Builder builder(imported_, &tile);
      for (size_t i = 0; i < tile.vertices.size(); ++i) builder.add(tile.vertices[i], i);
      return finish(builder.finish(segment.inputs, {segment.output}), segment.inputs, {segment.output},
                    n_threads);
    } catch (const std::exception& error) {
      return executor_error(error);
    }
  }

 private:
  // Small values of both signs: zeros would let some kernels and denormals others run at another speed.
  static void fill(ov::InferRequest& request, const ov::CompiledModel& model) {
    for (size_t i = 0; i < model.inputs().size(); ++i) {
      ov::Tensor tensor(model.input(i).get_element_type(), model.input(i).get_shape());
      if (tensor.get_element_type() == ov::element::f32) {
        auto* values = tensor.data<float>();
        for (size_t k = 0; k < tensor.get_size(); ++k)
          values[k] = static_cast<float>(static_cast<int>(k % 17) - 8) / 8.0f;
      } else {
        std::memset(tensor.data(), 0, tensor.get_byte_size());
      }
      request.set_input_tensor(i, tensor);
    }
  }

  static Result<std::unique_ptr<Part>> finish(const std::shared_ptr<ov::Model>& model,
                                              std::vector<int> inputs, std::vector<int> outputs,
                                              int n_threads) {
    auto part =
        std::make_unique<OpenVinoPart>(executor().compile_model(model, "CPU", compile_settings(n_threads)),
                                       std::move(inputs), std::move(outputs));
    if (part->precision() != "f32") {
      return Error{ErrorCode::kUnsupported,
                   "the executor would compute in " + part->precision() + " although f32 was asked for"};
    }
    return std::unique_ptr<Part>(std::move(part));
  }

  std::shared_ptr<ov::Model> model_;
  Imported imported_;
};

Result<std::shared_ptr<const Network>> from_model(std::shared_ptr<ov::Model> model, const std::string& name,
                                                  uint64_t hash, const NetworkOptions& options) {
  if (!options.input_shapes.empty()) {
    if (options.input_shapes.size() != model->inputs().size()) {
      return Error{ErrorCode::kInvalidArgument, strf("%zu input shapes given, the model has %zu inputs",
                                                     options.input_shapes.size(), model->inputs().size())};
    }
    std::map<ov::Output<ov::Node>, ov::PartialShape> shapes;
    for (size_t i = 0; i < options.input_shapes.size(); ++i) {
      shapes[model->input(i)] = ov::PartialShape(to_ov(options.input_shapes[i]));
    }
    model->reshape(shapes);
  }
  for (const auto& input : model->inputs()) {
    if (input.get_partial_shape().is_dynamic()) {
      return Error{
          ErrorCode::kUnsupported,
          strf("input '%s' has the dynamic shape %s; give fixed sizes (--shape)",
               input.get_node()->get_friendly_name().c_str(), input.get_partial_shape().to_string().c_str())};
    }
  }
  // Constants are folded before anything is cut: a cut-off shape computation would otherwise hang on to its
  // tensor. The model as it came stays beside it.
  const std::shared_ptr<ov::Model> folded = model->clone();
  ov::pass::Manager passes;
  passes.register_pass<ov::pass::ConstantFolding>();
  passes.run_passes(folded);
  FRUGAL_TRY(Imported imported, import_model(folded, options.n_threads));
  imported.model = folded;
  imported.graph.name = name;
  imported.graph.model_hash = hash;
  return std::shared_ptr<const Network>(
      std::make_shared<OpenVinoNetwork>(std::move(model), std::move(imported)));
}

std::string stem(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  return name.substr(0, name.find_last_of('.'));
}

}  // namespace

size_t element_bytes(const std::string& type) {
  static const std::map<std::string, size_t> kBytes = {
      {"f64", 8}, {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i64", 8}, {"i32", 4},    {"i16", 2},
      {"i8", 1},  {"u64", 8}, {"u32", 4}, {"u16", 2},  {"u8", 1},  {"boolean", 1}};
  const auto at = kBytes.find(type);
  return at == kBytes.end() ? 0 : at->second;
}

ov::Core& executor() {
  static ov::Core core;
  return core;
}

std::string brief(const std::exception& error) {
  // Messages start with "Exception from file:line:" and "Check '...' failed at file:line:" lines.
  std::string text;
  for (const std::string& line : split(error.what(), '\n')) {
    const std::string_view words = trim(line);
    if (words.empty() || words.starts_with("Exception from") ||
        words.find("failed at ") != std::string_view::npos)
      continue;
    text += (text.empty() ? "" : " ") + std::string(words);
    if (text.size() > 300) break;
  }
  return text.empty() ? std::string(error.what()).substr(0, 300) : utf8_sanitized(text.substr(0, 400));
}

ov::AnyMap compile_settings(int n_threads) {
  return {ov::hint::inference_precision(ov::element::f32),
          ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::num_streams(1),
          ov::inference_num_threads(std::max(1, n_threads)), ov::hint::enable_cpu_pinning(false)};
}

Result<std::shared_ptr<const Network>> Network::load(const std::string& path, const NetworkOptions& options) {
  FRUGAL_TRY(const MappedFile file, MappedFile::open(path));
  uint64_t hash = checksum64(file.bytes());
  const bool is_ir = path.size() > 4 && path.substr(path.size() - 4) == ".xml";
  if (is_ir) {
    FRUGAL_TRY(const MappedFile weights, MappedFile::open(path.substr(0, path.size() - 4) + ".bin"));
    hash ^= checksum64(weights.bytes()) * 3;
  }
  try {
    auto network = from_model(executor().read_model(path), stem(path), hash, options);
    if (!network.ok()) return std::move(network).error().in(path);
    return network;
  } catch (const std::exception& error) {
    return executor_error(error).in(path);
  }
}

Result<std::shared_ptr<const Network>> Network::load_memory(std::string_view onnx, const std::string& name,
                                                            const NetworkOptions& options) {
  try {
    return from_model(executor().read_model(std::string(onnx), ov::Tensor()), name,
                      checksum64(std::as_bytes(std::span(onnx))), options);
  } catch (const std::exception& error) {
    return executor_error(error).in(name);
  }
}

std::vector<int64_t> part_shape(std::vector<int64_t> whole, const Region& part) {
  for (size_t a = 0; a < 2; ++a) whole[whole.size() - 2 + a] = part.axes[a].size();
  return whole;
}

HostTensor slice(const HostTensor& tensor, const Region& held, const Region& part) {
  HostTensor out{tensor.type, part_shape(tensor.shape, part), {}};
  const int64_t rows = part.axes[0].size(), columns = part.axes[1].size(), stride = held.axes[1].size();
  const size_t element = element_bytes(tensor.type), row_bytes = static_cast<size_t>(columns) * element;
  const int64_t n_planes = planes_in(tensor.shape);
  out.bytes.resize(static_cast<size_t>(n_planes * rows) * row_bytes);
  std::byte* to = out.bytes.data();
  for (int64_t plane = 0; plane < n_planes; ++plane) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = plane * held.axes[0].size() + part.axes[0].begin - held.axes[0].begin + r;
      const int64_t at = row * stride + part.axes[1].begin - held.axes[1].begin;
      std::memcpy(to, tensor.bytes.data() + static_cast<size_t>(at) * element, row_bytes);
      to += row_bytes;
    }
  }
  return out;
}

void paste(const HostTensor& tile, const Region& at, HostTensor& whole) {
  const int64_t rows = at.axes[0].size(), columns = at.axes[1].size();
  const int64_t all_rows = whole.shape[whole.shape.size() - 2], all_columns = whole.shape.back();
  const size_t element = element_bytes(whole.type), row_bytes = static_cast<size_t>(columns) * element;
  const std::byte* from = tile.bytes.data();
  for (int64_t plane = 0; plane < planes_in(whole.shape); ++plane) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t to = (plane * all_rows + at.axes[0].begin + r) * all_columns + at.axes[1].begin;
      std::memcpy(whole.bytes.data() + static_cast<size_t>(to) * element, from, row_bytes);
      from += row_bytes;
    }
  }
}

}  // namespace frugal::dnn
