// The inner loop of RewardModel::predict, compiled once for each instruction set. The sets give the same
// bits: the source is the same, and no compiler may fuse or reorder here. Plain pointers only, so that no
// inline function of the standard library is compiled with flags that the processor at hand may lack.
#pragma once

#include <cstddef>

namespace frugal::cascade {

inline constexpr int kBases = 5;
inline constexpr int kMaxStages = 8;

struct PredictView {
  struct Gain {
    int head;
    float phi[kBases];
  };
  struct Node {
    int parent, gain, alpha;  // parent: in the level above; alpha: head index
  };
  const float* weights;  // [z_dim, padded_heads]
  int z_dim, padded_heads;
  const Gain* gains;
  size_t n_gains;
  const Node* nodes[kMaxStages];
  size_t n_nodes[kMaxStages], n_levels, widest_level;
  const int* chain_of_leaf;  // [n_nodes of the last level]
  float scale, offset;
  int value;  // head that the whole prediction is multiplied by
  bool recursive, monotone;
};

// z [z_dim]; scratch [padded_heads + n_gains + 2 * widest_level]; rewards [chains].
using PredictKernel = void (*)(const PredictView& view, const float* z, float* scratch, float* rewards);
// "generic" or "avx2"; null: this processor or build lacks it.
PredictKernel find_predict_kernel(const char* name);
PredictKernel predict_kernel();  // the best there is

}  // namespace frugal::cascade
