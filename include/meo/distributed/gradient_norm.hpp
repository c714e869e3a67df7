#pragma once

/// The norm of all gradients together, and its clipping, where ranks have parts of the gradients.

#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/errors.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// Ranges that each rank has others of, and those that all have alike.
template <class Scalar>
struct SplitParameters {
  Parameters<Scalar> parts;   ///< experts
  Parameters<Scalar> shared;  ///< all else
};

/// Of a TensorParallel or of TensorParallelProjections; names begin with `prefix`. Those of further layers
/// may be appended.
template <class SplitLayer>
SplitParameters<typename SplitLayer::Scalar> split_parameters(SplitLayer& layer,
                                                              const std::string& prefix = "") {
  SplitParameters<typename SplitLayer::Scalar> all;
  layer.visit([&](std::string_view name, auto&& part) {
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (meo::detail::is_buffer<Part>) return;
    else
      (detail::is_expert_bank<Part> ? all.parts : all.shared)
          .push_back({prefix + std::string(name), part.values()});
  });
  return all;
}

/// meo::gradient_norm of the whole, the same bits on all ranks, whose parts are summed in their order.
/// Collective.
template <class Scalar>
Scalar gradient_norm(const Communicator& communicator, const SplitParameters<Scalar>& gradients) {
  using std::sqrt;
  using Sum = meo::detail::SumOfSquares<Scalar>;
  Sum squares = meo::detail::sum_of_squares(gradients.parts);
  communicator.all_reduce_sum(std::span<Sum>(&squares, 1));
  squares += meo::detail::sum_of_squares(gradients.shared);
  return static_cast<Scalar>(Sum(sqrt(squares)));
}

/// meo::clip_gradient_norm of the whole. Collective.
template <class Scalar>
Scalar clip_gradient_norm(const Communicator& communicator, const SplitParameters<Scalar>& gradients,
                          const Scalar& max_norm) {
  agree(communicator, [&] {
    meo::detail::require(max_norm > Scalar(0), "max_norm: expected a positive number, got ", max_norm);
  });
  const Scalar norm = gradient_norm(communicator, gradients);
  meo::detail::scale_to_norm(gradients.parts, norm, max_norm);
  meo::detail::scale_to_norm(gradients.shared, norm, max_norm);
  return norm;
}

}  // namespace meo::mpi
