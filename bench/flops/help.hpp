#pragma once

/// What `meo_flops --help` says.

#include <string_view>

namespace bench::flops {

inline constexpr std::string_view help_text = R"(usage: meo_flops [options]

Counts the floating-point operations of BERT-like models whose feed-forward
layers are mixtures of experts, for one sequence: MoE runs the K selected
experts, MEO merges them into one and runs that. Without options it prints the
paper's figure (He et al., "Merging Experts into One", EMNLP 2023) as a table,
BERT Small, Base and Large at K = 1, 2, 4, 8, 16, 32, beside the paper's values,
which were read off the picture to about 0.7 %. Then it counts the Base model's
up projection by item and runs it, with 8 experts in float at K = 1, 2, 4, 8.

Units and conventions
  GFLOPs           10^9 operations; a multiply-add in a matrix product is 2, a
                   merge is 1 per parameter and selected expert (the paper's)
  exact            the same with every multiply-add as 2
  Both leave out, as the paper does, gates, token attention, the weighted sum of
  MoE's outputs, biases and everything that is no multiply-add. The table of one
  layer, in MFLOPs (10^6, exact), has the gates, token attention and that sum.

Your own model: any of these replaces the paper's models by one that starts from
BERT Base. It is counted, and its up projection is counted by item and run.
  --layers N           transformer layers                      (default 12)
  --features N         width of the model                      (default 768)
  --hidden-features N  width inside the feed-forward blocks    (default 3072)
  --vocabulary N       tokens in the vocabulary                (default 30522)
  --tokens N           tokens of the sequence                  (default 128)
  --experts N          experts per layer              (default: largest top-k)
  --top-k N[,N...]     selected experts   (default 1,2,4,8 as far as experts go)
  --level LEVEL        what a gate decides for: token, sequence or task (default
                       sequence). Counts in the table of one layer (the task's
                       embedding as wide as the model, reduced by 64) and names
                       the CSV's rows; the figure's numbers do not depend on it.

Output
  --csv FILE           write the table of models as CSV, nothing else, and run
                       nothing; - is the standard output. Columns:
                       model,method,level,top_k,gflops_paper_convention,
                       gflops_exact,paper_gflops,deviation_percent
                       (the last two are empty for your own model)
  --no-run             count, but run nothing
  --help               this text

The run is at sequence level, where MoE and MEO are the same function; that both
give Eigen's output, to rounding, is checked before anything is timed. Times are
medians, in milliseconds, of runs in turn: dense, MoE, MEO, dense, ... "x dense"
is the ratio to dense: in the table of models the (exact) count with ordinary
feed-forward layers, in the run one product y = x W^T of the same sizes, by
Eigen or by this library's meo::Linear, whichever is the faster; the line below
the table names it.
With one selected expert MEO has nothing to merge, and for a few tokens it
combines outputs instead; the figure counts merges anyway.

Exit code: 0 fine; 1 a point of the figure is more than 1 % off, or the outputs
of the run disagree; 2 wrong options, or a file that cannot be written.
)";

}  // namespace bench::flops
