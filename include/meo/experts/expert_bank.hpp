#pragma once

/// The weights and biases of N experts of one shape, packed for the kernels; the only owner of expert memory.
///
/// Weights go in and come out in PyTorch's form, out_features × in_features; how they are packed depends on
/// the instruction set and is nobody else's business (kernels/panel.hpp).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/finite.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Scalar is what is computed with, Storage what weights are stored as: Scalar itself, another type that it
/// is made from, as Eigen::bfloat16, Eigen::half or float, or std::int8_t. A weight of 8 bits is the nearest
/// multiple q · s, |q| ≤ 127, of a scale s that each output of an expert has, the smallest of 17 bits with
/// which none is out of range; so it is off by s / 2 at most. Biases are stored as Scalar. Products with
/// stored weights are, to the bit, those with weights of Scalar that have the values that can be read.
///
/// New experts are zero. A bank that was moved from is empty: all that reads or writes experts throws
/// std::logic_error until it is assigned to.
template <class ScalarType, class StorageType = ScalarType>
class ExpertBank {
  static_assert(!std::is_integral_v<StorageType> || detail::is_quantized<StorageType>,
                "meo: Storage must hold fractions as Scalar does, or be std::int8_t; another integer would "
                "cut weights off");

 public:
  /// What it is made of.
  using Scalar = ScalarType;
  using Storage = StorageType;

  /// Throws std::invalid_argument unless all sizes are positive and their product fits an Index.
  ExpertBank(Index num_experts, Index in_features, Index out_features, bool has_bias);

  /// What it was made with.
  Index num_experts() const { return shape_.num_experts; }
  Index in_features() const { return shape_.in_features; }
  Index out_features() const { return shape_.out_features; }
  bool has_bias() const { return shape_.has_bias; }
  /// Whether the bank was moved from.
  bool empty() const { return data_.empty(); }

  /// out_features × in_features. Throws std::invalid_argument for an expert that does not exist.
  Matrix<Scalar> weight(Index expert) const;

  /// weight: out_features × in_features. Throws std::invalid_argument for another shape or expert, or for a
  /// number that is not finite and was to be stored in 8 bits, and then changes nothing.
  void set_weight(Index expert, const ConstMatrixRef<Scalar>& weight);

  /// Pieces of an expert: W_{out, in} for values.size() inputs from `first` on, or so many biases. What is to
  /// be stored in 8 bits is written in whole rows. These check nothing, but that write_row throws
  /// std::invalid_argument for a number that is not finite and was to be stored in 8 bits.
  void read_row(Index expert, Index out, Index first, std::span<Scalar> values) const;
  void write_row(Index expert, Index out, Index first, std::span<const Scalar> values);
  void read_bias(Index expert, Index first, std::span<Scalar> values) const;
  void write_bias(Index expert, Index first, std::span<const Scalar> values);

  /// out_features values. Throws std::invalid_argument without biases or for an expert that does not exist.
  Vector<Scalar> bias(Index expert) const;

  /// bias: out_features values. Throws std::invalid_argument without biases, for another size or expert.
  void set_bias(Index expert, const ConstVectorRef<Scalar>& bias);

  /// The packed form, for the kernels. Valid until the bank is moved from, assigned to or destroyed.
  detail::PanelBank<Scalar, const Storage> panels() const {
    require_not_empty();
    return {data_.data(), num_experts(), in_features(), out_features(), has_bias(), heads_.data()};
  }
  /// The same to write to.
  detail::PanelBank<Scalar, Storage> mutable_panels() {
    require_not_empty();
    return {data_.data(), num_experts(), in_features(), out_features(), has_bias(), heads_.data()};
  }

  /// Everything as it is packed, for what works on all parameters alike. Values that are no parameter of any
  /// expert are among them; they are zero and must stay so. For experts that are stored as what is computed
  /// with.
  std::span<Scalar> values() requires(detail::stores_scalars<Scalar, Storage>) {
    require_not_empty();
    return data_;
  }
  std::span<const Scalar> values() const requires(detail::stores_scalars<Scalar, Storage>) {
    require_not_empty();
    return data_;
  }

  /// Bytes that weights, biases and scales take.
  std::size_t bytes() const { return data_.size() * sizeof(Storage) + heads_.size() * sizeof(Scalar); }

 private:
  /// Throws unless the weights of an output can be stored.
  static void require_storable([[maybe_unused]] Index out, [[maybe_unused]] std::span<const Scalar> weights) {
    if constexpr (detail::is_quantized<Storage>) {
      for (const Scalar& weight : weights) {
        detail::require(detail::is_finite(weight),
                        "weight: expected finite numbers, to be stored in 8 bits, got ", weight,
                        " for output ", out);
      }
    }
  }

  void require_not_empty() const { detail::require_not_moved_from(empty(), "experts"); }

  void require_bias() const {
    detail::require(has_bias(), "bias: expected experts with biases, got bias = false");
  }

  detail::PanelBank<Scalar, Storage>
      shape_;  // sizes only: data stays null, so that copies cannot share memory
  AlignedVector<Storage> data_;
  AlignedVector<Scalar> heads_;  ///< biases and scales, where they stand aside
};

template <class Scalar, class Storage>
ExpertBank<Scalar, Storage>::ExpertBank(Index num_experts, Index in_features, Index out_features,
                                        bool has_bias)
    : shape_{nullptr, num_experts, in_features, out_features, has_bias} {
  detail::require(num_experts > 0, "num_experts: expected at least 1, got ", num_experts);
  detail::require(in_features > 0, "in_features: expected at least 1, got ", in_features);
  detail::require(out_features > 0, "out_features: expected at least 1, got ", out_features);
  constexpr Index limit = (std::numeric_limits<Index>::max)() / static_cast<Index>(sizeof(Storage)) / 4;
  detail::require(
      in_features < limit && out_features < limit - detail::Tile<Scalar>::columns &&
          shape_.num_panels() <= limit / detail::Tile<Scalar>::columns / num_experts / shape_.depth(),
      "experts: expected a size that fits memory, got ", num_experts, " of ", out_features, " x ",
      in_features);
  data_ = AlignedVector<Storage>(static_cast<std::size_t>(shape_.size()), Storage(0));
  heads_ = AlignedVector<Scalar>(static_cast<std::size_t>(shape_.heads_size()), Scalar(0));
}

template <class Scalar, class Storage>
Matrix<Scalar> ExpertBank<Scalar, Storage>::weight(Index expert) const {
  detail::require_expert(expert, num_experts());
  const auto panels = this->panels();
  Matrix<Scalar> weight(out_features(), in_features());
  for (Index out = 0; out < out_features(); ++out) {
    for (Index in = 0; in < in_features(); ++in) {
      weight(out, in) = panels.value(expert, out, in);
    }
  }
  return weight;
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::set_weight(Index expert, const ConstMatrixRef<Scalar>& weight) {
  detail::require_expert(expert, num_experts());
  detail::require_shape(weight, out_features(), in_features(), "weight (out_features x in_features)");
  const auto row = [&](Index out) {
    return std::span<const Scalar>(weight.data() + out * weight.outerStride(),
                                   static_cast<std::size_t>(in_features()));
  };
  for (Index out = 0; out < out_features(); ++out) require_storable(out, row(out));
  for (Index out = 0; out < out_features(); ++out) write_row(expert, out, 0, row(out));
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::read_row(Index expert, Index out, Index first,
                                           std::span<Scalar> values) const {
  const auto panels = this->panels();
  for (Scalar& value : values) value = panels.value(expert, out, first++);
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::write_row(Index expert, Index out, Index first,
                                            std::span<const Scalar> values) {
  const auto panels = mutable_panels();
  if constexpr (detail::is_quantized<Storage>) {
    using std::abs;
    require_storable(out, values);
    Scalar largest(0);
    for (const Scalar& value : values) largest = (std::max)(largest, Scalar(abs(value)));
    const Scalar scale = detail::quantum_scale(largest);
    panels.scale(expert, out) = scale;
    for (const Scalar& value : values) panels.weight(expert, out, first++) = detail::quantized(value, scale);
  } else {
    for (const Scalar& value : values) panels.weight(expert, out, first++) = static_cast<Storage>(value);
  }
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::read_bias(Index expert, Index first, std::span<Scalar> values) const {
  const auto panels = this->panels();
  for (Scalar& value : values) value = panels.bias(expert, first++);
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::write_bias(Index expert, Index first, std::span<const Scalar> values) {
  const auto panels = mutable_panels();
  for (const Scalar& value : values) panels.bias(expert, first++) = value;
}

template <class Scalar, class Storage>
Vector<Scalar> ExpertBank<Scalar, Storage>::bias(Index expert) const {
  require_bias();
  detail::require_expert(expert, num_experts());
  const auto panels = this->panels();
  Vector<Scalar> bias(out_features());
  for (Index out = 0; out < out_features(); ++out) bias(out) = panels.bias(expert, out);
  return bias;
}

template <class Scalar, class Storage>
void ExpertBank<Scalar, Storage>::set_bias(Index expert, const ConstVectorRef<Scalar>& bias) {
  require_bias();
  detail::require_expert(expert, num_experts());
  detail::require(bias.size() == out_features(), "bias: expected ", out_features(), " values, got ",
                  bias.size());
  write_bias(expert, 0, {bias.data(), static_cast<std::size_t>(out_features())});
}

namespace detail {

/// Between banks of one shape, whatever they store; see ExpertBank::set_weight.
template <class Scalar, class From, class To>
void copy_experts(const ExpertBank<Scalar, From>& from, ExpertBank<Scalar, To>& to) {
  std::vector<Scalar> row(static_cast<std::size_t>(from.in_features()));
  std::vector<Scalar> biases(static_cast<std::size_t>(from.has_bias() ? from.out_features() : 0));
  for (Index expert = 0; expert < from.num_experts(); ++expert) {
    for (Index out = 0; out < from.out_features(); ++out) {
      from.read_row(expert, out, 0, row);
      to.write_row(expert, out, 0, row);
    }
    from.read_bias(expert, 0, biases);
    to.write_bias(expert, 0, biases);
  }
}

}  // namespace detail

#define MEO_INSTANCES(instance, Scalar) instance class ExpertBank<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo
