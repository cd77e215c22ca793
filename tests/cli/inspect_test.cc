// `frugal inspect` as a user runs it: on sound models, and on files that are broken in every way that a
// download, a bad converter or an attacker breaks them. One line of error, exit code 3, and never an abort.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::cli {
namespace {

using frugal::test::TempFile;
using llm::test::tiny_gguf;
using llm::test::TinyModel;

struct Outcome {
  int exit_code = -1;  // -1: ended by a signal
  std::string out, err;
};

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Paths here hold no quotes: they come from the test's own temporary folder and FRUGAL_MODELS.
Outcome inspect(const std::string& path, const std::string& options = "") {
  const TempFile out("", ".out"), err("", ".err");
  const char* command = std::getenv("FRUGAL_COMMAND");
  EXPECT_NE(command, nullptr) << "set FRUGAL_COMMAND to the frugal command";
  const std::string line = std::string("'") + command + "' inspect '" + path + "' " + options + " >'" +
                           out.path() + "' 2>'" + err.path() + "'";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(out.path()), contents(err.path())};
}

std::string model_path(const std::string& name) {
  const char* folder = std::getenv("FRUGAL_MODELS");
  EXPECT_NE(folder, nullptr);
  return std::string(folder) + "/" + name;
}

void expect_refused(const std::string& bytes, std::initializer_list<const char*> parts) {
  const TempFile file(bytes);
  for (const char* options : {"", "--json", "--metadata --tensors"}) {
    const Outcome outcome = inspect(file.path(), options);
    EXPECT_EQ(outcome.exit_code, 3) << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("frugal: error: ")) << outcome.err;
    EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << outcome.err;
    for (const char* part : parts) EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  }
}

// The bytes of a tiny model with `size` bytes from `replacement` written `skip` bytes behind the first
// `marker`.
std::string patched(const TinyModel& model, const std::string& marker, size_t skip,
                    const std::string& replacement) {
  std::string bytes = tiny_gguf(model);
  const size_t at = bytes.find(marker);
  EXPECT_NE(at, std::string::npos);
  bytes.replace(at + marker.size() + skip, replacement.size(), replacement);
  return bytes;
}

TEST(Inspect, TellsWhatTheRealModelsAre) {
  const Outcome smol = inspect(model_path("smollm2-135m-instruct-q4_1.gguf"));
  EXPECT_EQ(smol.exit_code, 0) << smol.err;
  for (const char* part : {"architecture llama", "Q4_1", "context      8192", "9 heads of 64",
                           "chat         chatml", "runs here    yes", "22.5 KiB f16"}) {
    EXPECT_NE(smol.out.find(part), std::string::npos) << part << "\n" << smol.out;
  }
  const Outcome gemma = inspect(model_path("gemma-3-270m-q4_k_m.gguf"), "--json --tensors --metadata");
  EXPECT_EQ(gemma.exit_code, 0) << gemma.err;
  const auto found = nlohmann::json::parse(gemma.out);
  EXPECT_EQ(found["architecture"], "gemma3");
  EXPECT_EQ(found["runs"], true);
  EXPECT_EQ(found["config"]["sliding_window"], 512);
  EXPECT_EQ(found["tokenizer"]["tokens"], 262144);
  EXPECT_EQ(found["chat_template"], "");
  EXPECT_EQ(found["tensor_table"].size(), found["tensors"]);
  EXPECT_EQ(found["metadata"]["gemma3.block_count"]["value"], "18");
  uint64_t n_parameters = 0;
  for (const auto& share : found["types"]) n_parameters += share["parameters"].get<uint64_t>();
  EXPECT_EQ(n_parameters, found["parameters"].get<uint64_t>());
}

TEST(Inspect, EveryTinyArchitectureRuns) {
  for (const std::string& architecture : llm::test::tiny_architectures()) {
    TinyModel model;
    model.architecture = architecture;
    const TempFile file(tiny_gguf(model));
    const Outcome outcome = inspect(file.path());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("runs here    yes"), std::string::npos) << outcome.out;
  }
}

TEST(Inspect, TruncatedRealModelsAreRefused) {
  std::ifstream in(model_path("smollm2-135m-instruct-q4_1.gguf"), std::ios::binary);
  std::string head(6 << 20, '\0');
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  ASSERT_TRUE(in.good());
  expect_refused(head, {"past the end of the file", "fetch it again"});
  expect_refused(head.substr(0, 1 << 20), {"fetch it again"});
  expect_refused(head.substr(0, 100), {"fetch it again"});
}

TEST(Inspect, WhatIsNoModelIsRefused) {
  expect_refused("", {"0 bytes"});
  expect_refused("#!/bin/sh\necho hello\n", {"not a GGUF file"});
  const Outcome missing = inspect("/nonexistent/model.gguf");
  EXPECT_EQ(missing.exit_code, 3);
  EXPECT_NE(missing.err.find("/nonexistent/model.gguf"), std::string::npos);
  const Outcome folder = inspect("/tmp");
  EXPECT_EQ(folder.exit_code, 2);
  EXPECT_NE(folder.err.find("not a regular file"), std::string::npos);
}

TEST(Inspect, WrongShapesArchitecturesAndTypesAreNamed) {
  // A value follows its key after the type; a u32 is changed from 64 to 96.
  expect_refused(patched({}, "llama.embedding_length", 4, std::string("\x60\0\0\0", 4)), {"shape", "96"});
  // The string after general.architecture: type and length first.
  expect_refused(patched({}, "general.architecture", 12, "lamma"), {"architecture 'lamma'", "llama"});
  // The type of a tensor stands behind the number of dimensions and two dimensions.
  expect_refused(patched({}, "blk.0.ffn_up.weight", 20, std::string("\x92\x10\0\0", 4)),
                 {"blk.0.ffn_up.weight", "type number 4242"});
  expect_refused(patched({}, "blk.0.ffn_up.weight", 20, std::string("\x14\0\0\0", 4)),
                 {"blk.0.ffn_up.weight", "IQ4_NL"});
}

TEST(Inspect, WhatDoesNotRunIsStillShown) {
  const TempFile file(patched({}, "general.architecture", 12, "lamma"));
  const Outcome outcome = inspect(file.path(), "--json");
  const auto found = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(found["architecture"], "lamma");
  EXPECT_EQ(found["runs"], false);
  EXPECT_NE(found["reason"].get<std::string>().find("lamma"), std::string::npos);
  EXPECT_GT(found["parameters"].get<uint64_t>(), 1000u);
}

}  // namespace
}  // namespace frugal::cli
