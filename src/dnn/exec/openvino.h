// What the files of this room share: OpenVINO's types, and how its exceptions become errors.
#pragma once

#include <map>
#include <memory>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

#include "dnn/exec/network.h"

namespace frugal::dnn {

// The executor; one for the process, loaded at first use.
ov::Core& executor();

// The first sentence of an executor's message: the rest is its source locations.
std::string brief(const std::exception& error);

ov::AnyMap compile_settings(int n_threads);

// The graph of a model, and which of its operators each vertex holds.
struct Imported {
  Graph graph;
  std::shared_ptr<ov::Model> model;                           // constants folded; owns the nodes below
  std::vector<std::vector<std::shared_ptr<ov::Node>>> nodes;  // [n_vertices], in topological order
  std::vector<ov::Output<ov::Node>> values;                   // [n_tensors]
};

// Groups operators as the executor fuses them when it compiles the whole model, so that no cut falls inside a
// fusion. Operators on constants only belong to whoever reads them. Throws the executor's exceptions.
Result<Imported> import_model(const std::shared_ptr<ov::Model>& model, int n_threads);

// True for operators whose inputs are all constants: they are folded, and go with their readers.
bool is_constant(const ov::Node& node, std::map<const ov::Node*, bool>& known);

}  // namespace frugal::dnn
