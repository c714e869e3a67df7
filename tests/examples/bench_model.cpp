// The example transformer's program bench_model: what it counts, that it verifies and times all of its
// models, and what it refuses. Times themselves are nobody's business here.

#include <filesystem>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <meo/layers/layer_options.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/sequences.hpp>

#include "../../examples/transformer/bench/random_gates.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/program.hpp"

namespace {

using meo::test::Folder;
using meo::test::Outcome;

const std::vector<std::string> small{"--layers=1", "--width=16",      "--hidden=32",
                                     "--heads=2",  "--vocabulary=50", "--tokens=64",
                                     "--top-k=2",  "--sequences=2",   "--repetitions=2"};

Outcome run(const Folder& folder, std::vector<std::string> arguments,
            const std::vector<std::string>& more = {}) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return meo::test::run_program(MEO_BENCH_MODEL, folder, arguments);
}

/// The cells of each line but the heading.
std::vector<std::vector<std::string>> lines(const std::filesystem::path& csv) {
  std::vector<std::vector<std::string>> lines;
  std::istringstream text(meo::test::load_text(csv));
  for (std::string line; std::getline(text, line);) {
    auto& cells = lines.emplace_back();
    std::istringstream of_line(line);
    for (std::string cell; std::getline(of_line, cell, ',');) cells.push_back(cell);
  }
  REQUIRE(!lines.empty());
  CHECK(lines[0].back() == "adamw_seconds");
  lines.erase(lines.begin());
  return lines;
}

}  // namespace

TEST_CASE("bench_model counts and times each row", "[transformer][bench]") {
  const Folder folder;
  const std::filesystem::path csv = folder / "o.csv";
  const Outcome outcome = run(folder, small, {"--csv", csv.string()});
  CHECK(outcome.errors == "");
  REQUIRE(outcome.exit_code == 0);
  // 128 tokens: projections 8·128·16² and scores 4·16·2·64²; of the blocks two products of 2·128·16·32.
  const int attention = 262144 + 524288, dense = 262144;
  // Gates 2·R·8·(16 + 32); a merge 2·2·(2·16·32 + 16 + 32) a text; ⌊16/64⌋ and ⌊32/64⌋ are at least 1.
  const int meo = dense + 2 * 2 * 8 * 48 + 2 * 4 * 1072, token_attention = 4 * 48 * 128;
  const int moe = 2 * dense + 2 * 2 * 128 * 48;
  const std::vector<std::pair<std::string, int>> expected{{"dense", dense},
                                                          {"meo-sequence", meo},
                                                          {"meo-token", meo + token_attention},
                                                          {"moe-token", moe + 2 * 128 * 8 * 48},
                                                          {"moe-sequence", moe + 2 * 2 * 8 * 48}};
  const auto rows = lines(csv);
  REQUIRE(rows.size() == expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    REQUIRE(rows[i].size() == 14);
    CHECK(std::vector<std::string>(rows[i].begin(), rows[i].begin() + 3) ==
          std::vector<std::string>{"bert", "none", "forward"});
    CHECK(rows[i][3] == expected[i].first);
    CHECK(rows[i][9] == std::to_string(attention + expected[i].second));
    CHECK(rows[i][10] == std::to_string(expected[i].second));
    CHECK(std::stod(rows[i][11]) > 0);
    CHECK(std::stod(rows[i][12]) > 0);
    CHECK(outcome.says(expected[i].first));
  }
  CHECK(rows[0][12] == "1");
}

TEST_CASE("bench_model runs all its models, in training too", "[transformer][bench]") {
  const Folder folder;
  const std::filesystem::path csv = folder / "o.csv";
  for (const std::vector<std::string>& model : {std::vector<std::string>{"--head=mlm"},
                                                {"--rows=meo-sequence-bf16,moe-token-int8"},
                                                {"--model=gpt2"},
                                                {"--model=gpt2", "--head=lm"},
                                                {"--training"},
                                                {"--training", "--head=mlm", "--rows=moe-token,meo-token"},
                                                {"--training", "--model=gpt2", "--top-k=1,8"},
                                                {"--training", "--model=gpt2", "--head=lm"}}) {
    CAPTURE(model);
    std::vector<std::string> arguments = small;
    arguments.insert(arguments.end(), {"--segment-tokens=5", "--csv=" + csv.string()});
    const Outcome outcome = run(folder, arguments, model);
    CHECK(outcome.errors == "");
    CHECK(outcome.exit_code == 0);
    const bool trains = model[0] == "--training";
    for (const auto& cells : lines(csv)) CHECK((std::stod(cells.back()) > 0) == trains);
  }
}

