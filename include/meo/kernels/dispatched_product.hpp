#pragma once

/// The vanilla mixture, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): each expert multiplies the rows dispatched
/// to it.
///
/// Rows are gathered through the dispatch's index inside the kernel and combined in ascending order of
/// experts, so the result is the same whatever else is in the batch. An expert that nobody selects is never
/// touched.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/rows.hpp>
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

  /// The expert's rows of x, the rows of all tokens.
  Rows<const Scalar> gathered(Index expert, Rows<const Scalar> x) const {
    return {x.data, x.stride, dispatch_.tokens.data() + dispatch_.begin(expert)};
  }

  /// y_t += g_t (x W_eᵀ + b_e) for the expert's tokens. x: the expert's rows; y: the rows of all tokens.
  void combine(ExpertPanels at, Rows<const Scalar> x, Rows<Scalar> y, PrefetchQueue& ahead) const {
    const Index first = dispatch_.begin(at.expert);
    y.order = dispatch_.tokens.data() + first;
    y.weights = dispatch_.weights.data() + first;
    multiply_panels(
        ProductRows<Scalar>{x, y.from_column(at.first * columns), dispatch_.is_first.data() + first},
        rows(at.expert), panels(at), ahead);
  }

  /// out = x W_eᵀ + b_e. x: the expert's rows; out: as many.
  void multiply(ExpertPanels at, Rows<const Scalar> x, Rows<Scalar> out, PrefetchQueue& ahead) const {
    multiply_panels(ProductRows<Scalar>{x, out.from_column(at.first * columns)}, rows(at.expert), panels(at),
                    ahead);
  }

  /// Fetches `next`, if it has any panels, while `at` is multiplied with.
  PrefetchQueue look_ahead(ExpertPanels at, ExpertPanels next) const {
    PrefetchQueue ahead;
    for (Index p = next.first; p < next.first + next.count; ++p)
      ahead.add(bank_.panel(p, next.expert), bank_.panel_size() * static_cast<Index>(sizeof(Scalar)));
    ahead.spread(prefetch_intervals(rows(at.expert), panels(at)));
    return ahead;
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  Panels<Scalar> panels(ExpertPanels at) const { return panels_of(bank_, at.expert, at.first, at.count); }

  const Bank& bank_;
  const Dispatch<Scalar>& dispatch_;
};

/// The whole mixture. x: tokens × in_features; y: tokens × out_features, not overlapping x.
template <class Scalar>
void dispatched_product(const PanelBank<Scalar, const Scalar>& bank, const Dispatch<Scalar>& dispatch,
                        Rows<const Scalar> x, Rows<Scalar> y) {
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
      product.combine(at, product.gathered(at.expert, x), y, ahead);
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

/// out = x W_eᵀ + b_e for the tokens of one expert. x: the rows of all tokens; out: as many as the expert
/// has.
template <class Scalar>
void gathered_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, Rows<const Scalar> x, Rows<Scalar> out) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert, [&](ExpertPanels at, PrefetchQueue& ahead) {
    dispatched.multiply(at, dispatched.gathered(expert, x), out, ahead);
  });
}

/// y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert. x: as many rows as the expert has; y: the rows of
/// all tokens.
template <class Scalar>
void combined_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, Rows<const Scalar> x, Rows<Scalar> y) {
  const DispatchedProduct<Scalar> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert,
             [&](ExpertPanels at, PrefetchQueue& ahead) { dispatched.combine(at, x, y, ahead); });
}

#define MEO_INSTANCES(instance, Scalar)                                                                  \
  instance void dispatched_product(const PanelBank<Scalar, const Scalar>&, const Dispatch<Scalar>&,      \
                                   Rows<const Scalar>, Rows<Scalar>);                                    \
  instance void gathered_product(const PanelBank<Scalar, const Scalar>&, Index, const Dispatch<Scalar>&, \
                                 Rows<const Scalar>, Rows<Scalar>);                                      \
  instance void combined_product(const PanelBank<Scalar, const Scalar>&, Index, const Dispatch<Scalar>&, \
                                 Rows<const Scalar>, Rows<Scalar>);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail
