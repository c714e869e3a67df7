#pragma once

/// A case's random data, and each of its methods made ready to run: built, run once and verified.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/flops.hpp>
#include <meo/meo.hpp>

#include "baselines.hpp"
#include "cases.hpp"
#include "routed_block.hpp"
#include "routers.hpp"
#include "verify.hpp"

namespace bench {

using Activation = meo::Gelu;

/// The methods of a case, in the order in which they are reported.
template <class Scalar>
std::vector<Method> methods(const Case& c) {
  if (c.peak) {
    const bool is_float = std::same_as<Scalar, float>;
    return {{.name = is_float ? "multiply_add/float" : "multiply_add/double", .kind = Kind::peak}};
  }
  std::vector<Method> all;
  if (c.routers) {
    const std::string variant = "/k" + std::to_string(c.top_k[0]);
    all.push_back({.name = "block" + variant, .kind = Kind::routed_block, .top_k = c.top_k[0]});
    for (std::size_t i = 0; i < routers().size() && c.router.empty(); ++i)
      all.push_back(
          {.name = routers()[i].name + variant, .kind = Kind::router, .top_k = c.top_k[0], .router = i});
    if (c.router.empty()) return all;
    const auto products = dense_products<Scalar>();
    for (std::size_t i = 0; i < products.size(); ++i)
      all.push_back({.name = "gathered/" + products[i].name, .kind = Kind::gathered, .product = i});
    if (c.reads) all.push_back({.name = "read" + variant, .kind = Kind::read_routed});
    return all;
  }
  if (c.orders) {
    using enum meo::MergeOrder;
    for (const Index k : c.top_k) {
      for (const auto& [name, order] :
           {std::pair{"meo", automatic}, {"merge_first", merge_first}, {"combine_outputs", combine_outputs}})
        all.push_back(
            {.name = name + ("/k" + std::to_string(k)), .kind = Kind::meo, .top_k = k, .merge_order = order});
    }
    return all;
  }
  if (c.fixed) {
    for (const auto& [name, kind] : {std::pair{"meo", Kind::meo},
                                     {"moe", Kind::moe},
                                     {"meo_gate", Kind::meo_gate},
                                     {"moe_gate", Kind::moe_gate}}) {
      for (const bool fixed : {false, true})
        all.push_back({.name = name + std::string(fixed ? "_fixed" : "") + "/k" + std::to_string(c.top_k[0]),
                       .kind = kind,
                       .top_k = c.top_k[0],
                       .fixed = fixed});
    }
    return all;
  }
  if (c.storage) {
    const bool is_moe = c.level == Level::token;
    for (const auto& [name, storage] : {std::pair{"", Storage::scalars},
                                        {"_bfloat16", Storage::bfloat16},
                                        {"_half", Storage::half},
                                        {"_int8", Storage::int8}})
      all.push_back({.name = (is_moe ? "moe" : "meo") + std::string(name) + "/k" + std::to_string(c.top_k[0]),
                     .kind = is_moe ? Kind::moe : Kind::meo,
                     .top_k = c.top_k[0],
                     .storage = storage});
    return all;
  }
  const auto add = [&](const char* name, Kind kind, Index top_k) {
    all.push_back({.name = name + ("/k" + std::to_string(top_k)), .kind = kind, .top_k = top_k});
  };
  if (c.kept) {
    add("linear", Kind::linear, 1);
    add("step", Kind::step, c.top_k.back());
    for (const Index k : c.top_k) add("merge", Kind::merge, k);
    for (const Index k : c.top_k) add("read_write", Kind::read_write, k);
    return all;
  }
  const auto products = dense_products<Scalar>();
  for (std::size_t i = 0; i < products.size(); ++i)
    all.push_back({.name = "dense/" + products[i].name, .kind = Kind::dense, .product = i});
  for (const Index k : c.top_k) add("meo", Kind::meo, k);
  for (const Index k : c.top_k) add("moe", Kind::moe, k);
  if (c.backward) return all;
  if (!c.block) {
    add("meo_gate", Kind::meo_gate, c.top_k.back());
    add("moe_gate", Kind::moe_gate, c.top_k.back());
  }
  for (const Index k : c.top_k) add("naive", Kind::naive, k);
  if (c.reads) add("read", Kind::read, c.num_experts);
  return all;
}

/// What one call of `run` costs: floating-point operations as flops.hpp counts them, backward those of a
/// dense layer's two products, and the bytes of the experts that it needs.
struct Prepared {
  std::function<void()> run;
  double flops = 0;
  double expert_bytes = 0;
};

template <class Scalar>
class Problem {
 public:
  /// Draws everything from one seed.
  explicit Problem(const Case& c)
      : case_(c),
        sequences_(c.lengths.empty() ? meo::Sequences::uniform(c.sequences, c.tokens)
                                     : meo::Sequences::from_lengths(c.lengths)),
        x_(draw(c.all_tokens(), c.in_features, 1)),
        y_(c.all_tokens(), c.block || c.routers ? c.in_features : c.out_features) {
    if (c.routers) return;
    projections_.push_back({c.in_features, c.out_features, {}});
    if (c.block) {
      projections_.push_back({c.out_features, c.in_features, {}});
      hidden_.resize(c.all_tokens(), c.out_features);
    }
    for (Projection& projection : projections_) {
      const double limit = 1 / std::sqrt(static_cast<double>(projection.in_features));
      for (Index e = 0; e < c.num_experts; ++e)
        projection.experts.push_back(draw(projection.out_features, projection.in_features, limit));
    }
    if (c.backward) {
      dy_ = draw(c.all_tokens(), c.out_features, 1);
      dx_.resize(c.all_tokens(), c.in_features);
    }
    if (c.level == Level::task) task_embeddings_ = random(description_tokens, task_features, 1, rng_);
  }
  Problem(const Problem&) = delete;  // what is prepared points into it
  Problem& operator=(const Problem&) = delete;

  /// Valid as long as the problem is.
  Prepared prepare(const Method& method) {
    const std::string name = case_.name + '/' + method.name;
    y_.setConstant(std::numeric_limits<Scalar>::quiet_NaN());
    hidden_.setConstant(std::numeric_limits<Scalar>::quiet_NaN());
    dx_.setConstant(std::numeric_limits<Scalar>::quiet_NaN());
    if (method.fixed) return prepare_fixed(name, method);
    if (method.storage != Storage::scalars) return prepare_small(name, method);
    switch (method.kind) {
      case Kind::dense:
        return case_.backward ? prepare_dense_backward(name, dense_products<Scalar>()[method.product])
                              : prepare_dense(name, dense_products<Scalar>()[method.product]);
      case Kind::meo:
        if (case_.backward) return prepare_backward<meo::MeoLayer<Scalar>>(name, method.top_k);
        return case_.block ? prepare_block<meo::MeoLayer<Scalar>>(name, method.top_k)
                           : prepare_layer<meo::MeoLayer<Scalar>>(name, method.top_k, method.merge_order);
      case Kind::moe:
        if (case_.backward) return prepare_backward<meo::MoeLayer<Scalar>>(name, method.top_k);
        return case_.block ? prepare_block<meo::MoeLayer<Scalar>>(name, method.top_k)
                           : prepare_layer<meo::MoeLayer<Scalar>>(name, method.top_k);
      case Kind::meo_gate:
        return prepare_gate<meo::MeoLayer<Scalar>>(name, method.top_k);
      case Kind::moe_gate:
        return prepare_gate<meo::MoeLayer<Scalar>>(name, method.top_k);
      case Kind::naive:
        return prepare_naive(name, method.top_k);
      case Kind::read:
        return prepare_read(name);
      case Kind::peak:
        if (multiply_adds<Scalar>() != multiply_adds_sum<Scalar>())
          throw std::runtime_error(name + " is wrong");
        return {.run = [this] { sum_ = multiply_adds<Scalar>(); }, .flops = multiply_adds_flops<Scalar>()};
      case Kind::linear:
        return prepare_linear(name);
      case Kind::step:
      case Kind::merge:
        return prepare_kept(name, method);
      case Kind::read_write:
        return prepare_read_write(name, method.top_k);
      case Kind::router:
        return {.run = prepare_router(name, routers()[method.router], x_, case_.num_experts, method.top_k)};
      case Kind::routed_block: {
        RoutedBlock<Scalar>& block = routed_block();
        block.run();
        block.verify(name);
        return {
            .run = [&block] { block.run(); }, .flops = block.flops(), .expert_bytes = block.expert_bytes()};
      }
      case Kind::gathered: {
        RoutedBlock<Scalar>& block = routed_block();
        const DenseProduct<Scalar> product = dense_products<Scalar>()[method.product];
        return {.run = [&block, product] { block.run_gathered(product); },
                .flops = block.flops(),
                .expert_bytes = block.expert_bytes()};
      }
      case Kind::read_routed: {
        const RoutedBlock<Scalar>& block = routed_block();
        return {.run = [this, &block] { sum_ = block.run_read(); }, .expert_bytes = block.expert_bytes()};
      }
    }
    return {};
  }

  /// What the methods write to.
  const Scalar* result() const { return case_.backward ? dx_.data() : y_.data(); }

 private:
  struct Projection {
    Index in_features, out_features;
    std::vector<Matrix<Scalar>> experts;
  };

  static constexpr Index task_features = 768;
  static constexpr Index description_tokens = 16;

  // -------------------------------------------------------------------------------------------------------------
  // Data

  static Matrix<Scalar> random(Index rows, Index cols, double limit, std::mt19937_64& rng) {
    std::uniform_real_distribution<Scalar> uniform(static_cast<Scalar>(-limit), static_cast<Scalar>(limit));
    Matrix<Scalar> matrix(rows, cols);
    for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = uniform(rng);
    return matrix;
  }

  /// Of sampled cases many values are the same: they stand in a pool, from another place on for each matrix.
  Matrix<Scalar> draw(Index rows, Index cols, double limit) {
    if (!case_.sampled) return random(rows, cols, limit, rng_);
    constexpr Index pool_size = 1'000'003;  // a prime, so that rows do not repeat
    if (pool_.size() == 0) pool_ = random(1, pool_size, 1, rng_);
    Matrix<Scalar> matrix(rows, cols);
    Index from = static_cast<Index>(rng_() % pool_size);
    for (Index at = 0; at < matrix.size(); from = 0) {
      const Index count = (std::min)(matrix.size() - at, pool_size - from);
      Eigen::Map<meo::Vector<Scalar>>(matrix.data() + at, count) =
          static_cast<Scalar>(limit) * Eigen::Map<const meo::Vector<Scalar>>(pool_.data() + from, count);
      at += count;
    }
    return matrix;
  }

  /// `most` of `count` rows or columns, evenly spread from the first to the last; all but of sampled cases.
  std::vector<Index> verified_of(Index count, Index most) const {
    const Index some = case_.sampled ? (std::min)(count, most) : count;
    std::vector<Index> indices(static_cast<std::size_t>(some));
    for (Index i = 0; i < some; ++i)
      indices[static_cast<std::size_t>(i)] = some == 1 ? 0 : i * (count - 1) / (some - 1);
    return indices;
  }
  std::vector<Index> verified_tokens() const { return verified_of(case_.all_tokens(), 64); }

  /// Without biases, as the products that they are compared with.
  meo::LayerOptions options(const Projection& projection, Index top_k,
                            meo::MergeOrder merge_order = meo::MergeOrder::automatic) const {
    return {.in_features = projection.in_features,
            .out_features = projection.out_features,
            .num_experts = case_.num_experts,
            .top_k = top_k,
            .bias = false,
            .routing = {.level = case_.level, .task_features = task_features},
            .merge_order = merge_order};
  }

  /// The same parameters for every layer that computes the projection.
  template <class Layer>
  void fill(Layer& layer, const Projection& projection) const {
    for (Index e = 0; e < case_.num_experts; ++e)
      layer.set_weight(e, projection.experts[static_cast<std::size_t>(e)]);
    std::mt19937_64 rng(1);
    layer.gate().initialize(rng);
    // A gate sees the mean of some tokens whose features have variance 1/3, and starts with weights of
    // variance 1/(3 D): made larger so that logits have about unit variance and no gate vanishes.
    const bool sees_one_token = Layer::Kind::routes_tokens && case_.level == Level::token;
    const auto tokens = static_cast<double>(sees_one_token ? 1 : case_.tokens);
    layer.gate().set_weight(static_cast<Scalar>(3 * std::sqrt(tokens)) * layer.gate().weight());
    if (case_.level == Level::task) layer.task_projection().initialize(rng);
    if constexpr (std::same_as<typename Layer::Kind, meo::Meo>) {
      if (case_.level == Level::token) {
        layer.token_attention().initialize(rng);
        // U would be zero; large, it would move all sequences alike and make their gates agree.
        meo::Linear<Scalar>& up = layer.token_attention().up();
        up.set_weight(random(up.out_features(), up.in_features(), 0.03, rng));
      }
    }
  }

  template <class Layer>
  Layer make_layer(const Projection& projection, Index top_k,
                   meo::MergeOrder merge_order = meo::MergeOrder::automatic) const {
    Layer layer(options(projection, top_k, merge_order));
    fill(layer, projection);
    return layer;
  }

  meo::Inputs<Scalar> inputs() const {
    meo::Inputs<Scalar> inputs{.sequences = &sequences_};
    if (case_.level == Level::task) inputs.task_embeddings = task_embeddings_;
    return inputs;
  }

  /// tokens × N. The rows of a routing are tokens or sequences.
  Matrix<Scalar> gates_of_tokens(const meo::Routing<Scalar>& routing) const {
    const Matrix<Scalar> gates = routing.dense();
    Matrix<Scalar> of_tokens(case_.all_tokens(), gates.cols());
    for (Index t = 0; t < of_tokens.rows(); ++t) of_tokens.row(t) = gates.row(row_of(t, routing.rows));
    return of_tokens;
  }

  /// Which of `rows` rows of a routing decides about a token.
  Index row_of(Index t, Index rows) const {
    if (rows != sequences_.size()) return t / (case_.all_tokens() / rows);
    const auto offsets = sequences_.offsets();
    return std::upper_bound(offsets.begin(), offsets.end(), t) - offsets.begin() - 1;
  }

  // -------------------------------------------------------------------------------------------------------------
  // Methods

  /// Runs apply(p, x, y) for each projection p, with the activation between two.
  template <class Apply>
  void run_projections(const Apply& apply) {
    apply(std::size_t{0}, x_, case_.block ? hidden_ : y_);
    if (!case_.block) return;
    activate(hidden_, Activation{});
    apply(std::size_t{1}, hidden_, y_);
  }

  /// That of the case, for all of its methods.
  RoutedBlock<Scalar>& routed_block() {
    if (!routed_) {
      const std::string router = case_.router.empty() ? "mixtral" : case_.router;
      routed_ = std::make_unique<RoutedBlock<Scalar>>(x_, y_, case_.out_features, case_.num_experts,
                                                      case_.top_k[0], router_named(router));
    }
    return *routed_;
  }

  Prepared prepare_fixed(const std::string& name, const Method& method) {
    using Meo = meo::MeoLayer<Scalar, fixed_experts>;
    using Moe = meo::MoeLayer<Scalar, fixed_experts>;
    switch (method.kind) {
      case Kind::meo:
        return prepare_layer<Meo>(name, method.top_k);
      case Kind::moe:
        return prepare_layer<Moe>(name, method.top_k);
      case Kind::meo_gate:
        return prepare_gate<Meo>(name, method.top_k);
      case Kind::moe_gate:
        return prepare_gate<Moe>(name, method.top_k);
      default:
        throw std::logic_error(name + ": no layer");
    }
  }

  Prepared prepare_dense(const std::string& name, const DenseProduct<Scalar>& product) {
    const auto run = [this, product] {
      run_projections([&](std::size_t p, const Matrix<Scalar>& x, Matrix<Scalar>& y) {
        product.run(x, projections_[p].experts[0], y);
      });
    };
    run();
    Matrix<Scalar> first_expert = Matrix<Scalar>::Zero(case_.all_tokens(), case_.num_experts);
    first_expert.col(0).setOnes();
    return verified(name, meo::Method::dense, 1, run, x_, hidden_, {first_expert, first_expert});
  }