TEST_CASE("bench_model times words, and counts them", "[transformer][bench]") {
  const Folder folder;
  const std::filesystem::path csv = folder / "o.csv";
  std::vector<std::string> arguments = small;
  std::erase(arguments, "--sequences=2");
  arguments.insert(arguments.end(), {"--model=gpt2", "--words=9", "--segment-tokens=60",
                                     "--csv=" + csv.string(), "--rows=meo-segment,moe-token,meo-token-int8"});
  const Outcome outcome = run(folder, arguments);
  CHECK(outcome.errors == "");
  REQUIRE(outcome.exit_code == 0);
  // The fifth of the nine words, which sees 60 of 64; of the blocks two products of 2·16·32.
  const int attention = 16 * (8 * 16 + 4 * 60), dense = 2048;
  const int token_attention = 4 * 48, combine = 2 * 2 * 48;
  const std::vector<std::pair<std::string, int>> expected{
      {"dense", dense},
      {"meo-segment", dense},
      {"meo-segment-anew", 2 * dense + combine},
      {"moe-token", 2 * dense + combine + 2 * 8 * 48},
      {"meo-token-int8", dense + token_attention},
      {"meo-token-int8-anew", 2 * dense + combine + token_attention}};
  const auto rows = lines(csv);
  REQUIRE(rows.size() == expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    CHECK(rows[i][2] == "word");
    CHECK(rows[i][3] == expected[i].first);
    CHECK(rows[i][9] == std::to_string(attention + expected[i].second));
    CHECK(std::stod(rows[i][11]) > 0);
  }
}

TEST_CASE("bench_model explains its options", "[transformer][bench]") {
  const Folder folder;
  CHECK(run(folder, {"--help"}).says("usage: bench_model [options]\n"));
  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.output == "");
    return outcome.errors;
  };
  const std::string end = "; --help says more\n";
  CHECK(fault({"--model=t5"}) == "bench_model: --model: expected bert or gpt2, got 't5'" + end);
  CHECK(fault({"--head=lm"}) == "bench_model: --head: expected none or mlm, got 'lm'" + end);
  CHECK(fault({"--top-k=1,x"}) ==
        "bench_model: --top-k: expected a whole number from 1 to 1000000, got 'x'" + end);
  CHECK(fault({"--top-k=9"}) == "bench_model: --top-k: expected at most --experts = 8, got 9" + end);
  CHECK(fault({"--tokens=513"}) ==
        "bench_model: --tokens: expected at most the model's 512 positions, got 513" + end);
  CHECK(fault({"--heads=10"}) == "bench_model: --width: expected a multiple of --heads = 10, got 768" + end);
  CHECK(fault({"--rows=moe"}) ==
        "bench_model: --rows: expected meo-sequence, meo-token, moe-token, moe-sequence, or none alone, got "
        "'moe'" +
            end);
  CHECK(fault({"--words=9"}) == "bench_model: --words: expected --model=gpt2, without --training" + end);
  CHECK(fault({"--words=128", "--model=gpt2"}) ==
        "bench_model: --words: expected less than --tokens = 128, got 128" + end);
  CHECK(fault({"--words=9", "--model=gpt2", "--sequences=2"}) ==
        "bench_model: --words: expected --sequences=1, as words follow one text" + end);
  CHECK(fault({"--training", "--rows=meo-token-half"}) ==
        "bench_model: --training: expected experts of floats, got meo-token-half" + end);
  CHECK(fault({"--layers"}) == "bench_model: --layers needs a value" + end);
  CHECK(fault({"--depth=1"}) == "bench_model: unknown option '--depth'" + end);
  const Outcome outcome = run(folder, small, {"--csv", (folder / "no/o.csv").string()});
  CHECK(outcome.exit_code == 1);
  CHECK(outcome.errors == "bench_model: --csv: cannot write to " + (folder / "no/o.csv").string() + "\n");
}

TEST_CASE("bench_model's gates are set for the tokens that the library's see", "[transformer][bench]") {
  using transformer::Mixture;
  const meo::Sequences batch = meo::Sequences::from_lengths({5, 1, 6, 2});
  for (const meo::Index segment_tokens : {0, 1, 2, 3, 7}) {
    CAPTURE(segment_tokens);
    const meo::Level level = segment_tokens > 0 ? meo::Level::segment : meo::Level::sequence;
    const transformer::MixtureConfig mixture{
        .kind = Mixture::meo, .level = level, .segment_tokens = segment_tokens};
    const meo::LayerOptions options{.routing = {.level = level, .segment_tokens = segment_tokens}};
    meo::detail::GateRowsMemory memory;
    const meo::detail::GateRows rows = meo::detail::decided_rows(options, batch, memory);
    std::vector<std::pair<meo::Index, meo::Index>> expected;
    for (const meo::detail::TokenRange& range : rows.seen) expected.emplace_back(range.begin, range.end);
    CHECK(transformer::bench::tokens_seen(mixture, batch) == expected);
  }
}

TEST_CASE("bench_model's gates have logits of mean 0 and variance 1", "[transformer][bench]") {
  std::mt19937_64 rng(1);
  meo::Matrix<float> rows = transformer::normal_matrix<float>(40, 6, rng, 1);
  rows.rowwise() += Eigen::RowVectorXf::Constant(6, 3);
  const meo::Matrix<float> logits = rows * transformer::bench::random_gate(rows, 4, rng);
  for (meo::Index e = 0; e < 4; ++e) {
    CHECK(logits.col(e).mean() == Approx(0).margin(1e-5));
    CHECK(logits.col(e).squaredNorm() / 40 == Approx(1).epsilon(1e-5));
  }
}
