#pragma once

/// Layers and blocks whose experts are split over ranks: each rank merges, and multiplies with, its part of
/// every expert, for all tokens. No token goes from rank to rank, be the experts as many as they may.
///
/// A layer is split by its outputs: rank p has F_p rows of every W_i, and the ranks' columns of y are
/// gathered. A block is split by its hidden features: rank p has H_p outputs of `up` and `gate_up` and as
/// many inputs of `down`, whose outputs, y, are summed over the ranks. Any number can be split over any
/// number of ranks that is not larger.
///
/// What decides and what sees all features, router and token attention, each rank has whole and does again.
///
/// Of the results, those of the unsplit layer to the bit, on any number of ranks, are y of a layer and, given
/// the same dy, the gradients of its experts. All others are sums over ranks: in the order of the ranks, so
/// fixed by their number and the same bits on all of them, off by rounding from the unsplit layer's.
///
/// Letters: P ranks, T tokens, D in_features or features, F out_features, H hidden features.
///
/// Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3, for one dense block.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/growing_matrix.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

namespace detail {

using meo::detail::require;

/// What of a bank's experts is split.
enum class Axis { outputs, inputs };

/// A rank's part of every expert of a bank: rows are outputs, columns inputs.
struct Block {
  RankRange rows;
  RankRange cols;
  bool has_bias;  ///< whether the biases of the rows are among it

  /// Of what is summed over ranks the first one has the biases, and the others zeros.
  template <class Bank>
  Block(const Bank& whole, Axis axis, int ranks, int rank)
      : rows{0, whole.out_features()}, cols{0, whole.in_features()}, has_bias(whole.has_bias()) {
    if (axis == Axis::outputs) rows = range_of(rows.end, ranks, rank);
    else cols = range_of(cols.end, ranks, rank);
    if (axis == Axis::inputs && rank > 0) has_bias = false;
  }

  Index size() const { return rows.size() * cols.size(); }
};

/// How a layer or block is split: which of its sizes, and whether outputs are then summed or gathered.
/// for_banks calls visit(bank, bank of `other`, axis) for each bank of two layers; copy_shared copies what
/// each rank has whole.
template <class Layer>
struct Split;

template <class ScalarType, int NumExperts, class Kind, class Storage>
struct Split<MixtureLayer<ScalarType, NumExperts, Kind, Storage>> {
  using Layer = MixtureLayer<ScalarType, NumExperts, Kind, Storage>;
  using Projection = Layer;
  using Context = meo::Context<ScalarType>;
  static constexpr std::string_view size_name = "out_features";
  static constexpr bool sums_outputs = false;

  template <class Options>
  static auto& size(Options& options) {
    return options.out_features;
  }
  static Index outputs(const LayerOptions& options) { return options.out_features; }
  static void check(const LayerOptions&) {}
  static Layer like(const Layer&, const LayerOptions& options) { return Layer(options); }

  template <class First, class Second, class Visitor>
  static void for_banks(First& layer, Second& other, const Visitor& visit) {
    visit(layer.experts(), other.experts(), Axis::outputs);
  }

  static void copy_shared(const Layer& from, Layer& to) {
    if (from.options().has_router) to.router() = from.router();
    if (Kind::has_token_attention && from.options().routing.level == Level::token)
      to.token_attention() = from.token_attention();
  }

  static const Routing<ScalarType>& routing(const Context& context) { return context.routing; }
  static meo::detail::GrowingMatrix<ScalarType>& embeddings_gradient(Context& context) {
    return gradient_memory_of(context).router.task_embeddings;
  }
};

template <class LayerType, class Activation>
struct Split<FeedForward<LayerType, Activation>> {
  using Layer = FeedForward<LayerType, Activation>;
  using Projection = LayerType;
  using Scalar = typename Layer::Scalar;
  using Context = FeedForwardContext<Scalar>;
  static constexpr std::string_view size_name = "hidden_features";
  static constexpr bool sums_outputs = true;

  template <class Options>
  static auto& size(Options& options) {
    return options.hidden_features;
  }
  static Index outputs(const FeedForwardOptions& options) { return options.features; }

  /// A router or token attention of `down` would see hidden features of all ranks.
  static void check(const FeedForwardOptions& options) {
    require(options.shared_gate,
            "shared_gate: expected a block with one decision to split it by hidden features, got false; "
            "TensorParallelProjections splits the others");
    require(!Layer::Kind::has_token_attention || options.routing.level != Level::token,
            "level: expected a block without token attention to split it by hidden features, got token, at "
            "which `down` has some over all of them; TensorParallelProjections splits such a block");
  }
  static Layer like(const Layer& block, const FeedForwardOptions& options) {
    return Layer(options, block.activation());
  }

  template <class First, class Second, class Visitor>
  static void for_banks(First& block, Second& other, const Visitor& visit) {
    visit(block.up().experts(), other.up().experts(), Axis::outputs);
    if (block.options().gated) visit(block.gate_up().experts(), other.gate_up().experts(), Axis::outputs);
    visit(block.down().experts(), other.down().experts(), Axis::inputs);
  }

  static void copy_shared(const Layer& from, Layer& to) { Split<LayerType>::copy_shared(from.up(), to.up()); }

  static const Routing<Scalar>& routing(const Context& context) { return context.up.routing; }
  static meo::detail::GrowingMatrix<Scalar>& embeddings_gradient(Context& context) {
    return gradient_memory_of(context).task_embeddings;
  }
};

template <class Part>
inline constexpr bool is_expert_bank = false;
template <class Scalar, class Storage>
inline constexpr bool is_expert_bank<ExpertBank<Scalar, Storage>> = true;

/// Parameters, or their gradients, that every rank has whole.
template <class Layer>
std::vector<std::span<typename Layer::Scalar>> shared_values(Layer& layer) {
  std::vector<std::span<typename Layer::Scalar>> values;
  layer.visit([&](std::string_view, auto&& part) {
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (!is_expert_bank<Part> && !meo::detail::is_buffer<Part>) values.push_back(part.values());
  });
  return values;
}

/// Of a batch's size and its assignment: where it differs, ranks would multiply with other experts.
template <class Scalar>
std::uint64_t checksum(Index tokens, const Assignment<Scalar>& assignment) {
  std::uint64_t sum = empty_checksum;
  const auto add = [&](std::uint64_t word) { sum = checksum_with(sum, word); };
  add(static_cast<std::uint64_t>(tokens));
  for (const Index begin : assignment.begins) add(static_cast<std::uint64_t>(begin));
  for (const Index expert : assignment.experts) add(static_cast<std::uint64_t>(expert));
  for (const Scalar& weight : assignment.weights) {
    const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(weight));
    add(bits ^ (bits >> 32));
  }
  return sum;
}

/// Inputs::reduction of a layer whose ranks all have the same rows: if it added those up, they would count as
/// often as there are ranks. One count more says whether it does: the first rank gives 1, the others 0.
template <class Scalar>
class OtherRows {
 public:
  OtherRows(const StatisticsReduction<Scalar>& reduction, int rank) : reduction_(reduction), rank_(rank) {}

  void operator()(std::span<meo::detail::Sum<Scalar>> sums, std::span<Index> counts) {
    std::vector<Index> more(counts.begin(), counts.end());
    more.push_back(rank_ == 0 ? 1 : 0);
    reduction_(sums, more);
    adds_up_same_ = adds_up_same_ || (rank_ > 0 && more.back() > 0);
    std::copy_n(more.begin(), counts.size(), counts.begin());
  }

  /// Throws where the ranks of the layer are added up.
  void check() const {
    require(!adds_up_same_,
            "reduction: expected one over ranks that have other rows, got one over the ranks of the layer");
  }

 private:
  StatisticsReduction<Scalar> reduction_;
  int rank_;
  bool adds_up_same_ = false;
};

/// What a forward and its backward need beside the part's own memory.
template <class Scalar>
struct TensorParallelMemory {
  AlignedVector<Scalar> own;      ///< this rank's columns or summands
  AlignedVector<Scalar> all;      ///< what all ranks have sent, or the sums
  std::vector<Scalar> gradients;  ///< of what every rank has whole, as they were before
};

}  // namespace detail

/// A MixtureLayer, or a FeedForward with one decision for the block, of which each rank has a part: an
/// ordinary layer of fewer outputs, or an ordinary block of fewer hidden features. Tokens and decisions are
/// on every rank what they would be on one: all ranks pass the same x, inputs, noise and dy. That the
/// decisions were the same is checked.
///
/// To train, each rank updates parameters(…) of its TensorParallel with those of another, which has the
/// gradients: what every rank has whole gets the same gradients on all, to the bit, and so stays the same.
///
/// Every member but the accessors is for all ranks to call, in the same order. What is wrong on one rank
/// throws on all, see agree. Copies and moves as the layer does.
template <class LayerType>
class TensorParallel {
  using Split = detail::Split<LayerType>;

 public:
  /// What is split.
  using Layer = LayerType;
  using Scalar = typename Layer::Scalar;
  using Options = typename Layer::Options;
  static_assert(Sendable<Scalar>, "meo: Scalar must be copied byte by byte to be sent");

  /// What a forward leaves to its backward; the part's own Context, with the routing in it.
  class Context : public Split::Context {
    friend class TensorParallel;
    detail::TensorParallelMemory<Scalar> memory_;
  };

  /// All parameters zero. options: of the whole; activation: that of a block. Throws std::invalid_argument
  /// for options that make no layer, unless each rank gets one at least of what is split, and unless all
  /// ranks have the same sizes.
  template <class... Activation>
  TensorParallel(const Communicator& communicator, const Options& options, const Activation&... activation)
      : TensorParallel(communicator, options, agreed(communicator, [&] {
                         return Layer(part_options(communicator, options), activation...);
                       })) {}

  /// This rank's part of a layer that is the same on all ranks. Experts that are stored in 8 bits and split
  /// by inputs are rounded again, by a scale of the part's own.
  TensorParallel(const Communicator& communicator, const Layer& whole)
      : TensorParallel(communicator, whole.options(), agreed(communicator, [&] {
                         Layer part = Split::like(whole, part_options(communicator, whole.options()));
                         Split::for_banks(whole, part, [&](const auto& bank, auto& own, detail::Axis axis) {
                           take(bank, detail::Block(bank, axis, communicator.size(), communicator.rank()),
                                own);
                         });
                         Split::copy_shared(whole, part);
                         return part;
                       })) {}

  /// The whole layer, on all ranks.
  Layer whole() const;

  /// The ranks that share the layer.
  const Communicator& communicator() const { return communicator_; }
  /// Of the whole.
  const Options& options() const { return options_; }
  /// Which outputs of a layer, or hidden features of a block, this rank has.
  RankRange range() const { return range(communicator_.rank()); }
  RankRange range(int rank) const { return range_of(Split::size(options_), communicator_.size(), rank); }
  /// This rank's part. In a block the biases of `down` are the first rank's; those of the others are 0, and
  /// have to stay so.
  Layer& part() { return part_; }
  const Layer& part() const { return part_; }

  /// The part's parameters; see MixtureLayer::visit.
  template <class Visitor>
  void visit(const Visitor& visit) {
    part_.visit(visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    part_.visit(visit);
  }

  /// x: T × D; y: T × F, or T × D of a block, on every rank; what it holds is overwritten. Returns the
  /// balance loss. Throws as the layer's forward does, and std::invalid_argument where the ranks have not
  /// decided the same, as if x or the noise were not the same; y is then untouched.
  ///
  /// inputs.reduction is over ranks that have other rows, as in a grid of ranks its columns where the rows of
  /// the grid each share a layer; std::invalid_argument if it is not. Then what forward throws before all
  /// have decided is thrown on that rank alone: see run.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 Context& context) const;

  /// Gradients of forward(x, inputs, y, context), as the layer's backward has them, on every rank: for dy,
  /// that of the whole y, and d_loss. gradients: another of the same options and ranks. dx: T × D, the whole,
  /// as are the gradients of what every rank has whole and context.task_embeddings_gradient(). Throws as the
  /// layer's backward does; then dx and the gradients of all but experts are as they were.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context& context,
                const ConstMatrixRef<Scalar>& dy, TensorParallel& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss = Scalar(1)) const;

  /// The same where other layers have used the decision of this one, d_weights being what they make of the
  /// gradient of its weights: on each rank a summand, which add up to it over the ranks.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context& context,
                const ConstMatrixRef<Scalar>& dy, TensorParallel& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss, std::span<const Scalar> d_weights) const;

  /// A layer with a routing from elsewhere, as the layer's forward_routed; all ranks pass the same, which is
  /// checked.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Assignment<Scalar>& routing, MatrixRef<Scalar> y, Context& context) const;

  /// Gradients of forward_routed(x, inputs, routing, y, context), as the layer's backward_routed has them.
  /// To d_weights each rank's summand is added: that of the outputs that it has.
  void backward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                       const Assignment<Scalar>& routing, Context& context, const ConstMatrixRef<Scalar>& dy,
                       TensorParallel& gradients, MatrixRef<Scalar> dx, std::span<Scalar> d_weights) const;

 private:
  using Memory = detail::TensorParallelMemory<Scalar>;

  TensorParallel(const Communicator& communicator, const Options& options, Layer&& part)
      : communicator_(communicator), options_(options), part_(std::move(part)) {
    options_.num_experts = part_.options().num_experts;
    require_same(communicator, "num_experts, with shared ones",
                 options_.num_experts + options_.shared_experts.count);
    require_same(communicator, Split::size_name, Split::size(options_));
    require_same(communicator, "features of y", Split::outputs(options_));
  }

  static Options part_options(const Communicator& communicator, Options options) {
    Split::check(options);
    auto& size = Split::size(options);
    meo::detail::require(size >= communicator.size(), Split::size_name,
                         ": expected one at least for each of ", communicator.size(), " ranks, got ", size);
    size = range_of(size, communicator.size(), communicator.rank()).size();
    return options;
  }

  template <class Bank>
  static void take(const Bank& bank, const detail::Block& block, Bank& part);

  /// An expert of the bank from every rank's part of it.
  template <class Bank>
  void gather_expert(Bank& bank, detail::Axis axis, Index expert, const Bank& part) const;

  /// Throws unless y fits x, and does not overlap it.
  void check_output(const ConstMatrixRef<Scalar>& x, const MatrixRef<Scalar>& y) const;

  /// This rank's columns of y, or its summand.
  Eigen::Map<Matrix<Scalar>> own_output(Index rows, Context& context) const {
    return matrix(context.memory_.own, rows, Split::sums_outputs ? Split::outputs(options_) : range().size());
  }

  /// y from what every rank has of it.
  void collect_output(Memory& memory, MatrixRef<Scalar> y) const;
  void gather(Memory& memory, MatrixRef<Scalar> y) const;

  /// The columns of dy that reach this rank's part.
  ConstMatrixRef<Scalar> part_of(const ConstMatrixRef<Scalar>& dy) const {
    if constexpr (Split::sums_outputs) return dy;
    else return dy.middleCols(range().begin, range().size());
  }

  /// Gradients of what every rank has whole: zeroes them, and gives back what they were.
  static void set_aside(TensorParallel& gradients, Memory& memory);
  static void restore(TensorParallel& gradients, const Memory& memory);

  /// Calls backward_part(this rank's summand of dx), in which the part's gradients are added, and sums what
  /// every rank has whole over the ranks.
  template <class BackwardPart>
  void backward_by(const ConstMatrixRef<Scalar>& x, Context& context, const ConstMatrixRef<Scalar>& dy,
                   TensorParallel& gradients, MatrixRef<Scalar> dx, const BackwardPart& backward_part) const;

  /// The balance loss is every rank's, its gradient the first one's.
  Scalar own_loss(const Scalar& d_loss) const { return communicator_.rank() == 0 ? d_loss : Scalar(0); }

  /// Nor have other ranks than the first gradients of biases that are added once.
  void drop_other_biases(TensorParallel& gradients) const;

  /// Of dx and of the gradients of all that every rank has whole: summands become sums.
  void sum_over_ranks(Index dx_size, Context& context, TensorParallel& gradients) const;

  template <class Derived>
  static auto span_of(Eigen::PlainObjectBase<Derived>& values) {
    return std::span<Scalar>(values.data(), static_cast<std::size_t>(values.size()));
  }
  template <class Derived>
  static auto span_of(const Eigen::PlainObjectBase<Derived>& values) {
    return std::span<const Scalar>(values.data(), static_cast<std::size_t>(values.size()));
  }
  static std::span<Scalar> span_of(AlignedVector<Scalar>& buffer, Index count) {
    return {meo::detail::reserve(buffer, count), static_cast<std::size_t>(count)};
  }
  static Eigen::Map<Matrix<Scalar>> matrix(AlignedVector<Scalar>& buffer, Index rows, Index cols) {
    return {meo::detail::reserve(buffer, rows * cols), rows, cols};
  }

  Communicator communicator_;
  Options options_;
  Layer part_;
};