  Prepared prepare_naive(const std::string& name, Index top_k) {
    const auto layers = std::make_shared<std::vector<NaiveMeoLayer<Scalar>>>();
    const auto run = [this, layers] {
      run_projections(
          [&](std::size_t p, const Matrix<Scalar>& x, Matrix<Scalar>& y) { (*layers)[p].run(x, y); });
    };
    // The first run makes the layers as it goes: what the second's gate sees is what the first put out.
    run_projections([&](std::size_t p, const Matrix<Scalar>& x, Matrix<Scalar>& y) {
      const auto layer = make_layer<meo::MeoLayer<Scalar>>(projections_[p], top_k);
      meo::Workspace<Scalar> workspace;
      meo::Inputs<Scalar> all_inputs = inputs();
      if (case_.level == Level::task) all_inputs.sequences = nullptr;  // one decision, one merge
      layers->emplace_back(projections_[p].experts, layer.route(x, all_inputs, workspace), layer);
      layers->back().run(x, y);
    });
    std::vector<Matrix<Scalar>> gates;
    for (const auto& layer : *layers) gates.push_back(gates_of_tokens(layer.routing()));
    return verified(name, meo::Method::meo, top_k, run, layers->front().seen(x_), hidden_, gates);
  }

  template <class Layer>
  Prepared prepare_layer(const std::string& name, Index top_k,
                         meo::MergeOrder merge_order = meo::MergeOrder::automatic) {
    struct State {
      Layer layer;
      meo::Workspace<Scalar> workspace;
    };
    const auto state =
        std::make_shared<State>(State{make_layer<Layer>(projections_[0], top_k, merge_order), {}});
    const auto run = [this, state] { state->layer.forward(x_, inputs(), y_, state->workspace); };
    run();
    const Scalar* seen = x_.data();
    if constexpr (std::same_as<typename Layer::Kind, meo::Meo>) {
      if (case_.level == Level::token) {
        seen = memory_of(state->workspace).attended.data();
        verify_attention<Scalar>(name + "'s token attention", x_, state->layer.token_attention(),
                                 map(seen, x_.cols()));
      }
    }
    return verified(name, method_of<Layer>, top_k, run, map(seen, x_.cols()), hidden_,
                    {gates_of_tokens(state->workspace.routing)}, merge_order);
  }

  Prepared prepare_small(const std::string& name, const Method& method) {
    if constexpr (std::same_as<Scalar, float>) {
      const auto prepare = [&](auto storage) {
        using Stored = decltype(storage);
        return method.kind == Kind::meo ? prepare_stored<meo::MeoLayer<Scalar>, Stored>(name, method.top_k)
                                        : prepare_stored<meo::MoeLayer<Scalar>, Stored>(name, method.top_k);
      };
      if (method.storage == Storage::bfloat16) return prepare(Eigen::bfloat16());
      if (method.storage == Storage::half) return prepare(Eigen::half());
      return prepare(std::int8_t());
    } else {
      throw std::logic_error(name + ": no layer");
    }
  }

  /// Verified by the weights that are read of the small layer.
  template <class Layer, class Stored>
  Prepared prepare_stored(const std::string& name, Index top_k) {
    struct State {
      meo::MixtureLayer<Scalar, Eigen::Dynamic, typename Layer::Kind, Stored> layer;
      meo::Workspace<Scalar> workspace;
    };
    const Projection& projection = projections_[0];
    const auto state =
        std::make_shared<State>(State{decltype(State::layer)(make_layer<Layer>(projection, top_k)), {}});
    const auto run = [this, state] { state->layer.forward(x_, inputs(), y_, state->workspace); };
    run();
    std::vector<Matrix<Scalar>> experts;
    for (Index e = 0; e < case_.num_experts; ++e) experts.push_back(state->layer.weight(e));
    const Matrix<Scalar> gates = gates_of_tokens(state->workspace.routing);
    const auto identity = [](Scalar value) { return value; };
    verify_mixture<Scalar>(name, x_, experts, gates, identity, y_);
    const auto selected = static_cast<double>((gates.array() != 0).colwise().any().count());
    return {.run = run,
            .flops = flops(method_of<Layer>, projection, top_k, meo::MergeOrder::automatic),
            .expert_bytes = selected * expert_bytes(projection) / sizeof(Scalar) * sizeof(Stored)};
  }

