/// The README's C++ is compiled code, and bench/README.md's figures are what the library computes.

#include "support/readme.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/family_block.hpp>
#include <meo/meo.hpp>

#include "support/catch.hpp"

using meo::test::cpp_blocks;
using meo::test::lines_of;
using meo::test::read_text;

// The README's snippets from the second on, word for word.
TEST_CASE("A batch is one matrix and its Sequences, as the README has it", "[readme]") {
  std::mt19937_64 rng(42);
  meo::MeoLayer<float, 8> layer({.in_features = 768, .out_features = 3072, .top_k = 2});
  layer.initialize(rng);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(205, 768);
  const auto batch = meo::Sequences::from_lengths({128, 17, 60});
  const auto [y, routing] = layer.forward(x, batch);  // x: 205 x 768
  CHECK(y.rows() == 205);
  CHECK(routing.rows == 3);
}

TEST_CASE("Experts of half the size compute, as the README has it", "[readme]") {
  std::mt19937_64 rng(42);
  meo::MeoLayer<float, 8> layer({.in_features = 768, .out_features = 3072, .top_k = 2});
  layer.initialize(rng);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(20, 768);
  const auto batch = meo::Sequences::from_lengths({12, 1, 7});
  const meo::MeoLayer<float, 8, Eigen::bfloat16> half_size(layer);  // or meo::io::load fills it
  const auto [small_y, small_routing] = half_size.forward(x, batch);
  CHECK(100 * half_size.experts().bytes() < 51 * layer.experts().bytes());
  CHECK((small_y - layer.forward(x, batch).y).cwiseAbs().maxCoeff() < 0.05f);
}

TEST_CASE("A block runs on a batch, as the README has it", "[readme]") {
  std::mt19937_64 rng(42);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(20, 768);
  const auto batch = meo::Sequences::from_lengths({12, 1, 7});
  // Gated as in T5 v1.1, 768 -> 2048 -> 768; one gate decides for all three projections.
  meo::FeedForward<meo::MeoLayer<float, 4>, meo::GeluTanh> block(
      {.features = 768, .hidden_features = 2048, .top_k = 2, .gated = true, .shared_gate = true});
  block.initialize(rng);
  const meo::Matrix<float> output = block.forward(x, batch).y;
  CHECK(output.rows() == 20);
  CHECK(output.cols() == 768);
}

TEST_CASE("A gate of another model, as the README has it, is balanced without a loss", "[readme]") {
  std::mt19937_64 rng(42);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(20, 768);
  const auto batch = meo::Sequences::from_lengths({12, 1, 7});
  meo::MoeLayer<float> layer(
      {.in_features = 768,
       .out_features = 3072,
       .num_experts = 64,
       .top_k = 8,
       .routing = {.level = meo::Level::token,
                   .loss_coefficient = 0,
                   .scores = {.function = meo::ScoreFunction::sigmoid, .normalize = true, .scale = 2.5},
                   .selection = {.groups = 8,
                                 .top_groups = 4,
                                 .group_score = meo::GroupScore::two_largest,
                                 .correction_bias = true}}});
  layer.initialize(rng);
  const auto [y, routing] = layer.forward(x, batch);
  meo::Vector<float> bias = layer.gate().correction_bias();
  meo::update_correction_bias(routing.load, 1e-3f, bias);  // after a step of training
  layer.gate().set_correction_bias(bias);
  CHECK(y.rows() == 20);
  CHECK(routing.loss == 0);
  for (meo::Index e = 0; e < 64; ++e)
    CHECK(bias[e] == (routing.load[std::size_t(e)] < 2.5f ? 1e-3f : -1e-3f));  // the mean is 20 · 8 / 64
}

TEST_CASE("Training as the README has it comes nearer to its target", "[readme]") {
  constexpr int steps = 1;
  std::mt19937_64 rng(42);
  meo::MeoLayer<float, 8> layer({.in_features = 768, .out_features = 3072, .top_k = 2});
  const meo::Matrix<float> x = meo::Matrix<float>::Random(20, 768);
  const meo::Matrix<float> target = meo::Matrix<float>::Random(20, 3072);
  const auto batch = meo::Sequences::from_lengths({12, 1, 7});
  const float before = (layer.forward(x, batch).y - target).squaredNorm();
  meo::MeoLayer<float, 8> gradients(layer.options());  // parameters and gradients are of one form
  meo::AdamW<float> optimizer(meo::parameters(layer), {.learning_rate = 1e-3});
  meo::Context<float> context;  // what a forward leaves for its backward
  meo::Matrix<float> y(x.rows(), 3072), dx(x.rows(), 768);
  for (int step = 0; step < steps; ++step) {
    meo::Inputs<float> inputs{.sequences = &batch};
    inputs.noise = meo::Noise<float>(rng);
    layer.forward(x, inputs, y, context);
    const meo::Matrix<float> dy = (y - target) / static_cast<float>(y.size());  // of half the mean square
    meo::set_zero(meo::parameters(gradients));
    layer.backward(x, inputs, context, dy, gradients, dx);  // the balance loss's gradient included
    meo::clip_gradient_norm(meo::parameters(gradients), 1.0f);
    optimizer.step(meo::parameters(layer), meo::parameters(gradients));
  }
  CHECK((layer.forward(x, batch).y - target).squaredNorm() < before);
}

TEST_CASE("A layer runs under a router of the user's, as the README has it", "[readme]") {
  const auto batch = meo::Sequences::from_lengths({12, 1, 7});
  const meo::Matrix<float> x = meo::Matrix<float>::Random(20, 768), dy = meo::Matrix<float>::Random(20, 3072);
  meo::Matrix<float> y(20, 3072), dx(20, 768);
  meo::Context<float> context;
  meo::MeoLayer<float, 4> gradients({.in_features = 768, .out_features = 3072, .has_router = false});
  std::vector<float> d_weights(3);
  meo::MeoLayer<float, 4> layer({.in_features = 768, .out_features = 3072, .has_router = false});
  // Three sequences: the first has experts 2 and 0, the second none and gives zeros, the third expert 1.
  const meo::Assignment<float> assignment{.rows = 3,
                                          .num_experts = 4,
                                          .begins = {0, 2, 2, 3},
                                          .experts = {2, 0, 1},
                                          .weights = {0.7f, 0.3f, 1.0f}};
  layer.forward_routed(x, {.sequences = &batch}, assignment, y, context);
  layer.backward_routed(x, {.sequences = &batch}, assignment, context, dy, gradients, dx, d_weights);
  CHECK(y.isZero(0));  // as the layer's parameters are
  // Of a bias: the weighed sum of dy over its tokens, at most 12 numbers of ±1. Either sum has 12 roundings
  // of at most 12 units.
  constexpr float bound = 2 * 12 * 12 * std::numeric_limits<float>::epsilon();
  const meo::Vector<float> first = dy.topRows(12).colwise().sum(), third = dy.bottomRows(7).colwise().sum();
  CHECK((gradients.bias(2) - 0.7f * first).cwiseAbs().maxCoeff() < bound);
  CHECK((gradients.bias(0) - 0.3f * first).cwiseAbs().maxCoeff() < bound);
  CHECK((gradients.bias(1) - third).cwiseAbs().maxCoeff() < bound);
  CHECK(gradients.bias(3).isZero(0));
}

TEST_CASE("Experts are kept for token by token, as the README has it", "[readme]") {
  std::mt19937_64 rng(42);
  meo::MeoLayer<float, 8> layer({.in_features = 768, .out_features = 3072, .top_k = 2});
  layer.initialize(rng);
  const meo::Matrix<float> prompt = meo::Matrix<float>::Random(64, 768);
  const meo::Matrix<float> x = prompt.bottomRows(1);
  meo::Matrix<float> y(1, 3072);
  constexpr int tokens = 2;
  meo::Workspace<float> workspace;
  meo::MergedExpert kept(layer, layer.route(prompt, {}, workspace));  // prompt: 64 x 768
  for (int token = 0; token < tokens; ++token) {
    kept.forward(x, {}, y, workspace);  // x: 1 x 768
    // ... from y to the next x
  }
  CHECK(y == layer.forward(prompt).y.bottomRows(1));  // which is merged as well
}