/// From a whole layer.
template <class Layer>
TensorParallel(const Communicator&, const Layer&) -> TensorParallel<Layer>;

template <class LayerType>
template <class Bank>
void TensorParallel<LayerType>::take(const Bank& bank, const detail::Block& block, Bank& part) {
  std::vector<Scalar> row(static_cast<std::size_t>(block.cols.size()));
  std::vector<Scalar> biases(static_cast<std::size_t>(block.has_bias ? block.rows.size() : 0));
  for (Index expert = 0; expert < bank.num_experts(); ++expert) {
    for (Index out = 0; out < block.rows.size(); ++out) {
      bank.read_row(expert, block.rows.begin + out, block.cols.begin, row);
      part.write_row(expert, out, 0, row);
    }
    bank.read_bias(expert, block.rows.begin, biases);
    part.write_bias(expert, 0, biases);
  }
}

template <class LayerType>
LayerType TensorParallel<LayerType>::whole() const {
  Layer whole = Split::like(part_, options_);
  agree(communicator_, [&] { Split::copy_shared(part_, whole); });
  Split::for_banks(whole, part_, [&](auto& bank, const auto& part, detail::Axis axis) {
    for (Index expert = 0; expert < bank.num_experts(); ++expert) gather_expert(bank, axis, expert, part);
  });
  return whole;
}

template <class LayerType>
template <class Bank>
void TensorParallel<LayerType>::gather_expert(Bank& bank, detail::Axis axis, Index expert,
                                              const Bank& part) const {
  std::vector<detail::Block> blocks;
  std::vector<Index> counts, bias_counts;
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const detail::Block& block = blocks.emplace_back(bank, axis, communicator_.size(), rank);
    counts.push_back(block.size());
    bias_counts.push_back(block.has_bias ? block.rows.size() : 0);
  }
  const Matrix<Scalar> own = part.weight(expert);
  Vector<Scalar> all(bank.out_features() * bank.in_features());
  communicator_.all_gather_v<Scalar>(span_of(own), span_of(all), counts);
  Matrix<Scalar> weight(bank.out_features(), bank.in_features());
  const Scalar* values = all.data();
  for (const detail::Block& block : blocks) {
    weight.block(block.rows.begin, block.cols.begin, block.rows.size(), block.cols.size()) =
        Eigen::Map<const Matrix<Scalar>>(values, block.rows.size(), block.cols.size());
    values += block.size();
  }
  bank.set_weight(expert, weight);
  if (!bank.has_bias()) return;
  const Vector<Scalar> own_bias = part.bias(expert);
  Vector<Scalar> bias(bank.out_features());
  const Index own_count = bias_counts[static_cast<std::size_t>(communicator_.rank())];
  communicator_.all_gather_v<Scalar>(span_of(own_bias).first(static_cast<std::size_t>(own_count)),
                                     span_of(bias), bias_counts);
  bank.set_bias(expert, bias);
}

