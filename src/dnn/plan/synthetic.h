// Random graphs and clusters: what tests try the planner on, and benches time it on, without any model.
#pragma once

#include "base/rng.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// A random graph of `n` vertices, the first an input: every other vertex reads one to three earlier tensors;
// some vertices have two outputs; tensors that nobody reads are results, and a few others too.
Graph random_graph(Rng& rng, int n);

// Tiers that get faster and links that differ, so that no single tier wins always.
Cluster random_cluster(Rng& rng, const Graph& graph, int n_tiers);

// An input and n convolutions of 3x3 with padding, one after the other, on a plane of 56x56, 16 channels.
Graph conv_chain(int n);

}  // namespace frugal::dnn
