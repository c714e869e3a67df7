#pragma once

/// The vanilla mixture, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): each expert multiplies the rows dispatched
/// to it.
///
/// Rows are gathered through the dispatch's index inside the kernel and combined in ascending order of
/// experts, so the result is the same whatever else is in the batch. An expert that nobody selects is never
/// touched.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Panels of one expert: what a dispatched product multiplies with at a time.
struct ExpertPanels {
  Index first;
  Index count;
  Index expert;
};

/// The products of one bank's experts with the tokens dispatched to them. Weights that are not stored as
/// scalars are converted by every tile of rows that multiplies with them, or once for all rows of an expert
/// that has more than a tile of them, a panel at a time into scratch.
template <class Scalar, class Storage>
class DispatchedProduct {
 public:
  using Bank = PanelBank<Scalar, const Storage>;

  DispatchedProduct(const Bank& bank, const Dispatch<Scalar>& dispatch) : bank_(bank), dispatch_(dispatch) {}

  /// Scalars of scratch that a thread needs.
  static Index scratch_size(const PanelBank<Scalar, const Storage>& bank) {
    return has_scratch(bank) ? bank.in_features * columns : 0;
  }

  Index rows(Index expert) const { return dispatch_.begin(expert + 1) - dispatch_.begin(expert); }

  /// The expert's rows of x, the rows of all tokens.
  Rows<const Scalar> gathered(Index expert, Rows<const Scalar> x) const {
    return {x.data, x.stride, dispatch_.tokens.data() + dispatch_.begin(expert)};
  }

  /// y_t += g_t (x W_eᵀ + b_e) for the expert's tokens. x: the expert's rows; y: the rows of all tokens.
  void combine(ExpertPanels at, Rows<const Scalar> x, Rows<Scalar> y, PrefetchQueue& ahead,
               Scalar* scratch) const {
    const Index first = dispatch_.begin(at.expert);
    y.order = dispatch_.tokens.data() + first;
    y.weights = dispatch_.weights.data() + first;
    multiply(at, ProductRows<Scalar>{x, y, dispatch_.is_first.data() + first}, ahead, scratch);
  }

  /// out = x W_eᵀ + b_e. x: the expert's rows; out: as many.
  void multiply(ExpertPanels at, Rows<const Scalar> x, Rows<Scalar> out, PrefetchQueue& ahead,
                Scalar* scratch) const {
    multiply(at, ProductRows<Scalar>{x, out}, ahead, scratch);
  }

  /// Fetches `next`, if it has any panels, while `at` is multiplied with.
  PrefetchQueue look_ahead(ExpertPanels at, ExpertPanels next) const {
    PrefetchQueue ahead;
    for (Index p = next.first; p < next.first + next.count; ++p)
      ahead.add(bank_.panel(p, next.expert), bank_.panel_size() * static_cast<Index>(sizeof(Storage)));
    ahead.spread_all(prefetch_intervals(rows(at.expert), panels(at)));
    return ahead;
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  static bool has_scratch(const Bank& bank) {
    return !stores_scalars<Scalar, Storage> &&
           bank.in_features <= max_scratch_bytes / (columns * static_cast<Index>(sizeof(Scalar)));
  }

  Panels<Scalar, Storage> panels(ExpertPanels at) const {
    return panels_of(bank_, at.expert, at.first, at.count);
  }

  /// product.y: from column 0 on.
  void multiply(ExpertPanels at, ProductRows<Scalar> product, PrefetchQueue& ahead,
                [[maybe_unused]] Scalar* scratch) const {
    const Rows<Scalar> y = product.y;
    if constexpr (!stores_scalars<Scalar, Storage>) {
      if (rows(at.expert) > Tile<Scalar>::rows && has_scratch(bank_)) {
        for (Index p = at.first; p < at.first + at.count; ++p) {
          product.y = y.from_column(p * columns);
          multiply_panels(product, rows(at.expert), converted(p, at.expert, scratch), ahead);
        }
        return;
      }
    }
    product.y = y.from_column(at.first * columns);
    multiply_panels(product, rows(at.expert), panels(at), ahead);
  }

  /// A panel as scalars.
  Panels<Scalar> converted(Index p, Index expert, Scalar* scratch) const {
    const Scalar one(1);
    merge_rows(merge_source(bank_, p, 0), MergeTerms<Scalar>{&expert, &one, 1}, 1,
               bank_.in_features * columns, scratch);
    const Panels<Scalar, Storage> stored = panels({p, 1, expert});
    return {scratch, 0, stored.depth, stored.outputs, stored.starts, stored.starts_stride};
  }

  const Bank& bank_;
  const Dispatch<Scalar>& dispatch_;
};

/// Scalars of scratch that the products below need for each thread.
template <class Scalar, class Storage>
Index dispatched_product_scratch_size(const PanelBank<Scalar, const Storage>& bank) {
  return DispatchedProduct<Scalar, Storage>::scratch_size(bank);
}

/// The whole mixture. x: tokens × in_features; y: tokens × out_features, not overlapping x.
template <class Scalar, class Storage>
void dispatched_product(const PanelBank<Scalar, const Storage>& bank, const Dispatch<Scalar>& dispatch,
                        Rows<const Scalar> x, Rows<Scalar> y, Scratch<Scalar> scratch) {
  if (dispatch.tokens.empty()) return;
  const DispatchedProduct<Scalar, Storage> product(bank, dispatch);
  const Index scratch_size = dispatched_product_scratch_size(bank);
  const Index group = panels_at_once<Scalar>(static_cast<Index>(dispatch.tokens.size()) / bank.num_experts);
  parallel_ranges(bank.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
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
      product.combine(at, product.gathered(at.expert, x), y, ahead, scratch.data + thread * scratch_size);
      at = next;
    }
  });
}