template <class LayerType>
auto TensorParallel<LayerType>::forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                        MatrixRef<Scalar> y, Context& context) const -> Scalar {
  const auto forward_part = [&](const Inputs<Scalar>& part_inputs) {
    check_output(x, y);
    part_.forward(x, part_inputs, own_output(x.rows(), context),
                  static_cast<typename Split::Context&>(context));
    return detail::checksum(x.rows(), Split::routing(context));
  };
  if (inputs.reduction) {
    // Whoever waits in it for a rank that throws does not come here to be told: that rank must not wait.
    detail::OtherRows<Scalar> other_rows(inputs.reduction, communicator_.rank());
    Inputs<Scalar> part_inputs = inputs;
    part_inputs.reduction = StatisticsReduction<Scalar>(other_rows);
    const std::uint64_t sum = forward_part(part_inputs);
    agree_on(communicator_, "routing", [&] {
      other_rows.check();
      return sum;
    });
  } else {
    agree_on(communicator_, "routing", [&] { return forward_part(inputs); });
  }
  collect_output(context.memory_, y);
  return Split::routing(context).loss;
}

template <class LayerType>
void TensorParallel<LayerType>::forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                               const Assignment<Scalar>& routing, MatrixRef<Scalar> y,
                                               Context& context) const {
  agree_on(communicator_, "routing", [&] {
    check_output(x, y);
    part_.forward_routed(x, inputs, routing, own_output(x.rows(), context), context);
    return detail::checksum(x.rows(), routing);
  });
  collect_output(context.memory_, y);
}

template <class LayerType>
void TensorParallel<LayerType>::check_output(const ConstMatrixRef<Scalar>& x,
                                             const MatrixRef<Scalar>& y) const {
  meo::detail::require_shape(y, x.rows(), Split::outputs(options_), "y (rows of x by outputs)");
  meo::detail::require_apart<Scalar>(y, "y", x, "x");
}

template <class LayerType>
void TensorParallel<LayerType>::collect_output(Memory& memory, MatrixRef<Scalar> y) const {
  if constexpr (Split::sums_outputs) {
    communicator_.all_reduce_sum(span_of(memory.own, y.size()));
    y = matrix(memory.own, y.rows(), y.cols());
  } else {
    gather(memory, y);
  }
}

template <class LayerType>
void TensorParallel<LayerType>::gather(Memory& memory, MatrixRef<Scalar> y) const {
  std::vector<Index> counts;
  for (int rank = 0; rank < communicator_.size(); ++rank) counts.push_back(y.rows() * range(rank).size());
  const std::span<Scalar> all = span_of(memory.all, y.size());
  communicator_.all_gather_v<Scalar>(span_of(memory.own, y.rows() * range().size()), all, counts);
  const Scalar* values = all.data();
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const Index cols = range(rank).size();
    y.middleCols(range(rank).begin, cols) = Eigen::Map<const Matrix<Scalar>>(values, y.rows(), cols);
    values += y.rows() * cols;
  }
}

template <class LayerType>
void TensorParallel<LayerType>::backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                         Context& context, const ConstMatrixRef<Scalar>& dy,
                                         TensorParallel& gradients, MatrixRef<Scalar> dx,
                                         const Scalar& d_loss) const {
  backward_by(x, context, dy, gradients, dx, [&](MatrixRef<Scalar> own_dx) {
    part_.backward(x, inputs, context, part_of(dy), gradients.part_, own_dx, own_loss(d_loss));
  });
}

template <class LayerType>
void TensorParallel<LayerType>::backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                         Context& context, const ConstMatrixRef<Scalar>& dy,
                                         TensorParallel& gradients, MatrixRef<Scalar> dx,
                                         const Scalar& d_loss, std::span<const Scalar> d_weights) const {
  backward_by(x, context, dy, gradients, dx, [&](MatrixRef<Scalar> own_dx) {
    part_.backward(x, inputs, context, part_of(dy), gradients.part_, own_dx, own_loss(d_loss), d_weights);
  });
}

