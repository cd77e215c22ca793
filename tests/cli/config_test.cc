#include "cli/config.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace frugal::cli {
namespace {

struct Options {
  int top_k = 40;
  float top_p = 0.95f;
  std::string model;
  std::vector<std::string> stop;
  std::vector<int> depths = {0, 512};
  bool json = false;
};

struct Fixture {
  Fixture() : app("a command", "run") {
    app.add_option("--top-k", options.top_k, "best k")->capture_default_str();
    app.add_option("--top-p", options.top_p, "share of probability")
        ->capture_default_str()
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("-m,--model", options.model, "a GGUF file");
    app.add_option("--stop", options.stop, "ends the answer")->allow_extra_args(false);
    app.add_option("--depths", options.depths, "tokens before")->capture_default_str()->delimiter(',');
    app.add_flag("--json", options.json, "as JSON");
    add_config_options(app);
  }
  void parse(std::vector<std::string> words) {
    std::reverse(words.begin(), words.end());
    app.parse(words);
  }
  std::string refusal(std::string_view json) {
    const Status status = apply_config(app, json, "options.json");
    return status.ok() ? "" : status.error().message;
  }
  Options options;
  CLI::App app;
};

TEST(Config, FileSetsWhatTheCommandLineLeavesAlone) {
  Fixture f;
  f.parse({"--top-k", "7"});
  const Status status = apply_config(
      f.app,
      R"({"top_k": 9, "top-p": 0.5, "model": "a b.gguf", "stop": ["x", "y z"], "depths": [3], "json": true})",
      "options.json");
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_EQ(f.options.top_k, 7);
  EXPECT_FLOAT_EQ(f.options.top_p, 0.5f);
  EXPECT_EQ(f.options.model, "a b.gguf");
  EXPECT_EQ(f.options.stop, (std::vector<std::string>{"x", "y z"}));
  EXPECT_EQ(f.options.depths, std::vector<int>{3});
  EXPECT_TRUE(f.options.json);
}

TEST(Config, RefusalsNameFileKeyAndReason) {
  Fixture f;
  f.parse({});
  EXPECT_EQ(f.refusal("{"), "options.json is not valid JSON");
  EXPECT_NE(f.refusal("[1]").find("must hold one JSON object"), std::string::npos);
  EXPECT_NE(f.refusal(R"({"topk": 1})").find("no option \"topk\""), std::string::npos);
  EXPECT_NE(f.refusal(R"({"help": true})").find("no option \"help\""), std::string::npos);
  EXPECT_NE(f.refusal(R"({"top_k": "many"})").find("options.json: "), std::string::npos);
  EXPECT_NE(f.refusal(R"({"top_k": 1.5})").find("options.json: "), std::string::npos);
  EXPECT_NE(f.refusal(R"({"top_p": 3})").find("options.json: "), std::string::npos);
  EXPECT_NE(f.refusal(R"({"top_k": [1, 2]})").find("one value, not a list"), std::string::npos);
  EXPECT_NE(f.refusal(R"({"stop": "x"})").find("takes a list"), std::string::npos);
  EXPECT_NE(f.refusal(R"({"json": "yes"})").find("flag: true or false"), std::string::npos);
  EXPECT_NE(f.refusal(R"({"model": {"path": 1}})").find("cannot be"), std::string::npos);
  EXPECT_EQ(f.refusal(R"({"model": null})"), "");
}

TEST(Config, DumpIsAConfigThatGivesTheSameOptions) {
  Fixture a;
  a.parse({"--top-k", "3", "--stop", "x", "--stop", "y", "--json"});
  const std::string dump = config_json(a.app);
  const auto json = nlohmann::json::parse(dump);
  EXPECT_EQ(json["top_k"], 3);
  EXPECT_EQ(json["stop"], (nlohmann::json{"x", "y"}));
  EXPECT_EQ(json["depths"], (nlohmann::json{0, 512}));
  EXPECT_EQ(json["json"], true);
  EXPECT_EQ(json.count("config"), 0u);
  Fixture b;
  b.parse({});
  const Status status = apply_config(b.app, dump, "dump");
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_EQ(config_json(b.app), dump);
  EXPECT_EQ(b.options.top_k, 3);
  EXPECT_EQ(b.options.stop, a.options.stop);
  EXPECT_EQ(b.options.depths, a.options.depths);
}

TEST(Config, MarkdownListsEveryOptionOnce) {
  CLI::App root("root", "frugal");
  CLI::App* bench = root.add_subcommand("bench", "");
  CLI::App* leaf = bench->add_subcommand("llm", "the bench");
  int threads = 2;
  leaf->add_option("-t,--threads", threads, "how many | at most")->capture_default_str();
  const std::string text = options_markdown(root);
  EXPECT_NE(text.find("### `frugal bench llm`\n\nthe bench"), std::string::npos) << text;
  EXPECT_NE(text.find("| `-t,--threads` | INT | `2` | `threads` | how many \\| at most |"), std::string::npos)
      << text;
}

}  // namespace
}  // namespace frugal::cli