  /// Verified by what forward decides, whose results other methods verify.
  template <class Layer>
  Prepared prepare_gate(const std::string& name, Index top_k) {
    struct State {
      Layer layer;
      meo::Workspace<Scalar> workspace;
    };
    const auto state = std::make_shared<State>(State{make_layer<Layer>(projections_[0], top_k), {}});
    const meo::Routing<Scalar> expected = state->layer.forward(x_, inputs(), y_, state->workspace);
    const auto run = [this, state] { state->layer.route(x_, inputs(), state->workspace); };
    state->workspace.routing = {};
    run();
    if (state->workspace.routing.experts != expected.experts ||
        state->workspace.routing.weights != expected.weights) {
      std::cerr << "meo_bench: " << name << " decides otherwise than forward\n";
      std::exit(1);
    }
    return {.run = run};
  }

  /// Verified on values whose sum is exact: all of them 1.
  Prepared prepare_read(const std::string& name) const {
    const auto layer =
        std::make_shared<meo::MeoLayer<Scalar>>(make_layer<meo::MeoLayer<Scalar>>(projections_[0], 1));
    const std::vector<Scalar> ones(std::size_t{1} << 20, Scalar(1));
    if (read<Scalar>(ones) != static_cast<Scalar>(ones.size())) throw std::runtime_error(name + " is wrong");
    return {.run = [this, layer] { sum_ = read<Scalar>(std::as_const(*layer).experts().values()); },
            .expert_bytes = static_cast<double>(layer->experts().values().size()) * sizeof(Scalar)};
  }

  Prepared prepare_read_write(const std::string& name, Index top_k) const {
    const auto expert = static_cast<std::size_t>(projections_[0].in_features * projections_[0].out_features);
    struct State {
      meo::AlignedVector<Scalar> experts, written;
    };
    const auto state = std::make_shared<State>(
        State{meo::AlignedVector<Scalar>(static_cast<std::size_t>(top_k) * expert, Scalar(1)),
              meo::AlignedVector<Scalar>(expert)});
    write<Scalar>(Scalar(1), state->written);
    if (read<Scalar>(state->written) != static_cast<Scalar>(expert))
      throw std::runtime_error(name + " is wrong");
    return {.run =
                [this, state] {
                  sum_ = read<Scalar>(state->experts);
                  write<Scalar>(sum_, state->written);
                },
            .expert_bytes = static_cast<double>(top_k) * expert_bytes(projections_[0])};
  }

  Prepared prepare_linear(const std::string& name) {
    const Projection& projection = projections_[0];
    const auto linear =
        std::make_shared<meo::Linear<Scalar>>(projection.in_features, projection.out_features, false);
    linear->set_weight(projection.experts[0]);
    const auto run = [this, linear] { linear->apply(x_, y_.data(), y_.cols()); };
    run();
    Matrix<Scalar> first_expert = Matrix<Scalar>::Zero(case_.all_tokens(), case_.num_experts);
    first_expert.col(0).setOnes();
    return verified(name, meo::Method::dense, 1, run, x_, hidden_, {first_expert});
  }

  /// A step, or merging, which is verified by a step.
  Prepared prepare_kept(const std::string& name, const Method& method) {
    struct State {
      meo::MeoLayer<Scalar> layer;
      meo::Assignment<Scalar> assignment;
      meo::MergedExpert<Scalar> kept;
      meo::Workspace<Scalar> workspace;
    };
    const Projection& projection = projections_[0];
    meo::Assignment<Scalar> assignment{
        .rows = 1, .num_experts = case_.num_experts, .top_k = method.top_k, .experts = {}, .weights = {}};
    for (Index e = 0; e < method.top_k; ++e) {
      assignment.experts.push_back(e);
      assignment.weights.push_back(static_cast<Scalar>(1) / static_cast<Scalar>(e + 2));
    }
    const auto layer = make_layer<meo::MeoLayer<Scalar>>(projection, method.top_k);
    const auto state =
        std::make_shared<State>(State{layer, assignment, meo::MergedExpert<Scalar>(layer, assignment), {}});
    const auto step = [this, state] { state->kept.forward(x_, inputs(), y_, state->workspace); };
    const auto merge = [state] { state->kept.merge(state->layer, state->assignment); };
    merge();
    step();
    const Matrix<Scalar> gates = assignment.dense().replicate(case_.all_tokens(), 1);
    const meo::LayerShape shape = meo::layer_shape<Scalar>(state->layer.options(), sequences_);
    Prepared prepared = verified(name, meo::Method::meo, method.top_k, step, x_, hidden_, {gates});
    if (method.kind == Kind::step) {
      prepared.flops = static_cast<double>(meo::step_flops(meo::Method::meo, shape).total());
      prepared.expert_bytes = expert_bytes(projection);
    } else {
      prepared.run = merge;
      prepared.flops = static_cast<double>(meo::merging_flops(shape, method.top_k).total());
    }
    return prepared;
  }