template <class LayerType>
void TensorParallel<LayerType>::backward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                                const Assignment<Scalar>& routing, Context& context,
                                                const ConstMatrixRef<Scalar>& dy, TensorParallel& gradients,
                                                MatrixRef<Scalar> dx, std::span<Scalar> d_weights) const {
  backward_by(x, context, dy, gradients, dx, [&](MatrixRef<Scalar> own_dx) {
    part_.backward_routed(x, inputs, routing, context, part_of(dy), gradients.part_, own_dx, d_weights);
  });
}

template <class LayerType>
template <class BackwardPart>
void TensorParallel<LayerType>::backward_by(const ConstMatrixRef<Scalar>& x, Context& context,
                                            const ConstMatrixRef<Scalar>& dy, TensorParallel& gradients,
                                            MatrixRef<Scalar> dx, const BackwardPart& backward_part) const {
  auto& memory = context.memory_;
  memory.gradients.clear();
  try {
    agree(communicator_, [&] {
      meo::detail::require_shape(dy, x.rows(), Split::outputs(options_), "dy (rows of x by outputs)");
      meo::detail::require_shape(dx, x.rows(), x.cols(), "dx (the shape of x)");
      meo::detail::require_apart<Scalar>(dx, "dx", x, "x");
      meo::detail::require_apart<Scalar>(dx, "dx", dy, "dy");
      meo::detail::require(gradients.options_ == options_,
                           "gradients: expected those of a layer of the same options");
      set_aside(gradients, memory);
      backward_part(matrix(memory.own, x.rows(), x.cols()));
      drop_other_biases(gradients);
    });
  } catch (...) {
    restore(gradients, memory);
    throw;
  }
  sum_over_ranks(x.size(), context, gradients);
  dx = matrix(memory.own, x.rows(), x.cols());
}

template <class LayerType>
void TensorParallel<LayerType>::set_aside(TensorParallel& gradients, Memory& memory) {
  for (const auto& values : detail::shared_values(gradients.part_)) {
    memory.gradients.insert(memory.gradients.end(), values.begin(), values.end());
    std::fill(values.begin(), values.end(), Scalar(0));
  }
}

template <class LayerType>
void TensorParallel<LayerType>::restore(TensorParallel& gradients, const Memory& memory) {
  if (memory.gradients.empty()) return;  // nothing has been set aside
  auto before = memory.gradients.cbegin();
  for (const auto& values : detail::shared_values(gradients.part_)) {
    for (Scalar& value : values) value = *before++;
  }
}

template <class LayerType>
void TensorParallel<LayerType>::drop_other_biases(TensorParallel& gradients) const {
  Split::for_banks(part_, gradients.part_, [&](const auto&, auto& bank, detail::Axis axis) {
    if (axis == detail::Axis::outputs || communicator_.rank() == 0 || !bank.has_bias()) return;
    const Vector<Scalar> zeros = Vector<Scalar>::Zero(bank.out_features());
    for (Index expert = 0; expert < bank.num_experts(); ++expert) bank.set_bias(expert, zeros);
  });
}

template <class LayerType>
void TensorParallel<LayerType>::sum_over_ranks(Index dx_size, Context& context,
                                               TensorParallel& gradients) const {
  auto& memory = context.memory_;
  const auto shared = detail::shared_values(gradients.part_);
  auto summands = shared;
  summands.push_back(span_of(memory.own, dx_size));
  if (options_.routing.level == Level::task) {
    auto& embeddings = Split::embeddings_gradient(context);
    const auto shape = embeddings.get();
    summands.emplace_back(embeddings.resize(shape.rows(), shape.cols()).data(),
                          static_cast<std::size_t>(shape.size()));
  }
  // One reduction for all of them.
  memory.all.clear();
  for (const auto& values : summands) memory.all.insert(memory.all.end(), values.begin(), values.end());
  communicator_.all_reduce_sum(std::span<Scalar>(memory.all));
  auto sum = memory.all.cbegin();
  for (const auto& values : summands) {
    for (Scalar& value : values) value = *sum++;
  }
  auto before = memory.gradients.cbegin();
  for (const auto& values : shared) {
    for (Scalar& value : values) value += *before++;
  }
}

}  // namespace meo::mpi
