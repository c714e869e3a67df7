#pragma once

/// The vanilla mixture, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): each expert multiplies the rows dispatched
/// to it.
///
/// Rows are gathered through the dispatch's index inside the kernel and combined in ascending order of
/// experts, so the result is the same whatever else is in the batch. An expert that nobody selects is never
/// touched.

#include <algorithm>

#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Panels of one expert: what a dispatched product multiplies with at a time.
struct ExpertPanels {
  Index first;
  Index count;
  Index expert;
};

/// The products of one bank's experts with the tokens dispatched to them.
template <class Scalar>
class DispatchedProduct {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;

  DispatchedProduct(const Bank& bank, const Dispatch<Scalar>& dispatch) : bank_(bank), dispatch_(dispatch) {}

  Index rows(Index expert) const { return dispatch_.begin(expert + 1) - dispatch_.begin(expert); }

  /// y_t += g_t (x W_eᵀ + b_e) for the expert's tokens. x: the rows of all tokens if `gather`, else just the
  /// expert's.
  void combine(ExpertPanels at, const Scalar* x, Index x_stride, bool gather, Scalar* y, Index y_stride,
               PrefetchQueue& ahead) const {
    const Index first = dispatch_.begin(at.expert);
    const Index* const tokens = dispatch_.tokens.data() + first;
    const ProductRows<Scalar> rows_of_expert{x,
                                             x_stride,
                                             y + at.first * columns,
                                             y_stride,
                                             gather ? tokens : nullptr,
                                             tokens,
                                             dispatch_.weights.data() + first,
                                             dispatch_.is_first.data() + first};
    multiply_panels(rows_of_expert, rows(at.expert), panels(at), ahead);
  }

  /// out = x W_eᵀ + b_e for the expert's tokens, one after another in out.
  void gather(ExpertPanels at, const Scalar* x, Index x_stride, Scalar* out, PrefetchQueue& ahead) const {
    const ProductRows<Scalar> rows_of_expert{x, x_stride, out + at.first * columns, bank_.out_features,
                                             dispatch_.tokens.data() + dispatch_.begin(at.expert)};
    multiply_panels(rows_of_expert, rows(at.expert), panels(at), ahead);
  }

  /// Fetches `next`, if it has any panels, while `at` is multiplied with.
  PrefetchQueue look_ahead(ExpertPanels at, ExpertPanels next) const {
    PrefetchQueue ahead;
    for (Index p = next.first; p < next.first + next.count; ++p)
      ahead.add(bank_.panel(p, next.expert), bank_.panel_size() * static_cast<Index>(sizeof(Scalar)));
    ahead.spread(prefetch_steps(rows(at.expert), panels(at)));
    return ahead;
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  Panels<Scalar> panels(ExpertPanels at) const { return panels_of(bank_, at.expert, at.first, at.count); }

  const Bank& bank_;
  const Dispatch<Scalar>& dispatch_;
};

/// The whole mixture. x: tokens × in_features at x_stride; y: tokens × out_features at y_stride, not
/// overlapping x.
template <class Scalar>
void dispatched_product(const PanelBank<Scalar, const Scalar>& bank, const Dispatch<Scalar>& dispatch,
                        const Scalar* x, Index x_stride, Scalar* y, Index y_stride) {
  if (dispatch.tokens.empty()) return;
  const DispatchedProduct<Scalar> product(bank, dispatch);
  const Index group = panels_at_once<Scalar>(static_cast<Index>(dispatch.tokens.size()) / bank.num_experts);
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    // The first expert from `expert` on that has tokens, for these panels or the next.
    const auto selected = [&](Index first, Index expert) {
      while (expert < bank.num_experts && product.rows(expert) == 0) ++expert;
      return ExpertPanels{first, (std::min)(group, end - first), expert};
    };
    const auto next_of = [&](ExpertPanels at) {
      const ExpertPanels next = selected(at.first, at.expert + 1);
      return next.expert < bank.num_experts ? next : selected(at.first + at.count, 0);
    };
    for (ExpertPanels at = selected(begin, 0); at.first < end;) {
      const ExpertPanels next = next_of(at);
      PrefetchQueue ahead = product.look_ahead(at, next);
      product.combine(at, x, x_stride, true, y, y_stride, ahead);
      at = next;
    }
  });
}

/// All panels of one expert, a few at a time and each time with the next ones ahead, by product(panels,
/// ahead).
template <class Scalar, class Product>
void for_panels(const DispatchedProduct<Scalar>& dispatched, const PanelBank<Scalar, const Scalar>& bank,
                Index expert, const Product& product) {
  const Index group = panels_at_once<Scalar>(dispatched.rows(expert));
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    const auto panels_from = [&](Index first) {
      return ExpertPanels{first, (std::min)(group, end - first), expert};
    };
    for (Index p = begin; p < end; p += group) {
      const ExpertPanels at = panels_from(p);
      PrefetchQueue ahead = dispatched.look_ahead(at, panels_from(p + group));
      product(at, ahead);
    }
  });
}

/// out = x W_eᵀ + b_e for the tokens of one expert, gathered: as many contiguous rows as the expert has
/// tokens.
template <class Scalar>
void gathered_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* out) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert,
             [&](ExpertPanels at, PrefetchQueue& ahead) { dispatched.gather(at, x, x_stride, out, ahead); });
}

/// y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert, whose rows x holds one after another at x_stride.
template <class Scalar>
void combined_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* y,
                      Index y_stride) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert, [&](ExpertPanels at, PrefetchQueue& ahead) {
    dispatched.combine(at, x, x_stride, false, y, y_stride, ahead);
  });
}

}  // namespace meo::detail