TEST_CASE("Weights are loaded from a safetensors file, as the README has it", "[readme]") {
  meo::MeoLayer<float> saved({.in_features = 768, .out_features = 3072, .num_experts = 8, .top_k = 2});
  saved.set_weight(7, meo::Matrix<float>::Random(3072, 768));
  saved.gate().set_weight(meo::Matrix<float>::Random(768, 8));
  meo::io::SafetensorsWriter writer;
  meo::io::save(saved, writer, "");
  writer.write("layer.safetensors");
  meo::MeoLayer<float> layer({.in_features = 768, .out_features = 3072, .num_experts = 8, .top_k = 2});
  meo::io::load(layer, meo::io::SafetensorsReader("layer.safetensors"), "");
  CHECK(layer.weight(7) == saved.weight(7));
  CHECK(layer.gate().weight() == saved.gate().weight());
  std::filesystem::remove("layer.safetensors");
}

TEST_CASE("A block of a public model is loaded, as the README has it", "[readme]") {
  const std::filesystem::path folder = "OLMoE-1B-7B-0924";
  std::filesystem::create_directory(folder);
  const meo::io::SafetensorsReader file(MEO_TEST_DATA_DIR "/goldens_families/olmoe.safetensors");
  meo::io::SafetensorsWriter writer;
  for (std::string name : file.names()) {
    const std::vector<float> values = file.read<float>(name);
    const std::vector<meo::Index> shape = file.info(name).shape;
    if (const auto layer = name.find("layers.0"); layer != name.npos) name.replace(layer, 8, "layers.3");
    writer.add(name, shape, values);
  }
  writer.write(folder / "model.safetensors");
  std::ofstream(folder / "config.json") << R"({"model_type": "olmoe", "hidden_size": 32, "num_experts": 8,
    "intermediate_size": 20, "num_experts_per_tok": 2, "norm_topk_prob": false})";
  const auto x = file.read_matrix<float>("x", 11, 32);
  using Block = meo::FeedForward<meo::MoeLayer<float>, meo::AnyActivation>;
  const meo::io::FamilyModel model("OLMoE-1B-7B-0924");
  const Block block = meo::io::load_block<Block>(model, model.layer(3));
  const meo::Matrix<float> output = block.forward(x).y;
  const auto y = file.read_matrix<float>("y", 11, 32);
  CHECK((output - y).cwiseAbs().maxCoeff() <= 2e-6f * y.cwiseAbs().maxCoeff());
  std::filesystem::remove_all(folder);
}

TEST_CASE("The README's snippets are an example, in this file or in a test of several processes",
          "[readme]") {
  const std::vector<std::string> blocks = cpp_blocks(read_text("../README.md"));
  REQUIRE(blocks.size() == 11);
  CHECK(blocks[0] == read_text("../examples/quickstart/main.cpp"));
  const std::vector<std::string> here =
      lines_of(read_text("readme_test.cpp") + read_text("distributed/tensor_parallel_test.cpp"));
  for (std::size_t i = 1; i < blocks.size(); ++i) {
    CAPTURE(blocks[i]);
    const std::vector<std::string> snippet = lines_of(blocks[i]);
    CHECK(std::search(here.begin(), here.end(), snippet.begin(), snippet.end()) != here.end());
  }
}

TEST_CASE("bench/README.md's table of FLOPs is what flops.hpp computes", "[readme]") {
  const std::map<std::string, meo::ModelShape> models{
      {"Small", meo::bert_small}, {"Base", meo::bert_base}, {"Large", meo::bert_large}};
  const std::vector<std::string> lines = lines_of(read_text("../bench/README.md"));
  for (const auto& [name, shape] : models) {
    for (const auto& [method_name, method] :
         {std::pair{"MoE", meo::Method::moe}, std::pair{"MEO", meo::Method::meo}}) {
      const std::string row = "| " + name + " " + method_name + " |";
      CAPTURE(row);
      const auto line = std::find_if(lines.begin(), lines.end(),
                                     [&row = row](const std::string& text) { return text.starts_with(row); });
      REQUIRE(line != lines.end());
      std::istringstream cells(line->substr(row.size()));
      for (const meo::Index top_k : {1, 2, 4, 8, 16, 32}) {
        double gflops = 0;
        std::string paper, bar;
        REQUIRE(cells >> gflops >> paper >> bar);
        const auto total = meo::flops(method, shape, top_k, meo::Convention::paper).total();
        CHECK(gflops == Approx(static_cast<double>(total) * 1e-9).margin(0.005001).epsilon(0));
      }
    }
  }
}
