#pragma once

/// What a rank has of a tensor that lies in a file as a whole.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/errors.hpp>
#include <meo/io/size_only.hpp>
#include <meo/io/tensor_parts.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// Who has a tensor, or which part of it.
enum class Held {
  by_all,   ///< each rank has the whole
  in_part,  ///< this rank has its part, and no other has any of that
  by_first  ///< the first rank has the whole, the others nothing
};

/// A tensor of which a rank has a part: elements of each dimension in a row, as rows or columns of a matrix.
template <class Scalar>
struct TensorSlice {
  io::TensorPart<Scalar> part;  ///< what this rank has, or would have
  std::vector<Index> shape;     ///< of the whole tensor
  std::vector<Index> begin;     ///< where the part begins in each of its dimensions
  Held held = Held::by_all;     ///< who has what

  /// Calls visit(first, own, count) for each `count` elements that lie side by side in the whole tensor, from
  /// number `first` on, and in the part, from number `own` on; in ascending order.
  template <class Visit>
  void for_runs(const Visit& visit) const {
    const std::vector<Index>& sizes = part.shape();
    // What lies side by side is of the last dimensions that the part has all of, and of the one before.
    std::size_t outer = shape.size();
    Index run = 1;
    while (outer > 0) {
      --outer;
      run *= sizes[outer];
      if (sizes[outer] != shape[outer]) break;
    }
    for (Index own = 0; own < part.size(); own += run) visit(place_in_whole(own), own, run);
  }

  /// The number in the whole of an element of the part.
  Index place_in_whole(Index own) const { return moved(own, part.shape(), shape, 1); }
  /// The reverse.
  Index place_in_part(Index place) const { return moved(place, shape, part.shape(), -1); }

 private:
  Index moved(Index place, const std::vector<Index>& from, const std::vector<Index>& to, Index sign) const {
    Index result = 0, stride = 1;
    for (std::size_t d = from.size(); d-- > 0;) {
      result += (place % from[d] + sign * begin[d]) * stride;
      place /= from[d];
      stride *= to[d];
    }
    return result;
  }
};

namespace detail {

/// Collects the shapes of all tensors. For name_tensors.
struct CollectShapes {
  std::vector<std::vector<Index>>& shapes;

  template <class Bank>
  void operator()(const std::string&, std::vector<Index> shape, Index, Bank&,
                  const io::detail::BankRows&) const {
    shapes.push_back(std::move(shape));
  }
};

/// What a tensor of an ExpertParallel is: its name and shape, and of which expert, or −1 of the router.
struct SpreadTensor {
  std::string name;
  std::vector<Index> shape;
  Index cols;
  Index expert;
};

/// Collects those of the parts that a visit of a layer names. For TensorNamer.
struct CollectSpread {
  std::vector<SpreadTensor>& tensors;
  bool are_experts;

  template <class Bank>
  void operator()(std::string name, std::vector<Index> shape, Index cols, Bank&,
                  const io::detail::BankRows& rows) const {
    tensors.push_back({std::move(name), std::move(shape), cols, are_experts ? rows.first_expert : -1});
  }
};

/// The tensors of a whole layer of so many shared experts, in the order of files.
template <class Sizes>
std::vector<SpreadTensor> spread_tensors(const Sizes& whole, std::string_view prefix, Index shared) {
  std::vector<SpreadTensor> tensors;
  whole.visit([&](std::string_view name, auto&& part) {
    const CollectSpread take{tensors, is_expert_bank<std::remove_cvref_t<decltype(part)>>};
    io::detail::TensorNamer<typename Sizes::Scalar, CollectSpread>(prefix, false, shared, take)(name, part);
  });
  return tensors;
}

/// The same numbers under another name.
template <class Scalar>
io::TensorPart<Scalar> renamed(const SpreadTensor& as, const io::TensorPart<Scalar>& part, bool is_const) {
  typename io::TensorPart<Scalar>::Write write;
  if (!is_const) {
    write = [part](Index row, Index col, std::span<const Scalar> values) {
      part.write(row * part.cols() + col, values);
    };
  }
  return {
      as.name, as.shape, as.cols,
      [part](Index row, Index col, std::span<Scalar> values) { part.read(row * part.cols() + col, values); },
      std::move(write)};
}

/// Of an expert that another rank owns.
template <class Scalar>
io::TensorPart<Scalar> nothing_of(const SpreadTensor& tensor) {
  std::vector<Index> shape = tensor.shape;
  shape[0] = 0;
  return {tensor.name, std::move(shape), tensor.cols, {}, {}};
}

}  // namespace detail

/// A TensorParallel, TensorParallelProjections or an ExpertParallel.
template <class T>
concept SplitOverRanks = requires(const T& layer) {
  typename T::Layer;
  layer.communicator();
};

/// All tensors of a TensorParallel or of TensorParallelProjections, under the names that io/checkpoint.hpp
/// has, which begin with `prefix`. They refer to it.
template <class SplitLayer>
requires requires(const SplitLayer& layer) { layer.part(); }
std::vector<TensorSlice<typename SplitLayer::Scalar>> tensor_slices(SplitLayer& layer,
                                                                    std::string_view prefix) {
  using Layer = typename SplitLayer::Layer;
  using Scalar = typename SplitLayer::Scalar;
  // Where the whole and the part have other sizes, there the tensor is split.
  const typename io::detail::SizesOf<Layer>::Type sizes(layer.options());
  std::vector<std::vector<Index>> shapes;
  io::detail::name_tensors(sizes, prefix, detail::CollectShapes{shapes});
  std::vector<TensorSlice<Scalar>> slices;
  for (io::TensorPart<Scalar>& part : io::tensor_parts(layer.part(), prefix)) {
    std::vector<Index>& shape = shapes[slices.size()];
    std::vector<Index> begin(shape.size(), 0);
    const auto axis = static_cast<std::size_t>(
        std::mismatch(shape.begin(), shape.end(), part.shape().begin()).first - shape.begin());
    Held held = Held::by_all;
    if (axis < shape.size()) {
      begin[axis] = layer.range().begin;
      held = Held::in_part;
    } else if (part.name().starts_with(std::string(prefix) + "down.")) {
      held = Held::by_first;  // biases of what is summed over ranks
    }
    slices.push_back({std::move(part), std::move(shape), std::move(begin), held});
  }
  return slices;
}
template <class SplitBlock>
requires requires(const SplitBlock& block) {
  block.visit_projections([](std::string_view, const auto&) {});
}
std::vector<TensorSlice<typename SplitBlock::Scalar>> tensor_slices(SplitBlock& block,
                                                                    std::string_view prefix) {
  std::vector<TensorSlice<typename SplitBlock::Scalar>> slices;
  block.visit_projections([&](std::string_view name, auto& projection) {
    for (auto& slice : tensor_slices(projection, std::string(prefix).append(name)))
      slices.push_back(std::move(slice));
  });
  return slices;
}
/// Of an ExpertParallel: each rank has the router and its own experts.
template <class SpreadLayer>
requires requires(const SpreadLayer& layer) { layer.own(); }
std::vector<TensorSlice<typename SpreadLayer::Scalar>> tensor_slices(SpreadLayer& layer,
                                                                     std::string_view prefix) {
  using Layer = typename SpreadLayer::Layer;
  using Scalar = typename SpreadLayer::Scalar;
  const typename io::detail::SizesOf<Layer>::Type sizes(layer.options());
  std::vector<io::TensorPart<Scalar>> experts, of_router;
  if (layer.own().size() > 0) experts = io::tensor_parts(layer.experts(), "");
  const io::detail::CollectParts<Scalar> take(of_router);
  const io::detail::TensorNamer<Scalar, io::detail::CollectParts<Scalar>> name_router("", false, 0, take);
  layer.router().gate().visit(name_router);
  layer.router().visit_shared_expert_gate(name_router);
  layer.router().visit_task_projection(name_router);

  // A layer has its tensors in the order of its visit, and so has this rank's layer of fewer experts; those
  // of the router, which stand between them, are in the same order as well.
  std::vector<TensorSlice<Scalar>> slices;
  auto next_expert = experts.cbegin();
  auto next_of_router = of_router.cbegin();
  constexpr bool is_const = std::is_const_v<SpreadLayer>;
  for (detail::SpreadTensor& tensor :
       detail::spread_tensors(sizes, prefix, layer.options().shared_experts.count)) {
    std::vector<Index> begin(tensor.shape.size(), 0);
    const bool is_own = layer.own().begin <= tensor.expert && tensor.expert < layer.own().end;
    Held held = Held::in_part;
    io::TensorPart<Scalar> part = detail::nothing_of<Scalar>(tensor);
    if (tensor.expert < 0) {
      held = Held::by_all;
      part = detail::renamed(tensor, *next_of_router++, is_const);
    } else if (is_own) {
      part = detail::renamed(tensor, *next_expert++, is_const);
    }
    slices.push_back({std::move(part), std::move(tensor.shape), std::move(begin), held});
  }
  return slices;
}

}  // namespace meo::mpi