  Prepared prepare_dense_backward(const std::string& name, const DenseProduct<Scalar>& product) {
    const auto d_weight =
        std::make_shared<Matrix<Scalar>>(projections_[0].out_features, projections_[0].in_features);
    const auto run = [this, product, d_weight] {
      product.gradients(x_, projections_[0].experts[0], dy_, dx_, *d_weight);
    };
    run();
    verify_backward(name, {projections_[0].experts[0]}, Matrix<Scalar>::Ones(case_.all_tokens(), 1), dx_,
                    [&](Index) { return *d_weight; });
    return {.run = run, .flops = gradient_flops(), .expert_bytes = 2 * expert_bytes(projections_[0])};
  }

  /// A run adds to the gradients, which are verified after the first.
  template <class Layer>
  Prepared prepare_backward(const std::string& name, Index top_k) {
    struct State {
      Layer layer, gradients;
      meo::Context<Scalar> context;
    };
    Layer layer = make_layer<Layer>(projections_[0], top_k);
    const auto state = std::make_shared<State>(State{layer, Layer(layer.options()), {}});
    state->layer.forward(x_, inputs(), y_, state->context);
    const auto run = [this, state] {
      state->layer.backward(x_, inputs(), state->context, dy_, state->gradients, dx_);
    };
    run();
    // What reaches x through the gate is taken away as the library computed it.
    Matrix<Scalar> through_experts = dx_;
    const Index rows = state->context.routing.rows;
    const bool by_sequence = rows == sequences_.size();
    for (Index t = 0; t < case_.all_tokens(); ++t) {
      const Index row = row_of(t, rows);
      const Index tokens = by_sequence ? sequences_.length(row) : case_.all_tokens() / rows;
      const Eigen::Map<const Matrix<Scalar>> of_gate(
          gradient_memory_of(state->context).router.gate_input.data() + row * x_.cols(), 1, x_.cols());
      through_experts.row(t) -= of_gate / static_cast<Scalar>(tokens);
    }
    const Matrix<Scalar> gates = gates_of_tokens(state->context.routing);
    verify_backward(name, projections_[0].experts, gates, through_experts,
                    [&](Index e) { return state->gradients.weight(e); });
    const auto selected = static_cast<double>((gates.array() != 0).colwise().any().count());
    return {
        .run = run, .flops = gradient_flops(), .expert_bytes = 3 * selected * expert_bytes(projections_[0])};
  }

  /// d_weight(e): the gradient of expert e.
  template <class Gradient>
  void verify_backward(const std::string& name, const std::vector<Matrix<Scalar>>& experts,
                       const Matrix<Scalar>& gates, const Matrix<Scalar>& dx,
                       const Gradient& d_weight) const {
    const std::vector<Index> tokens = verified_tokens(), outputs = verified_of(dy_.cols(), 16);
    const Matrix<Scalar> dy = dy_(Eigen::all, outputs);
    verify_input_gradient<Scalar>(name, dy_(tokens, Eigen::all), experts, gates(tokens, Eigen::all),
                                  dx(tokens, Eigen::all));
    for (Index e = 0; e < gates.cols(); ++e) {
      const Matrix<Scalar> of_expert = d_weight(e);
      verify_weight_gradient<Scalar>(name, x_, gates.col(e).asDiagonal() * dy, gates.cols(),
                                     of_expert(outputs, Eigen::all));
    }
  }

