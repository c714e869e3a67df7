// Experts that are spread over ranks, against one rank that has all of them and all of the batch.

#include <cmath>
#include <vector>

#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/statistics_sum.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>

#include "distributed/part_of_batch.hpp"
#include "distributed/world.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace expert_parallel_test {

using namespace meo;
using namespace meo::test;

using Moe = MoeLayer<double>;
using Block = FeedForward<MoeLayer<double>, Gelu>;

double loss_of(const Routing<double>& routing) { return routing.loss; }
double loss_of(double loss) { return loss; }

Vector<double> values_of(const ParameterRange<double>& range) {
  return Eigen::Map<const Vector<double>>(range.values.data(), static_cast<Index>(range.values.size()));
}

/// context: of the whole layer.
template <class Layer, class Context>
void compare_with_one_rank(Layer whole, const Batch& batch, Context context) {
  Generator rng(2);
  whole.initialize(rng);
  const Index in = batch.x.cols(), out = batch.dy.cols();
  Matrix<double> y(batch.x.rows(), out), dx(batch.x.rows(), in);
  Layer whole_gradients(whole.options());
  const double loss = loss_of(whole.forward(batch.x, batch.inputs(), y, context));
  // The balance loss's gradient is a sum over ranks: without it all that reaches x has the same bits.
  whole.backward(batch.x, batch.inputs(), context, batch.dy, whole_gradients, dx, 0);

  using Spread = mpi::ExpertParallel<Layer>;
  const Batch part = part_of(batch, world());
  const mpi::StatisticsSum<double> add_up(world());
  Inputs<double> inputs = part.inputs();
  inputs.reduction = StatisticsReduction<double>(add_up);
  const Spread layer(world(), whole);
  Spread gradients(world(), whole.options());
  typename Spread::Context own_context;
  const Index tokens = part.x.rows(), first = first_token(batch, world());
  Matrix<double> own_y(tokens, out), own_dx(tokens, in);
  for (int repeat = 0; repeat < 2; ++repeat) {  // with memory that a forward has used before
    const double own_loss = layer.forward(part.x, inputs, own_y, own_context).loss;
    CHECK(bit_difference(own_y, Matrix<double>(y.middleRows(first, tokens))) == "");
    CHECK(share_of_bound(own_loss, loss, double(gamma<double>(4 * batch.x.rows() + 200)) * loss) <= 1);
  }
  layer.backward(part.x, inputs, own_context, part.dy, gradients, own_dx, 0);
  CHECK(bit_difference(own_dx, Matrix<double>(dx.middleRows(first, tokens))) == "");

  if (gradients.own().size() > 0) {
    Layer expected(gradients.experts().options());
    mpi::detail::Spreadable<Layer>::copy(whole_gradients, gradients.own().begin, expected);
    const Parameters<double> ranges = parameters(expected), own = gradients.expert_parameters();
    REQUIRE(own.size() == ranges.size());
    for (std::size_t i = 0; i < own.size(); ++i) {
      CAPTURE(own[i].name);
      CHECK(bit_difference(values_of(own[i]), values_of(ranges[i])) == "");
      CHECK_FALSE(values_of(own[i]).isZero(0));
    }
  }

  mpi::GradientReducer<double> reducer(world());
  reducer.add(gradients.router_parameters());
  reducer.finish();
  Spread expected(world(), whole_gradients);
  for (std::size_t i = 0; i < expected.router_parameters().size(); ++i) {
    // Sums over the rows, which may cancel: of at most so many terms, a tenth of which are as large as the
    // sum.
    CHECK(disagreement_in_max_norm(values_of(gradients.router_parameters()[i]),
                                   values_of(expected.router_parameters()[i]),
                                   double(gamma<double>(20 * batch.x.rows()))) == "");
  }
}

