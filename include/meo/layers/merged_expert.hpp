#pragma once

/// An expert that is merged once, Ŵ_r = Σ_i g_ri W_i and b̂_r = Σ_i g_ri b_i for each row r of an assignment,
/// and then used for as many tokens as wanted: a step costs what one of a dense layer does, where a mixture
/// reads K experts anew. For generating token by token from a prompt's decision (Zhong et al. 2024, arXiv
/// 2405.03133, merge once for a prompt).
///
/// Letters: R rows, T tokens, D in_features, F out_features, K pairs of a row.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/linear.hpp>
#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/merge_experts.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/layers/reject_forward.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/overlap.hpp>
#include <meo/parallel.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/offsets.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

inline void require_row(Index row, Index rows) {
  require(row >= 0 && row < rows, "row: expected 0 to ", rows - 1, ", got ", row);
}

}  // namespace detail

/// One dense layer for each row of an assignment, apart from the layer that it was merged from: what happens
/// to that later does not show.
///
///     meo::MergedExpert kept(layer, layer.route(prompt, {}, workspace));
///     kept.forward(x, {}, y, workspace);
///
/// To the bit it computes what a MeoLayer does that merges first (MergeOrder::merge_first), and to rounding
/// what any other MoeLayer or MeoLayer does, as one that combines the outputs of few tokens. Pairs of weight
/// 0 are left out, though, so that an expert that is not finite matters to those alone that chose it.
///
/// Whatever the layer stores its experts as, merged ones are stored as Scalar.
///
/// Storage: what merged weights are stored as, see ExpertBank, whatever the layer's are: rounded once more,
/// and read in half or a quarter of the time. In 8 bits an output of which a weight is not finite is NaN.
///
/// One that was moved from is empty: all but merging into it throws std::logic_error until it is assigned to.
template <class ScalarType, class StorageType = ScalarType>
class MergedExpert : private detail::RejectForward<ScalarType, Workspace<ScalarType>> {
 public:
  /// What it is made of.
  using Scalar = ScalarType;
  using Storage = StorageType;

  /// As merge does.
  template <int NumExperts, class Kind, class LayerStorage>
  MergedExpert(const MixtureLayer<Scalar, NumExperts, Kind, LayerStorage>& layer,
               const Assignment<Scalar>& assignment, std::optional<Index> row = std::nullopt) {
    merge(layer, assignment, row);
  }

  /// Merges the layer's experts for each row of the assignment, or for one of them, which becomes row 0, and
  /// keeps a copy of token attention where the layer has some. What rows decide for is up to the caller:
  /// sequences, segments or tasks. Throws std::invalid_argument for an assignment without rows or of another
  /// number of experts or a row that does not exist, and then changes nothing. Allocates only where there
  /// were never as many rows and pairs of such a layer.
  template <int NumExperts, class Kind, class LayerStorage>
  void merge(const MixtureLayer<Scalar, NumExperts, Kind, LayerStorage>& layer,
             const Assignment<Scalar>& assignment, std::optional<Index> row = std::nullopt) {
    detail::require_not_moved_from(layer.empty(), "layer");
    check(assignment, layer.experts().num_experts(), row);
    if (Kind::has_token_attention && layer.options().routing.level == Level::token)
      token_attention_ = layer.token_attention();
    else token_attention_.reset();
    keep_pairs(assignment, row.value_or(0), row ? 1 : assignment.rows);
    merge_experts(layer.experts());
  }

  /// Throws unless merge takes such an assignment.
  static void check(const Assignment<Scalar>& assignment, Index num_experts, std::optional<Index> row) {
    assignment.check(assignment.rows, num_experts);
    detail::require(assignment.rows >= 1, "routing: expected at least 1 row, got ", assignment.rows);
    if (row) detail::require_row(*row, assignment.rows);
  }

  /// Whether it was moved from.
  bool empty() const { return experts_.empty(); }
  Index rows() const { return assignment().rows; }
  Index in_features() const { return linear().in_features(); }
  Index out_features() const { return linear().out_features(); }

  /// What was merged: R rows, their pairs by ascending expert, without those of weight 0.
  const Assignment<Scalar>& assignment() const {
    require_not_empty();
    return assignment_;
  }

  /// The merged expert of a row, without token attention; zeros for a row without pairs. Throws
  /// std::invalid_argument for a row that does not exist.
  const Linear<Scalar, Storage>& linear(Index row = 0) const {
    require_not_empty();
    detail::require_row(row, rows());
    return experts_[static_cast<std::size_t>(row)];
  }

  using detail::RejectForward<Scalar, Workspace<Scalar>>::forward;

  /// x: T × D, all of them tokens of the one row. Returns T × F. Throws as the other forward does.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x) const { return forward(x, Inputs<Scalar>{}); }

  /// x: T × D, the tokens of all sequences one under another, of which sequence r is row r's.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Sequences& sequences) const {
    return forward(x, Inputs<Scalar>{.sequences = &sequences});
  }

  /// x: T × D, with the sequences of the inputs. Returns y, T × F.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

  /// x: T × D; y: T × F, overwritten, with zeros for tokens of a row without pairs. Of `inputs` only the
  /// sequences count, of which there must be R. Throws std::invalid_argument for shapes or sequences that do
  /// not fit, or a y that overlaps x, and then y is untouched. Allocates only where the workspace has to
  /// grow.
  void forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
               Workspace<Scalar>& workspace) const;

 private:
  void require_not_empty() const { detail::require_not_moved_from(empty(), "merged expert"); }

  /// Of the rows first … first + count − 1 of an assignment, which may be the one that is kept.
  void keep_pairs(const Assignment<Scalar>& assignment, Index first, Index count);

  /// For what keep_pairs has kept.
  template <class LayerStorage>
  void merge_experts(const ExpertBank<Scalar, LayerStorage>& experts);

  detail::MergeTerms<Scalar> terms(Index row) const { return detail::pairs_of(assignment_).row(row); }

  /// What the merged experts see: x + TokenAttention(x) where there is token attention, else x.
  MatrixView<Scalar> attend(const MatrixView<Scalar>& x, detail::LayerMemory<Scalar>& memory) const;

  Assignment<Scalar> assignment_;
  std::vector<Linear<Scalar, Storage>> experts_;  ///< of each row, and of as many as there were before
  std::optional<TokenAttention<Scalar>> token_attention_;
  AlignedVector<Scalar> scratch_;  ///< where weights are merged that are not stored as scalars
};

template <class ScalarType, class StorageType>
auto MergedExpert<ScalarType, StorageType>::forward(const ConstMatrixRef<Scalar>& x,
                                                    const Inputs<Scalar>& inputs) const -> Matrix<Scalar> {
  Workspace<Scalar> workspace;
  Matrix<Scalar> y(x.rows(), out_features());
  forward(x, inputs, y, workspace);
  return y;
}

template <class ScalarType, class StorageType>
void MergedExpert<ScalarType, StorageType>::forward(const ConstMatrixRef<Scalar>& x,
                                                    const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                                                    Workspace<Scalar>& workspace) const {
  auto& memory = memory_of(workspace);
  memory.last_forward.clear();
  require_not_empty();
  detail::require(x.cols() == in_features(), "x: expected in_features = ", in_features(), " columns, got ",
                  x.cols());
  const detail::Offsets sequences(inputs.sequences, x.rows());
  detail::require(sequences.num_sequences() == rows(), "sequences: expected ", rows(),
                  ", one for each merged row, got ", sequences.num_sequences());
  const std::span<const Index> offsets = sequences;
  detail::require(offsets.back() == x.rows(), "sequences: expected ", x.rows(),
                  " tokens in all, as x has rows, got ", offsets.back());
  detail::require_shape(y, x.rows(), out_features(), "y (rows of x by out_features)");
  detail::require_apart<Scalar>(y, "y", x, "x");

  const MatrixView<Scalar> attended = attend(x, memory);
  for (Index row = 0; row < rows(); ++row) {
    const Index begin = offsets[static_cast<std::size_t>(row)];
    const Index tokens = offsets[static_cast<std::size_t>(row) + 1] - begin;
    if (terms(row).count == 0) {
      y.middleRows(begin, tokens).setZero();
    } else {
      detail::dense_product<Scalar>(linear(row).bank().panels(), 0, detail::rows_of(attended).from(begin),
                                    tokens, detail::rows_of(y).from(begin));
    }
  }
}

template <class ScalarType, class StorageType>
void MergedExpert<ScalarType, StorageType>::keep_pairs(const Assignment<Scalar>& assignment, Index first,
                                                       Index count) {
  // Nothing is written before it has been read, also where that is what is written to.
  const auto most = static_cast<std::size_t>(assignment.begin(first + count) - assignment.begin(first));
  std::vector<Index>&begins = assignment_.begins, &experts = assignment_.experts;
  std::vector<Scalar>& weights = assignment_.weights;
  if (experts.size() < most) experts.resize(most);
  if (weights.size() < most) weights.resize(most);
  if (static_cast<Index>(begins.size()) < count + 1) begins.resize(static_cast<std::size_t>(count) + 1);
  std::size_t pairs = 0;
  auto from = static_cast<std::size_t>(assignment.begin(first));
  for (Index row = 0; row < count; ++row) {
    const auto end = static_cast<std::size_t>(assignment.begin(first + row + 1)), begin = pairs;
    begins[static_cast<std::size_t>(row)] = static_cast<Index>(begin);
    for (; from < end; ++from) {
      const Index expert = assignment.experts[from];
      const Scalar weight = assignment.weights[from];
      if (weight == Scalar(0)) continue;
      // Ascending, as merged products have them.
      std::size_t place = pairs++;
      for (; place > begin && experts[place - 1] > expert; --place) {
        experts[place] = experts[place - 1];
        weights[place] = weights[place - 1];
      }
      experts[place] = expert;
      weights[place] = weight;
    }
  }
  begins[static_cast<std::size_t>(count)] = static_cast<Index>(pairs);
  assignment_.rows = count;
  assignment_.num_experts = assignment.num_experts;
  begins.resize(static_cast<std::size_t>(count) + 1);
  experts.resize(pairs);
  weights.resize(pairs);
}

template <class ScalarType, class StorageType>
template <class LayerStorage>
void MergedExpert<ScalarType, StorageType>::merge_experts(const ExpertBank<Scalar, LayerStorage>& experts) {
  using Dense = Linear<Scalar, Storage>;
  experts_.reserve(static_cast<std::size_t>(assignment_.rows));
  for (Index row = 0; row < assignment_.rows; ++row) {
    const auto r = static_cast<std::size_t>(row);
    const auto make = [&] {
      return Dense(experts.in_features(), experts.out_features(), experts.has_bias());
    };
    if (r == experts_.size()) {
      experts_.push_back(make());
    } else if (const Dense& had = experts_[r]; had.in_features() != experts.in_features() ||
                                               had.out_features() != experts.out_features() ||
                                               had.has_bias() != experts.has_bias()) {
      experts_[r] = make();
    }
    const auto merged = experts_[r].bank().mutable_panels();
    const Index threads = detail::max_threads();
    const detail::Scratch<Scalar> scratch{
        detail::reserve(scratch_, threads * detail::merge_experts_scratch_size(merged)), threads};
    detail::merge_experts<Scalar>(experts.panels(), terms(row), merged, scratch);
  }
}

template <class ScalarType, class StorageType>
auto MergedExpert<ScalarType, StorageType>::attend(const MatrixView<Scalar>& x,
                                                   detail::LayerMemory<Scalar>& memory) const
    -> MatrixView<Scalar> {
  if (!token_attention_) return x;
  Scalar* const rows =
      detail::reserve(memory.attention_rows, x.rows() * token_attention_->reduced_features());
  Scalar* const attended = detail::reserve(memory.attended, x.rows() * x.cols());
  token_attention_->apply(x, rows, attended);
  return {attended, x.rows(), x.cols(), x.cols()};
}

#define MEO_INSTANCES(instance, Scalar) instance class MergedExpert<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo
