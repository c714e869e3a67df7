#pragma once

/// The vanilla mixture, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): each expert multiplies the rows dispatched
/// to it.
///
/// Rows are gathered through the dispatch's index inside the kernel and combined in ascending order of
/// experts, so the result is the same whatever else is in the batch. An expert that nobody selects is never
/// touched.

#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/multiply.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// A panel of one expert: what a dispatched product multiplies with at a time.
struct ExpertPanel {
  Index panel;
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
  void combine(ExpertPanel at, const Scalar* x, Index x_stride, bool gather, Scalar* y, Index y_stride,
               PrefetchQueue& ahead) const {
    const Index first = dispatch_.begin(at.expert);
    const Index* const tokens = dispatch_.tokens.data() + first;
    multiply(CombineRows<Scalar>{x, x_stride, y + at.panel * columns, y_stride, starts(at),
                                 gather ? tokens : nullptr, tokens, dispatch_.weights.data() + first,
                                 dispatch_.is_first.data() + first},
             at, ahead);
  }

  /// out = x W_eᵀ + b_e for the expert's tokens, one after another in out.
  void gather(ExpertPanel at, const Scalar* x, Index x_stride, Scalar* out, PrefetchQueue& ahead) const {
    multiply(StoreRows<Scalar>{x, x_stride, out + at.panel * columns, bank_.out_features, starts(at),
                               dispatch_.tokens.data() + dispatch_.begin(at.expert)},
             at, ahead);
  }

  /// Fetches `next` while `at` is multiplied with.
  PrefetchQueue look_ahead(ExpertPanel at, ExpertPanel next) const {
    PrefetchQueue ahead;
    ahead.add(bank_.panel(next.panel, next.expert), bank_.panel_size() * static_cast<Index>(sizeof(Scalar)));
    ahead.spread(prefetch_steps<Scalar>(rows(at.expert), bank_.in_features));
    return ahead;
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  const Scalar* starts(ExpertPanel at) const {
    return bank_.has_bias ? bank_.panel(at.panel, at.expert) : zero_row<Scalar>.data();
  }

  template <class Rows>
  void multiply(const Rows& rows_of_expert, ExpertPanel at, PrefetchQueue& ahead) const {
    const Scalar* const panel = bank_.panel(at.panel, at.expert) + (bank_.has_bias ? columns : 0);
    multiply_panel(rows_of_expert, rows(at.expert), panel, bank_.in_features, bank_.valid_columns(at.panel),
                   ahead);
  }

  const Bank& bank_;
  const Dispatch<Scalar>& dispatch_;
};

/// The whole mixture. x: tokens × in_features at x_stride; y: tokens × out_features at y_stride, not
/// overlapping x.
template <class Scalar>
void dispatched_product(const PanelBank<Scalar, const Scalar>& bank, const Dispatch<Scalar>& dispatch,
                        const Scalar* x, Index x_stride, Scalar* y, Index y_stride) {
  const DispatchedProduct<Scalar> product(bank, dispatch);
  // The first expert from `from` on that has tokens, in this panel or the next.
  const auto selected = [&](ExpertPanel from) {
    while (from.expert < bank.num_experts && product.rows(from.expert) == 0) ++from.expert;
    return from;
  };
  const auto next_of = [&](ExpertPanel at) {
    const ExpertPanel next = selected({at.panel, at.expert + 1});
    return next.expert < bank.num_experts ? next : selected({at.panel + 1, 0});
  };
  if (dispatch.tokens.empty()) return;
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (ExpertPanel at = selected({begin, 0}); at.panel < end;) {
      const ExpertPanel next = next_of(at);
      PrefetchQueue ahead = next.panel < end ? product.look_ahead(at, next) : PrefetchQueue{};
      product.combine(at, x, x_stride, true, y, y_stride, ahead);
      at = next;
    }
  });
}

/// Every panel of one expert, each with the next one ahead, by product(panel, ahead).
template <class Scalar, class Product>
void for_each_panel(const DispatchedProduct<Scalar>& dispatched, const PanelBank<Scalar, const Scalar>& bank,
                    Index expert, const Product& product) {
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p) {
      PrefetchQueue ahead =
          p + 1 < end ? dispatched.look_ahead({p, expert}, {p + 1, expert}) : PrefetchQueue{};
      product(ExpertPanel{p, expert}, ahead);
    }
  });
}

/// out = x W_eᵀ + b_e for the tokens of one expert, gathered: as many contiguous rows as the expert has
/// tokens.
template <class Scalar>
void gathered_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* out) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_each_panel(dispatched, bank, expert, [&](ExpertPanel at, PrefetchQueue& ahead) {
    dispatched.gather(at, x, x_stride, out, ahead);
  });
}

/// y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert, whose rows x holds one after another at x_stride.
template <class Scalar>
void combined_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* y,
                      Index y_stride) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_each_panel(dispatched, bank, expert, [&](ExpertPanel at, PrefetchQueue& ahead) {
    dispatched.combine(at, x, x_stride, false, y, y_stride, ahead);
  });
}

}  // namespace meo::detail