TEST_CASE("experts on several ranks give the bits of one rank") {
  Generator rng(1);
  const bool routes_tokens = GENERATE(true, false);
  const bool has_few = GENERATE(false, true);  // ranks without experts, and without sequences
  const Index experts = has_few ? 3 : 5, in = 19, out = 13;
  const std::vector<Index> lengths =
      has_few ? std::vector<Index>{4, 0, 9} : std::vector<Index>{3, 8, 1, 0, 17, 6, 5};
  CAPTURE(routes_tokens, has_few);
  const RoutingOptions routing{.level = routes_tokens ? Level::token : Level::sequence};
  compare_with_one_rank(
      Moe({.in_features = in, .out_features = out, .num_experts = experts, .top_k = 2, .routing = routing}),
      random_batch(rng, lengths, in, out, experts, routes_tokens), Context<double>());
  compare_with_one_rank(Block({.features = in,
                               .hidden_features = 11,
                               .num_experts = experts,
                               .top_k = 2,
                               .gated = true,
                               .shared_gate = true,
                               .routing = routing}),
                        random_batch(rng, lengths, in, in, experts, routes_tokens),
                        FeedForwardContext<double>());
}

TEST_CASE("any routing of experts on several ranks gives the bits of one rank") {
  Generator rng(1);
  LayerOptions options{.in_features = 5, .out_features = 9, .num_experts = 4, .top_k = 3};
  // Segments of four tokens; tokens that find no room with an expert, or with any; experts that all have.
  options.routing = GENERATE(RoutingOptions{.level = Level::segment, .segment_tokens = 4},
                             RoutingOptions{.level = Level::token, .selection = {.capacity = 2}});
  options.shared_experts = GENERATE(SharedExpertOptions{}, SharedExpertOptions{2, SharedWeight::sigmoid});
  compare_with_one_rank(Moe(options), random_batch(rng, {3, 8, 17, 6, 5}, 5, 9, 0, true), Context<double>());
}

TEST_CASE("ranks with other sizes do not send one another rows") {
  if (world().size() == 1) return;
  const Index more = world().rank() == 1 ? 1 : 0;
  const auto refused = [](const LayerOptions& options, const char* what, const char* expected,
                          const char* got) {
    return error_lacks<std::invalid_argument>([&] { mpi::ExpertParallel<Moe>(world(), options); },
                                              {what, expected, got});
  };
  CHECK(refused({.in_features = 3 + more, .out_features = 2, .num_experts = 4}, "features of x",
                "3 on rank 0", "4 on rank 1") == "");
  CHECK(refused({.in_features = 3, .out_features = 2 + more, .num_experts = 4}, "features of y",
                "2 on rank 0", "3 on rank 1") == "");
  CHECK(refused({.in_features = 3, .out_features = 2, .num_experts = 4 + more}, "num_experts", "4 on rank 0",
                "5 on rank 1") == "");
  LayerOptions options{.in_features = 3, .out_features = 2, .num_experts = 4};
  options.shared_experts.count = more;
  CHECK(refused(options, "num_experts", "4 on rank 0", "5 on rank 1") == "");
}

