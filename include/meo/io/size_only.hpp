#pragma once

/// Layers and blocks of which only the sizes are there: what a file has to have for one, before there is one.

#include <compare>

#include <meo/experts/expert_bank.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace io::detail {

/// The scalar of a layer that has no parameters. Options are checked with it.
struct SizeOnly {
  double value;

  explicit SizeOnly(double of) : value(of) {}
  friend SizeOnly operator-(const SizeOnly& a, const SizeOnly& b) { return SizeOnly(a.value - b.value); }
  friend auto operator<=>(const SizeOnly&, const SizeOnly&) = default;

  struct Activation {
    SizeOnly operator()(const SizeOnly& x) const { return x; }
  };
};

}  // namespace io::detail

/// Takes no memory, whatever its sizes.
template <>
class ExpertBank<io::detail::SizeOnly> {
 public:
  using Storage = io::detail::SizeOnly;

  ExpertBank(Index num_experts, Index in_features, Index out_features, bool has_bias)
      : num_experts_(num_experts),
        in_features_(in_features),
        out_features_(out_features),
        has_bias_(has_bias) {}

  Index num_experts() const { return num_experts_; }
  Index in_features() const { return in_features_; }
  Index out_features() const { return out_features_; }
  bool has_bias() const { return has_bias_; }

 private:
  Index num_experts_, in_features_, out_features_;
  bool has_bias_;
};

namespace io::detail {

template <class Layer>
struct SizesOf;
template <class Scalar, int NumExperts, class Kind, class Storage>
struct SizesOf<MixtureLayer<Scalar, NumExperts, Kind, Storage>> {
  using Type = MixtureLayer<SizeOnly, NumExperts, Kind>;
};
template <class Layer, class Activation>
struct SizesOf<FeedForward<Layer, Activation>> {
  using Type = FeedForward<typename SizesOf<Layer>::Type, SizeOnly::Activation>;
};

}  // namespace io::detail
}  // namespace meo
