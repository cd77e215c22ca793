// The allocation's LP in the LP format that solvers read, for a second opinion on lp_bound().
#pragma once

#include <string>

#include "frugal/budget.h"

namespace frugal::budget {

// max sum r_ij x_ij; sum c_jk x_ij <= budget_k for every finite budget; sum_j x_ij = 1; x >= 0. Arguments as
// for lp_bound(). A request without any finite reward gets the cheapest chain, for no reward.
std::string lp_text(std::span<const float> rewards, int n, const ChainTable& table, const Amounts& budget);

}  // namespace frugal::budget
