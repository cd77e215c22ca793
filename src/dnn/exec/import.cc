// From an executor's model to our graph. Which operators form a vertex is read from the compiled model: each
// of its steps names the operators that went into it.
#include <algorithm>
#include <functional>
#include <openvino/op/concat.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/util/avg_pool_base.hpp>
#include <openvino/op/util/convolution_base.hpp>
#include <openvino/op/util/max_pool_base.hpp>
#include <optional>
#include <set>

#include "base/text.h"
#include "dnn/exec/openvino.h"

namespace frugal::dnn {
namespace {

using Node = std::shared_ptr<ov::Node>;

bool is_kind(const ov::Node& node, std::initializer_list<const char*> kinds) {
  const std::string_view name = node.get_type_name();
  return std::any_of(kinds.begin(), kinds.end(), [&](const char* kind) { return name == kind; });
}

double elements(const ov::Shape& shape) {
  double n = 1;
  for (const size_t d : shape) n *= static_cast<double>(d);
  return n;
}

// Multiply and add are two. Operators without a rule count one for each output element.
double flops_of(const ov::Node& node) {
  if (node.get_output_size() == 0) return 0;
  const double out = elements(node.get_output_shape(0));
  if (is_kind(node, {"Convolution"})) {
    const ov::Shape& w = node.get_input_shape(1);  // [out, in, rows, columns]
    return 2 * out * elements(w) / static_cast<double>(w[0]);
  }
  if (is_kind(node, {"GroupConvolution"})) {
    const ov::Shape& w = node.get_input_shape(1);  // [groups, out, in, rows, columns]
    return 2 * out * elements(w) / static_cast<double>(w[0] * w[1]);
  }
  if (is_kind(node, {"ConvolutionBackpropData"})) {
    const ov::Shape& w = node.get_input_shape(1);  // [in, out, rows, columns]
    return 2 * elements(node.get_input_shape(0)) * elements(w) / static_cast<double>(w[0]);
  }
  if (is_kind(node, {"MatMul"})) {
    const ov::Shape& a = node.get_input_shape(0);
    return 2 * out * static_cast<double>(a.empty() ? 1 : a.back());
  }
  if (const auto* pool = dynamic_cast<const ov::op::util::AvgPoolBase*>(&node))
    return out * elements(pool->get_kernel());
  if (const auto* pool = dynamic_cast<const ov::op::util::MaxPoolBase*>(&node))
    return out * elements(pool->get_kernel());
  if (is_kind(node, {"ReduceMean", "ReduceSum", "ReduceMax"})) return elements(node.get_input_shape(0));
  if (is_kind(node, {"Reshape", "Transpose", "Concat", "Squeeze", "Unsqueeze", "Split", "VariadicSplit"}))
    return 0;
  return out;
}

// The operator that gives a vertex its name and kind: the one with the most work.
const ov::Node& main_operator(const std::vector<Node>& nodes) {
  const ov::Node* best = nodes.front().get();
  for (const Node& node : nodes) {
    if (flops_of(*node) > flops_of(*best)) best = node.get();
  }
  return *best;
}

// Operators that treat every element of a feature map by itself.
bool element_wise(const ov::Node& node) {
  return is_kind(
      node, {"Relu",    "PRelu",  "LeakyRelu", "Elu", "Sigmoid",  "Tanh",     "Clamp",  "HSwish",
             "Swish",   "Mish",   "Gelu",      "Add", "Subtract", "Multiply", "Divide", "BatchNormInference",
             "Convert", "Sqrt",   "Power",     "Exp", "HSigmoid", "SoftPlus", "Abs",    "Negative",
             "Maximum", "Minimum"});
}

// Operators that the executor runs in whatever layout their input has.
bool passes_layout_on(const ov::Node& node) {
  return element_wise(node) || is_kind(node, {"Concat", "MaxPool", "AvgPool"});
}

bool is_plane(const ov::Output<ov::Node>& value) {
  return value.get_partial_shape().is_static() && value.get_shape().size() == 4;
}

// Constants of a tiled operator must not vary over rows or columns.
bool varies_over_plane(const ov::Output<ov::Node>& constant) {
  const ov::Shape& shape = constant.get_shape();
  return (shape.size() >= 1 && shape.back() != 1 && shape.size() > 2) ||
         (shape.size() >= 2 && shape[shape.size() - 2] != 1 && shape.size() > 2);
}

std::optional<Window> window_of(const ov::Node& node) {
  Window w;
  const auto two = [](const auto& values) { return values.size() == 2; };
  if (const auto* conv = dynamic_cast<const ov::op::util::ConvolutionFwdPropBase*>(&node)) {
    if (!is_kind(node, {"Convolution", "GroupConvolution"}) || !two(conv->get_strides())) return std::nullopt;
    const ov::Shape& weights = node.get_input_shape(1);
    for (size_t a = 0; a < 2; ++a) {
      w.kernel[a] = static_cast<int64_t>(weights[weights.size() - 2 + a]);
      w.stride[a] = static_cast<int64_t>(conv->get_strides()[a]);
      w.dilation[a] = static_cast<int64_t>(conv->get_dilations()[a]);
      w.pad_begin[a] = conv->get_pads_begin()[a];
      if (w.pad_begin[a] < 0 || conv->get_pads_end()[a] < 0) return std::nullopt;
    }
    return w;
  }
  const auto from_pool = [&](const auto& pool) {
    for (size_t a = 0; a < 2; ++a) {
      w.kernel[a] = static_cast<int64_t>(pool.get_kernel()[a]);
      w.stride[a] = static_cast<int64_t>(pool.get_strides()[a]);
      w.pad_begin[a] = static_cast<int64_t>(pool.get_pads_begin()[a]);
    }
  };
  if (const auto* pool = dynamic_cast<const ov::op::util::MaxPoolBase*>(&node)) {
    if (!two(pool->get_kernel()) || node.get_output_size() > 2) return std::nullopt;
    // A second output (indices) counts positions in the whole plane: it must be unread.
    if (node.get_output_size() == 2 && !node.get_output_target_inputs(1).empty()) return std::nullopt;
    from_pool(*pool);
    return w;
  }
  if (const auto* pool = dynamic_cast<const ov::op::util::AvgPoolBase*>(&node)) {
    if (!two(pool->get_kernel())) return std::nullopt;
    // Rounding up may reach beyond the pads, where counting the padding has its own rules.
    if (!pool->get_exclude_pad() && pool->get_rounding_type() != ov::op::RoundingType::FLOOR)
      return std::nullopt;
    from_pool(*pool);
    return w;
  }
  return std::nullopt;
}

// Fills vertex.windows when its operators allow it: at most one windowed one, the first; element-wise ones;
// channel concatenation.
void find_windows(const std::vector<Node>& nodes, const Imported& imported, Vertex& vertex) {
  if (vertex.outputs.size() != 1) return;
  std::map<const ov::Node*, bool> known;
  std::set<const ov::Node*> inside;
  for (const Node& node : nodes) inside.insert(node.get());
  std::optional<Window> window;
  const ov::Node* windowed = nullptr;
  for (const Node& node : nodes) {
    if (const auto w = window_of(*node)) {
      if (windowed != nullptr) return;
      window = w;
      windowed = node.get();
      if (inside.count(node->get_input_node_ptr(0)))
        return;  // something before it would have to know its halo
    } else if (is_kind(*node, {"Concat"})) {
      const auto* concat = dynamic_cast<const ov::op::v0::Concat*>(node.get());
      const int64_t axis = concat->get_axis();
      if (axis != 1 && axis != -3) return;
    } else if (!element_wise(*node)) {
      return;
    }
    for (size_t i = 0; i < node->get_input_size(); ++i) {
      const ov::Output<ov::Node> source = node->input_value(i);
      if (is_constant(*source.get_node(), known)) {
        if (node.get() != windowed && source.get_partial_shape().is_static() && varies_over_plane(source))
          return;
      } else if (!is_plane(source)) {
        return;
      }
    }
    if (!is_plane(node->output(0))) return;
  }
  std::vector<Window> windows;
  for (const int t : vertex.inputs) {
    const ov::Output<ov::Node>& value = imported.values[static_cast<size_t>(t)];
    std::optional<Window> here;
    for (const ov::Input<ov::Node>& reader : value.get_target_inputs()) {
      if (!inside.count(reader.get_node())) continue;
      const Window w = reader.get_node() == windowed ? *window : Window{};
      // Read both through a window and directly: one region cannot serve both.
      if (here && (here->kernel != w.kernel || here->stride != w.stride)) return;
      here = w;
      // Broadcasting planes have no rows to split.
      if (reader.get_node() != windowed) {
        const ov::Shape& shape = value.get_shape();
        const ov::Shape out = reader.get_node()->get_output_shape(0);
        if (shape[2] != out[2] || shape[3] != out[3]) return;
      }
    }
    if (!here) return;
    windows.push_back(*here);
  }
  vertex.windows = std::move(windows);
}

// Whether the vertex is one dense layer: reshaping, a product with constant weights that makes one row, then
// operators on single elements with constants.
bool is_dense_layer(const std::vector<Node>& nodes, const Vertex& vertex) {
  if (vertex.inputs.size() != 1 || vertex.outputs.size() != 1) return false;
  std::map<const ov::Node*, bool> known;
  const ov::Node* product = nullptr;
  const auto constant = [&](const ov::Output<ov::Node>& source) {
    return is_constant(*source.get_node(), known) && source.get_partial_shape().is_static();
  };
  for (const Node& node : nodes) {
    if (node->get_output_size() != 1 || !node->get_output_partial_shape(0).is_static()) return false;
    if (product == nullptr && is_kind(*node, {"Reshape", "Squeeze"})) continue;
    const ov::Shape& out = node->get_output_shape(0);
    if (out.size() != 2 || out[0] != 1) return false;
    if (const auto* matmul = dynamic_cast<const ov::op::v0::MatMul*>(node.get())) {
      if (product != nullptr || matmul->get_transpose_a() || !constant(node->input_value(1)) ||
          node->get_input_shape(1).size() != 2)
        return false;
      product = node.get();
      continue;
    }
    if (product == nullptr || !element_wise(*node)) return false;
    for (size_t i = 1; i < node->get_input_size(); ++i) {
      if (!constant(node->input_value(i)) || node->get_input_shape(i).size() > 2) return false;
    }
    if (constant(node->input_value(0))) return false;
  }
  return product != nullptr;
}

// Merges groups that lie on a cycle of groups: a vertex must be able to run at once.
void merge_cycles(const std::vector<Node>& nodes, const std::map<const ov::Node*, size_t>& position,
                  std::vector<int>& group) {
  for (bool changed = true; changed;) {
    changed = false;
    // reach[g]: groups that g depends on, through others; two groups that reach each other are one.
    std::map<int, std::set<int>> before;
    for (size_t i = 0; i < nodes.size(); ++i) {
      for (size_t k = 0; k < nodes[i]->get_input_size(); ++k) {
        const auto at = position.find(nodes[i]->get_input_node_ptr(k));
        if (at != position.end() && group[at->second] != group[i]) before[group[i]].insert(group[at->second]);
      }
    }
    // Depth-first search for a back edge; the groups between are merged.
    std::map<int, int> state;  // 1 = on the path, 2 = done
    std::vector<int> path;
    const std::function<bool(int)> visit = [&](int g) {
      state[g] = 1;
      path.push_back(g);
      for (const int h : before[g]) {
        if (state[h] == 2) continue;
        if (state[h] == 1) {
          const auto from = std::find(path.begin(), path.end(), h);
          const std::set<int> cycle(from, path.end());
          for (int& member : group) {
            if (cycle.count(member)) member = g;
          }
          return true;
        }
        if (visit(h)) return true;
      }
      state[g] = 2;
      path.pop_back();
      return false;
    };
    for (const int g : std::set<int>(group.begin(), group.end())) {
      if (state[g] == 0 && visit(g)) {
        changed = true;
        break;
      }
    }
  }
}

// A mean over the plane adds in another order when its input arrives in another layout, and what only passes
// values on (a concatenation, a pool) takes the layout that it is given, which is not the same when they come
// from another part. So a reduction stays with its producers, back to the first groups that choose a layout.
void keep_layouts(const std::vector<Node>& nodes, const std::map<const ov::Node*, size_t>& position,
                  std::vector<int>& group) {
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!is_kind(*nodes[i], {"ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2",
                             "AdaptiveAvgPool", "MVN", "NormalizeL2", "LRN", "GroupNormalization"})) {
      continue;
    }
    const int own = group[i];
    std::set<int> kept = {own};
    for (std::vector<int> open = {own}; !open.empty();) {
      const int reader = open.back();
      open.pop_back();
      const auto passes_on = [&](int g) {
        for (size_t m = 0; m < nodes.size(); ++m) {
          if (group[m] == g && !passes_layout_on(*nodes[m])) return false;
        }
        return true;
      };
      for (size_t k = 0; k < nodes.size(); ++k) {
        if (group[k] != reader || (reader == own && k > i)) continue;  // what follows the reduction may vary
        for (const auto& source : nodes[k]->input_values()) {
          const auto producer = position.find(source.get_node());
          if (producer == position.end() || !kept.insert(group[producer->second]).second) continue;
          if (is_plane(source) && passes_on(group[producer->second])) open.push_back(group[producer->second]);
        }
      }
    }
    for (int& g : group) {
      if (kept.count(g)) g = own;
    }
  }
}