  template <class Layer>
  Prepared prepare_block(const std::string& name, Index top_k) {
    struct State {
      meo::FeedForward<Layer, Activation> block;
      meo::FeedForwardWorkspace<Scalar> workspace;
    };
    const meo::FeedForwardOptions options{.features = case_.in_features,
                                          .hidden_features = case_.out_features,
                                          .num_experts = case_.num_experts,
                                          .top_k = top_k,
                                          .bias = false,
                                          .routing = {.level = case_.level, .task_features = task_features}};
    const auto state = std::make_shared<State>(State{meo::FeedForward<Layer, Activation>(options), {}});
    fill(state->block.up(), projections_[0]);
    fill(state->block.down(), projections_[1]);
    const auto run = [this, state] { state->block.forward(x_, inputs(), y_, state->workspace); };
    run();
    return verified(
        name, method_of<Layer>, top_k, run, x_,
        map(memory_of(state->workspace).hidden.data(), case_.out_features),
        {gates_of_tokens(state->workspace.up.routing), gates_of_tokens(state->workspace.down.routing)});
  }

  /// Holds what `run` left behind against plain Eigen: a layer's y, or a block's hidden activations and,
  /// given them, its y. seen: what the first experts saw; gates: tokens × N for each projection.
  Prepared verified(const std::string& name, meo::Method method, Index top_k, std::function<void()> run,
                    const ConstMatrixRef<Scalar>& seen, const ConstMatrixRef<Scalar>& hidden,
                    const std::vector<Matrix<Scalar>>& gates,
                    meo::MergeOrder merge_order = meo::MergeOrder::automatic) const {
    const auto identity = [](Scalar value) { return value; };
    const auto activation = [](Scalar value) { return Activation{}(value); };
    const std::vector<Index> tokens = verified_tokens();
    const auto some = [&](const ConstMatrixRef<Scalar>& rows) -> Matrix<Scalar> {
      return rows(tokens, Eigen::all);
    };
    if (case_.block) {
      verify_mixture<Scalar>(name + "'s up", some(seen), projections_[0].experts, some(gates[0]), activation,
                             some(hidden));
      verify_mixture<Scalar>(name + "'s down", some(hidden), projections_[1].experts, some(gates[1]),
                             identity, some(y_));
    } else {
      verify_mixture<Scalar>(name, some(seen), projections_[0].experts, some(gates[0]), identity, some(y_));
    }
    Prepared prepared{.run = std::move(run)};
    for (std::size_t p = 0; p < projections_.size(); ++p) {
      const auto selected = static_cast<double>((gates[p].array() != 0).colwise().any().count());
      prepared.flops += flops(method, projections_[p], top_k, merge_order);
      prepared.expert_bytes += selected * expert_bytes(projections_[p]);
    }
    return prepared;
  }

  double flops(meo::Method method, const Projection& projection, Index top_k,
               meo::MergeOrder merge_order) const {
    meo::LayerShape shape = meo::layer_shape<Scalar>(options(projection, top_k, merge_order), sequences_);
    if (case_.level == Level::task) shape.merges = std::min<Index>(shape.merges, 1);  // all are of one task
    return static_cast<double>(meo::flops(method, shape).total());
  }

  /// Of the two products of a dense layer's backward.
  double gradient_flops() const {
    return 2 * flops(meo::Method::dense, projections_[0], 1, meo::MergeOrder::automatic);
  }

  static double expert_bytes(const Projection& projection) {
    return static_cast<double>(projection.in_features * projection.out_features) * sizeof(Scalar);
  }

  Eigen::Map<const Matrix<Scalar>> map(const Scalar* data, Index cols) const {
    return {data, case_.all_tokens(), cols};
  }

  template <class Layer>
  static constexpr meo::Method method_of =
      std::same_as<typename Layer::Kind, meo::Meo> ? meo::Method::meo : meo::Method::moe;

  Case case_;
  std::mt19937_64 rng_{42};
  Matrix<Scalar> pool_;
  meo::Sequences sequences_;
  Matrix<Scalar> x_;
  Matrix<Scalar> y_;
  Matrix<Scalar> hidden_;  // of blocks: activated
  Matrix<Scalar> dy_;      // of backward cases, as dx_
  Matrix<Scalar> dx_;
  std::vector<Projection> projections_;
  Matrix<Scalar> task_embeddings_;
  std::unique_ptr<RoutedBlock<Scalar>> routed_;  // of cases that have one
  mutable Scalar sum_ = 0;                       // of what was read, or multiplied and added
};

}  // namespace bench
