#pragma once

/// The hidden activations of a feed-forward block, hidden = f(pre_activation), f(pre_activation) ·
/// gate_hidden or f(pre_activation, gate_hidden).

#include <meo/experts/activate.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Rows of `features` values each. pre_activation may be hidden itself; gate_hidden is null unless the block
/// is gated.
template <class Scalar>
struct Hidden {
  Index features;
  Scalar* pre_activation;
  Scalar* hidden;
  Scalar* gate_hidden;
};

template <class Activation, class Scalar>
void activate_rows(const Activation& f, const Hidden<Scalar>& h, Index rows) {
  parallel_ranges(rows, max_threads(), [&](Index begin, Index end, Index) {
    const Index at = begin * h.features;
    activate(f, h.pre_activation + at, h.gate_hidden != nullptr ? h.gate_hidden + at : nullptr,
             end * h.features - at, h.hidden + at);
  });
}

/// In place from the gradient of hidden to that of pre_activation; that of gate_hidden, where there is one,
/// is written to gate_gradient.
template <class Activation, class Scalar>
void activate_rows_backward(const Activation& f, const Hidden<Scalar>& h, Index rows, Scalar* gradient,
                            Scalar* gate_gradient) {
  parallel_ranges(rows, max_threads(), [&](Index begin, Index end, Index) {
    const Index at = begin * h.features;
    const bool gated = h.gate_hidden != nullptr;
    activate_backward(f, h.pre_activation + at, gated ? h.gate_hidden + at : nullptr, end * h.features - at,
                      gradient + at, gated ? gate_gradient + at : nullptr);
  });
}

}  // namespace meo::detail