// Group of each operator; operators of one compiled step share one.
std::vector<int> group_operators(const std::shared_ptr<ov::Model>& model, const std::vector<Node>& nodes,
                                 int n_threads) {
  std::map<std::string, int> step_of;
  const auto compiled = executor().compile_model(model, "CPU", compile_settings(n_threads));
  int step = 0;
  for (const Node& exec : compiled.get_runtime_model()->get_ordered_ops()) {
    const auto& info = exec->get_rt_info();
    const auto names = info.find("originalLayersNames");
    if (names == info.end()) continue;
    ++step;
    for (const std::string& name : split(names->second.as<std::string>(), ',')) {
      if (!name.empty()) step_of[name] = step;
    }
  }
  std::map<const ov::Node*, size_t> position;
  for (size_t i = 0; i < nodes.size(); ++i) position[nodes[i].get()] = i;
  std::vector<int> group(nodes.size(), -1);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto at = step_of.find(nodes[i]->get_friendly_name());
    if (at != step_of.end()) group[i] = at->second;
  }
  // An operator that no step names was rewritten: a convolution whose weights took in a scale loses its name
  // to it. Its reader's step is where it went; without a single one, its producer's.
  for (size_t i = nodes.size(); i-- > 0;) {
    if (group[i] >= 0) continue;
    std::set<int> readers;
    for (const auto& output : nodes[i]->outputs()) {
      for (const auto& reader : output.get_target_inputs()) {
        const auto at = position.find(reader.get_node());
        readers.insert(at == position.end() ? -1 : group[at->second]);
      }
    }
    if (readers.size() == 1) group[i] = *readers.begin();
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (group[i] >= 0) continue;
    for (size_t k = 0; k < nodes[i]->get_input_size() && group[i] < 0; ++k) {
      const auto at = position.find(nodes[i]->get_input_node_ptr(k));
      if (at != position.end()) group[i] = group[at->second];
    }
    if (group[i] < 0) group[i] = 1000000 + static_cast<int>(i);
  }
  keep_layouts(nodes, position, group);
  merge_cycles(nodes, position, group);
  return group;
}

}  // namespace

