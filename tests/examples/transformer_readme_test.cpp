/// The C++ of examples/transformer/README.md is compiled code.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <meo/training/adamw.hpp>
#include <meo/training/parameters.hpp>

#include "../../examples/transformer/model/model_folder.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/readme.hpp"

namespace {
namespace transformer_readme_test {

using transformer::Batch;
using transformer::Index;
using transformer::Task;

/// Another folder to be in.
class In {
 public:
  explicit In(const std::filesystem::path& folder) : before_(std::filesystem::current_path()) {
    std::filesystem::current_path(folder);
  }
  ~In() { std::filesystem::current_path(before_); }
  In(const In&) = delete;
  In& operator=(const In&) = delete;

 private:
  std::filesystem::path before_;
};

/// What is printed from here on.
class Printed {
 public:
  Printed() : before_(std::cout.rdbuf(text_.rdbuf())) {}
  ~Printed() { std::cout.rdbuf(before_); }
  Printed(const Printed&) = delete;
  Printed& operator=(const Printed&) = delete;

  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* before_;
};

TEST_CASE("A classifier is trained from a published model, as the example's README has it",
          "[transformer][readme]") {
  const meo::test::Folder folder;
  const In in_folder(folder);
  transformer::Config dense = transformer::test::small_config(Task::masked_words);
  dense.embedding_dropout = dense.hidden_dropout = dense.attention_dropout = dense.classifier_dropout = 0;
  dense.labels = 2;
  const Batch batch = transformer::test::random_batch(dense, {5, 3, 9, 4}, 1);
  const std::vector<Index> labels{0, 1, 1, 0};
  // A published one has a pooler, too.
  transformer::Model<float> published([&] {
    transformer::Config config = dense;
    config.task = Task::classification;
    return config;
  }());
  transformer::test::randomize(published, 2);
  transformer::save_model(published, "bert-base-uncased");
  const std::uint64_t steps = 2;
  const Printed printed;

  std::mt19937_64 rng(1);
  transformer::Config config = transformer::load_config("bert-base-uncased");
  config.task = transformer::Task::classification;
  config.mixture = {.kind = transformer::Mixture::meo, .experts = 8, .top_k = 4};
  auto model = transformer::load_model<float>("bert-base-uncased", config, {.training = &rng});
  transformer::Model<float> gradients(config);
  transformer::Model<float>::Context context;
  meo::AdamW<float> optimizer(meo::parameters(model), {.learning_rate = 2e-5});
  for (std::uint64_t step = 0; step < steps; ++step) {
    const transformer::Training<float> training{.noise = transformer::GateNoise<float>(rng),
                                                .dropout_seed = step};
    model.forward(batch, &training, context);
    const float loss = transformer::cross_entropy<float>(context.logits(), labels) + context.balance_loss;
    meo::set_zero(meo::parameters(gradients));
    model.backward(batch, &training, context, gradients);
    optimizer.step(meo::parameters(model), meo::parameters(gradients));
    std::cout << "step " << step << ": loss " << loss << '\n';
  }
  transformer::save_model(model, "classifier");

  CHECK(printed.text().starts_with("step 0: loss "));
  CHECK(printed.text().find("\nstep 1: loss ") != std::string::npos);
  // What was loaded has gone on, and is what was saved.
  const auto saved = transformer::load_model<float>("classifier", transformer::load_config("classifier"));
  const auto loss_of = [&](const transformer::Model<float>& of) {
    const meo::Matrix<float> logits = of.forward(batch, nullptr, context);
    meo::Matrix<float> changed = logits;
    return transformer::cross_entropy<float>({changed.data(), changed.rows(), changed.cols()}, labels);
  };
  CHECK(loss_of(saved) == loss_of(model));
  CHECK(loss_of(model) < loss_of(published));
}

TEST_CASE("The example's README's snippets are in this file", "[transformer][readme]") {
  const auto blocks = meo::test::cpp_blocks(meo::test::read_text("../examples/transformer/README.md"));
  REQUIRE(blocks.size() == 1);
  const auto here = meo::test::lines_of(meo::test::read_text("examples/transformer_readme_test.cpp"));
  const auto snippet = meo::test::lines_of(blocks[0]);
  CHECK(std::search(here.begin(), here.end(), snippet.begin(), snippet.end()) != here.end());
}

}  // namespace transformer_readme_test
}  // namespace