TEST_CASE("what is wrong with one rank's part of the batch throws on all, and all go on") {
  const int last = world().size() - 1;
  const bool is_last = world().rank() == last;
  const std::string where = " (on rank " + std::to_string(last) + ")";
  Generator rng(3);
  const bool reduces = GENERATE(false, true);
  const mpi::StatisticsSum<double> add_up(world());
  Inputs<double> inputs;
  if (reduces) inputs.reduction = StatisticsReduction<double>(add_up);
  Moe whole({.in_features = 3,
             .out_features = 2,
             .num_experts = 5,
             .top_k = 2,
             .shared_experts = {1, SharedWeight::sigmoid},
             .routing = {.level = Level::token}});
  whole.initialize(rng);
  mpi::ExpertParallel<Moe> layer(world(), whole), gradients(world(), whole.options());
  mpi::ExpertParallel<Moe>::Context context;
  const Matrix<double> x = random_matrix<double>(rng, 4, 3), dy = random_matrix<double>(rng, 4, 2);
  Matrix<double> y = Matrix<double>::Constant(4, 2, 7), dx = Matrix<double>::Constant(4, 3, 7);
  const auto forward = [&](const Matrix<double>& of) { layer.forward(of, inputs, y, context); };
  const auto backward = [&](const Matrix<double>& of) {
    layer.backward(x, inputs, context, of, gradients, dx);
  };

  CHECK(error_lacks<std::invalid_argument>([&] { forward(is_last ? Matrix<double>(x.leftCols(2)) : x); },
                                           {"x: expected 3 columns, got 2" + where}) == "");
  Matrix<double> bad = x;
  if (is_last) bad(2, 1) = std::nan("");
  CHECK(error_lacks<std::domain_error>([&] { forward(bad); }, {"finite logits", where}) == "");
  // After the losses were summed, where they are.
  Linear<double>& gate = layer.router().shared_expert_gate();
  const Linear<double> finite = gate;
  if (is_last) {
    for (auto& value : gate.values()) value = std::nan("");
  }
  CHECK(error_lacks<std::domain_error>([&] { forward(x); }, {"for the shared experts", where}) == "");
  gate = finite;
  CHECK(y == Matrix<double>::Constant(4, 2, 7));
  CHECK(error_lacks<std::invalid_argument>([&] { backward(dy); }, {"context", "none", " (on rank 0)"}) == "");

  forward(x);
  CHECK(error_lacks<std::invalid_argument>([&] { backward(is_last ? Matrix<double>(dy.leftCols(1)) : dy); },
                                           {"dy", "expected 4 x 2, got 4 x 1" + where}) == "");
  CHECK(dx == Matrix<double>::Constant(4, 3, 7));
  backward(dy);
}

TEST_CASE("a rank with other options than the others throws on all") {
  const int last = world().size() - 1;
  const Index less = world().rank() == last ? 1 : 0;
  const std::string where = " (on rank " + std::to_string(last) + ")";
  CHECK(error_lacks<std::invalid_argument>(
            [&] {
              mpi::ExpertParallel<Moe>(world(),
                                       {.in_features = 3, .out_features = 2, .num_experts = 1 - less});
            },
            {where}) == "");
  CHECK(error_lacks<std::invalid_argument>([&] { mpi::GradientReducer<double>(world(), 1 - less); },
                                           {"bucket_values: expected at least 1, got 0" + where}) == "");
  if (last > 0) {
    CHECK(error_lacks<std::invalid_argument>([&] { mpi::GradientReducer<double>(world(), 9 - less); },
                                             {"bucket_values: expected the same"}) == "");
  }
}

TEST_CASE("what is no expert-parallel layer is said before anything is sent") {
  const LayerOptions options{.in_features = 3, .out_features = 2, .num_experts = 2};
  CHECK(error_lacks<std::invalid_argument>(
            [&] { mpi::ExpertParallel<Block>(world(), FeedForwardOptions{.features = 2}); },
            {"shared_gate", "got false"}) == "");
  mpi::ExpertParallel<Moe> layer(world(), options), gradients(world(), options);
  mpi::ExpertParallel<Moe>::Context context;
  const Matrix<double> x = Matrix<double>::Zero(4, 3), wide = Matrix<double>::Zero(4, 5);
  Matrix<double> y(4, 2), dx(4, 3);
  CHECK(error_lacks<std::invalid_argument>([&] { layer.forward(wide, {}, y, context); },
                                           {"3 columns", "got 5"}) == "");
  CHECK(error_lacks<std::invalid_argument>([&] { layer.backward(x, {}, context, y, gradients, dx); },
                                           {"context", "4 tokens", "none"}) == "");
  layer.forward(x, {}, y, context);
  CHECK(error_lacks<std::invalid_argument>([&] { layer.backward(x, {}, context, y, layer, dx); },
                                           {"gradients", "the one itself"}) == "");
}

}  // namespace expert_parallel_test
}  // namespace
