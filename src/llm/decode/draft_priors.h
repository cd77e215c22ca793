// Acceptance by bucket that a request starts from (drafts.h): shares accepted on few-shot chains of thought
// of SmolLM2-135M and gemma3-270m (the first 10 questions of each task, 120 tokens each, which `frugal cot
// eval` leaves out of its figures), neighbouring lengths smoothed. A row is a length class, a column a count
// class.
#pragma once

#include "llm/decode/drafts.h"

namespace frugal::llm {

// clang-format off
inline constexpr float kDraftPriors[kDraftBuckets] = {
    // text
    0.422f, 0.537f, 0.931f, 0.525f, 0.298f, 0.135f,
    0.460f, 0.662f, 0.952f, 0.586f, 0.248f, 0.201f,
    0.549f, 0.763f, 0.952f, 0.513f, 0.305f, 0.179f,
    0.621f, 0.818f, 0.984f, 0.411f, 0.308f, 0.301f,
    0.695f, 0.857f, 0.985f, 0.510f, 0.297f, 0.182f,
    0.781f, 0.933f, 0.985f, 0.675f, 0.383f, 0.096f,
    0.872f, 0.985f, 0.985f, 0.633f, 0.499f, 0.166f,
    0.871f, 0.985f, 0.985f, 0.753f, 0.481f, 0.274f,
    0.946f, 0.983f, 0.985f, 0.785f, 0.497f, 0.335f,
    // pool
    0.276f, 0.413f, 0.477f, 0.378f, 0.311f, 0.147f,
    0.368f, 0.496f, 0.588f, 0.321f, 0.280f, 0.185f,
    0.463f, 0.501f, 0.661f, 0.364f, 0.240f, 0.191f,
    0.439f, 0.550f, 0.847f, 0.585f, 0.342f, 0.245f,
    0.524f, 0.800f, 0.925f, 0.317f, 0.283f, 0.301f,
    0.614f, 0.884f, 0.970f, 0.319f, 0.274f, 0.346f,
    0.793f, 0.913f, 0.973f, 0.306f, 0.440f, 0.453f,
    0.857f, 0.926f, 0.970f, 0.499f, 0.524f, 0.539f,
    0.942f, 0.958f, 0.985f, 0.611f, 0.586f, 0.598f,
    // trajectory, recycled
    0.15f, 0.15f, 0.15f, 0.15f, 0.15f, 0.15f,
};
// clang-format on

}  // namespace frugal::llm