bool is_constant(const ov::Node& node, std::map<const ov::Node*, bool>& known) {
  const auto at = known.find(&node);
  if (at != known.end()) return at->second;
  bool constant = is_kind(node, {"Constant"});
  if (!constant && node.get_input_size() > 0 && !is_kind(node, {"Parameter", "ReadValue"})) {
    constant = true;
    for (size_t i = 0; i < node.get_input_size() && constant; ++i) {
      constant = is_constant(*node.get_input_node_ptr(i), known);
    }
  }
  return known[&node] = constant;
}

Result<Imported> import_model(const std::shared_ptr<ov::Model>& model, int n_threads) {
  if (!model->get_variables().empty() || !model->get_sinks().empty()) {
    return Error{ErrorCode::kUnsupported,
                 "the model keeps state between runs (ReadValue, Assign); it cannot be divided"};
  }
  Imported imported;
  std::vector<Node> nodes;
  std::map<const ov::Node*, bool> known;
  for (const Node& node : model->get_ordered_ops()) {
    if (is_kind(*node, {"Parameter", "Result"}) || is_constant(*node, known)) continue;
    nodes.push_back(node);
  }
  for (const Node& node : nodes) {
    for (const auto& output : node->outputs()) {
      if (output.get_partial_shape().is_static()) continue;
      return Error{ErrorCode::kUnsupported,
                   strf("'%s' (%s) has a size that is only known when it runs; give the inputs fixed shapes",
                        node->get_friendly_name().c_str(), node->get_type_name())};
    }
  }
  const std::vector<int> group = group_operators(model, nodes, n_threads);

  // Vertices in topological order of groups: a group follows all groups that it reads.
  std::map<const ov::Node*, int> group_at;
  for (size_t i = 0; i < nodes.size(); ++i) group_at[nodes[i].get()] = group[i];
  std::map<int, std::vector<Node>> members;
  for (size_t i = 0; i < nodes.size(); ++i) members[group[i]].push_back(nodes[i]);
  std::map<int, int> vertex_of;  // group -> vertex
  for (const auto& parameter : model->get_parameters()) {
    Vertex vertex;
    vertex.name = parameter->get_friendly_name();
    vertex.kind = "Input";
    vertex.ops = {"Parameter"};
    imported.graph.vertices.push_back(std::move(vertex));
    imported.nodes.push_back({parameter});
  }
  const std::function<void(int)> place = [&](int g) {
    if (vertex_of.count(g)) return;
    vertex_of[g] = -1;
    for (const Node& node : members[g]) {
      for (size_t k = 0; k < node->get_input_size(); ++k) {
        const auto at = group_at.find(node->get_input_node_ptr(k));
        if (at != group_at.end() && at->second != g) place(at->second);
      }
    }
    Vertex vertex;
    const ov::Node& main = main_operator(members[g]);
    vertex.name = main.get_friendly_name();
    vertex.kind = main.get_type_name();
    for (const Node& node : members[g]) {
      vertex.ops.push_back(node->get_type_name());
      vertex.flops += flops_of(*node);
    }
    vertex_of[g] = static_cast<int>(imported.graph.vertices.size());
    imported.graph.vertices.push_back(std::move(vertex));
    imported.nodes.push_back(members[g]);
  };
  for (size_t i = 0; i < nodes.size(); ++i) place(group[i]);

  // Tensors: values that cross between vertices or leave the model.
  std::map<const ov::Node*, int> vertex_at;
  for (size_t v = 0; v < imported.nodes.size(); ++v) {
    for (const Node& node : imported.nodes[v]) vertex_at[node.get()] = static_cast<int>(v);
  }
  for (size_t v = 0; v < imported.nodes.size(); ++v) {
    std::set<const ov::Node*> constants;
    for (const Node& node : imported.nodes[v]) {
      for (const auto& output : node->outputs()) {
        Tensor tensor;
        std::set<int> consumers;
        for (const auto& reader : output.get_target_inputs()) {
          const auto at = vertex_at.find(reader.get_node());
          if (at == vertex_at.end()) {
            tensor.is_output |= is_kind(*reader.get_node(), {"Result"});
          } else if (at->second != static_cast<int>(v)) {
            consumers.insert(at->second);
          }
        }
        if (consumers.empty() && !tensor.is_output) continue;
        tensor.name = node->get_friendly_name();
        if (node->get_output_size() > 1) tensor.name += strf(":%zu", output.get_index());
        tensor.type = output.get_element_type().get_type_name();
        for (const size_t d : output.get_shape()) tensor.shape.push_back(static_cast<int64_t>(d));
        tensor.bytes = static_cast<uint64_t>(elements(output.get_shape())) * element_bytes(tensor.type);
        tensor.producer = static_cast<int>(v);
        tensor.consumers.assign(consumers.begin(), consumers.end());
        const int t = static_cast<int>(imported.graph.tensors.size());
        for (const int w : consumers) imported.graph.vertices[static_cast<size_t>(w)].inputs.push_back(t);
        imported.graph.vertices[v].outputs.push_back(t);
        imported.graph.tensors.push_back(std::move(tensor));
        imported.values.push_back(output);
      }
      for (size_t k = 0; k < node->get_input_size(); ++k) {
        const ov::Node* source = node->get_input_node_ptr(k);
        if (is_constant(*source, known) && constants.insert(source).second && source->get_output_size() > 0) {
          imported.graph.vertices[v].weight_bytes +=
              static_cast<uint64_t>(elements(source->get_output_shape(0))) *
              source->get_output_element_type(0).size();
        }
      }
    }
  }
  for (size_t v = 0; v < imported.nodes.size(); ++v) {
    Vertex& vertex = imported.graph.vertices[v];
    if (vertex.kind == "Input") continue;
    find_windows(imported.nodes[v], imported, vertex);
    vertex.is_dense = is_dense_layer(imported.nodes[v], vertex);
  }
  FRUGAL_TRY_STATUS(validate(imported.graph));
  return imported;
}

}  // namespace frugal::dnn