/// All panels of one expert, a few at a time and each time with the next ones ahead, by product(panels,
/// ahead, scratch).
template <class Scalar, class Storage, class Product>
void for_panels(const DispatchedProduct<Scalar, Storage>& dispatched,
                const PanelBank<Scalar, const Storage>& bank, Index expert, Scratch<Scalar> scratch,
                const Product& product) {
  const Index group = panels_at_once<Scalar>(dispatched.rows(expert));
  const Index scratch_size = dispatched_product_scratch_size(bank);
  parallel_ranges(bank.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
    const auto panels_from = [&](Index first) {
      return ExpertPanels{first, (std::min)(group, end - first), expert};
    };
    for (Index p = begin; p < end; p += group) {
      const ExpertPanels at = panels_from(p);
      PrefetchQueue ahead = dispatched.look_ahead(at, panels_from(p + group));
      product(at, ahead, scratch.data + thread * scratch_size);
    }
  });
}

/// out = x W_eᵀ + b_e for the tokens of one expert. x: the rows of all tokens; out: as many as the expert
/// has.
template <class Scalar, class Storage>
void gathered_product(const PanelBank<Scalar, const Storage>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, Rows<const Scalar> x, Rows<Scalar> out,
                      Scratch<Scalar> scratch) {
  const DispatchedProduct<Scalar, Storage> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert, scratch, [&](ExpertPanels at, PrefetchQueue& ahead, Scalar* memory) {
    dispatched.multiply(at, dispatched.gathered(expert, x), out, ahead, memory);
  });
}

/// y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert. x: as many rows as the expert has; y: the rows of
/// all tokens.
template <class Scalar, class Storage>
void combined_product(const PanelBank<Scalar, const Storage>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, Rows<const Scalar> x, Rows<Scalar> y,
                      Scratch<Scalar> scratch) {
  const DispatchedProduct<Scalar, Storage> dispatched(bank, dispatch);
  for_panels(dispatched, bank, expert, scratch, [&](ExpertPanels at, PrefetchQueue& ahead, Scalar* memory) {
    dispatched.combine(at, x, y, ahead, memory);
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                  \
  instance void dispatched_product(const PanelBank<Scalar, const Scalar>&, const Dispatch<Scalar>&,      \
                                   Rows<const Scalar>, Rows<Scalar>, Scratch<Scalar>);                   \
  instance void gathered_product(const PanelBank<Scalar, const Scalar>&, Index, const Dispatch<Scalar>&, \
                                 Rows<const Scalar>, Rows<Scalar>, Scratch<Scalar>);                     \
  instance void combined_product(const PanelBank<Scalar, const Scalar>&, Index, const Dispatch<Scalar>&, \
                                 Rows<const Scalar>, Rows<Scalar>, Scratch<Scalar>);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail
