#pragma once

/// A random batch for dispatched_product, its result, and what the result must be to the bit.

#include <vector>

#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/random_experts.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace meo::test {

/// A batch of tokens with a selection each.
template <class S, class Storage = S>
struct DispatchedProblem {
  DispatchedProblem(Generator& rng, Index tokens, Index in_features, Index out_features, bool has_bias,
                    Index experts_selected, Index top_k)
      : experts(rng, experts_selected + 1, in_features, out_features, has_bias),
        selections(random_selections<S>(rng, tokens, experts_selected, top_k)),
        x(random_normal<S>(rng, tokens, in_features)) {
    // The last expert, which nobody selects, would show in every sum.
    const S loud = detail::is_quantized<Storage> ? S(1e30) : GuardedMatrix<S>::nan;
    experts.bank.set_weight(experts_selected, Matrix<S>::Constant(out_features, in_features, loud));
    detail::dispatch_tokens<S>(selections.pairs(), experts_selected + 1,
                               offsets_of(std::vector<Index>(std::size_t(tokens), 1)), dispatch);
  }

  RandomExperts<S, Storage> experts;
  Selections<S> selections;
  Matrix<S> x;
  detail::Dispatch<S> dispatch;

  Index out_features() const { return experts.bank.out_features(); }

  /// x W_eᵀ + b_e of one token.
  Matrix<S> output(Index token, Index expert) const {
    const auto e = std::size_t(expert);
    return chain_product<S>(x.row(token), experts.weights[e],
                            bias_rows(experts.biases[e], 1, out_features()));
  }

  /// Every token's experts' outputs, weighted and added by ascending expert.
  Matrix<S> expected() const {
    Matrix<S> y = Matrix<S>::Zero(x.rows(), out_features());
    for (Index t = 0; t < x.rows(); ++t) {
      for (const auto& [expert, weight] : selections.ascending(t)) {
        const Matrix<S> term = output(t, expert);
        for (Index c = 0; c < y.cols(); ++c) y(t, c) = multiply_add_one(weight, term(0, c), y(t, c));
      }
    }
    return y;
  }

  Matrix<S> computed() const {
    const Index threads = detail::max_threads();
    const auto bank = experts.bank.panels();
    GuardedMatrix<S> input(x), y(x.rows(), out_features()),
        scratch(1, threads * detail::dispatched_product_scratch_size(bank));
    detail::dispatched_product<S>(bank, dispatch, input.inputs(), y.rows(), {scratch.data(), threads});
    CHECK(y.guards_intact());
    CHECK(scratch.guards_intact());
    return y.values();
  }
};

}  // namespace meo::test
