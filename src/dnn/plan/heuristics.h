// HPA, D3's horizontal partition algorithm as far as its abstract and the literature tell it, and the
// baselines.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "dnn/plan/cut_problem.h"

namespace frugal::dnn {

// Layer by layer (longest distance from the input), each vertex takes the label that is cheapest for it among
// those its predecessors leave: its own cost, and that of bringing its inputs there. Then one local
// adjustment over all. None when the greedy choice runs into a vertex that has no allowed label left.
std::optional<std::vector<int>> hpa(const CutProblem& problem, std::span<const int> layers);

// Decides `affected` vertices again, given their neighbours' labels, each within what these leave, until
// nothing changes; a vertex that moves makes its neighbours affected. Every move lowers the total cost, so it
// ends. Returns how many vertices moved.
int adjust_locally(const CutProblem& problem, std::span<const int> affected, std::vector<int>& labels);

// The best single cut of the vertex order: label 0 before it, the last label after it.
std::optional<std::vector<int>> neurosurgeon(const CutProblem& problem);

// Vertices that may leave label 0 share the last two labels, by minimum cut.
std::optional<std::vector<int>> dads(const CutProblem& problem);

// Every vertex on `label`, or as near to it as it may be.
std::optional<std::vector<int>> all_on(const CutProblem& problem, int label);

}  // namespace frugal::dnn
