#pragma once

/// `meo_bench --grid`: a sample of all sizes, each layer in turn with the dense products of the build, and
/// what bounds it.
///
/// The time of a layer that merges is at least that of its product; what it takes more should be the merge's
/// arithmetic, K/T of the product's for T tokens of a sequence, and at most half of what it takes to read the
/// selected experts from memory once, β of the product's time, as the product hides the rest.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <functional>
#include <iomanip>
#include <memory>
#include <ostream>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "baselines.hpp"
#include "cases.hpp"
#include "machine.hpp"
#include "problem.hpp"

namespace bench {

struct GridOptions {
  double seconds = 600;    ///< of all, by the clock
  std::uint64_t seed = 1;  ///< of the order of cases, of which the first that fit are measured
  int threads = 1;

  /// That a method is timed for in each turn, at least: 10 ms in 10 minutes.
  double least_seconds() const { return seconds / 60'000; }
  /// That a case may take, at most.
  double most_seconds() const { return seconds / 50; }
};

/// What is timed over the fastest dense product: MEO by sequence, forward and backward, over one expert's
/// product (or both of its backward), and the vanilla mixture by token over K of them.
enum class GridKind { meo, moe, backward };

inline const char* name_of(GridKind kind) {
  return kind == GridKind::meo ? "meo" : kind == GridKind::moe ? "moe" : "backward";
}

struct GridCase {
  GridKind kind;
  Case sizes;
  bool ragged;

  Index top_k() const { return sizes.top_k[0]; }
  double tokens() const { return static_cast<double>(sizes.all_tokens()); }
  double scalar_bytes() const { return sizes.in_double ? sizeof(double) : sizeof(float); }
  double expert_size() const {
    return static_cast<double>(sizes.in_features) * static_cast<double>(sizes.out_features);
  }
  /// Multiply-adds of a merge over those of the product: K/T.
  double merge_share() const {
    return kind == GridKind::moe ? 0 : static_cast<double>(top_k() * sizes.sequences) / tokens();
  }
  /// Dense products of one expert that the ratio is over.
  double products() const { return kind == GridKind::moe ? static_cast<double>(top_k()) : 1; }
};

/// Tokens of an expert from which on the vanilla mixture has a target.
inline constexpr Index least_tokens_of_expert = 64;

/// All cases of the grid, in an order that the seed says.
inline std::vector<GridCase> grid_cases(std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<GridCase> cases;
  const auto add = [&](GridKind kind, Case sizes, bool ragged) {
    sizes.level = kind == GridKind::moe ? Level::token : Level::sequence;
    sizes.backward = kind == GridKind::backward;
    sizes.name = std::string(name_of(kind)) + (sizes.in_double ? " double " : " float ") +
                 std::to_string(sizes.sequences) + " x " + std::to_string(sizes.tokens) + ' ' +
                 std::to_string(sizes.in_features) + " -> " + std::to_string(sizes.out_features) + " N " +
                 std::to_string(sizes.num_experts) + " K " + std::to_string(sizes.top_k[0]) +
                 (ragged ? " ragged" : "");
    cases.push_back({kind, std::move(sizes), ragged});
  };
  const auto add_kinds = [&](const Case& sizes, bool ragged) {
    const Index k = sizes.top_k[0];
    add(GridKind::meo, sizes, ragged);
    if (sizes.all_tokens() * k >= least_tokens_of_expert * sizes.num_experts)
      add(GridKind::moe, sizes, ragged);
    if (k == 4) add(GridKind::backward, sizes, ragged);
  };
  const auto add_selections = [&](Case sizes, bool ragged) {
    for (const Index n : {8, 16, 64}) {
      for (const Index k : {Index{1}, Index{2}, Index{4}, Index{8}, n}) {
        if (k == n && n == 8 && sizes.num_experts == n && sizes.top_k[0] == n) continue;
        sizes.num_experts = n;
        sizes.top_k = {k};
        add_kinds(sizes, ragged);
      }
    }
  };
  for (const Index features : {256, 512, 768, 1024, 2048}) {
    for (const auto& [in, out] : {std::pair{features, 4 * features}, {4 * features, features}}) {
      for (const Index tokens : {16, 64, 128, 512}) {
        for (const Index sequences : {1, 8, 64}) {
          for (const bool in_double : {false, true}) {
            Case sizes{.name = {},
                       .sequences = sequences,
                       .tokens = tokens,
                       .in_features = in,
                       .out_features = out,
                       .in_double = in_double,
                       .sampled = true};
            add_selections(sizes, false);
            if (sequences == 1) continue;
            // From half of the tokens to one and a half.
            for (Index b = 0; b < sequences; ++b)
              sizes.lengths.push_back(tokens / 2 +
                                      static_cast<Index>(rng() % static_cast<std::uint64_t>(tokens + 1)));
            add_selections(sizes, true);
          }
        }
      }
    }
  }
  for (std::size_t i = cases.size(); i > 1; --i) std::swap(cases[i - 1], cases[rng() % i]);
  return cases;
}

// ---------------------------------------------------------------------------------------------------------------
// Measuring

/// A thread's own time does not count what other programs took from it; with more threads only the clock is
/// fair.
inline double now(int threads) {
  if (threads == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Run>
double seconds_of(const Run& run, Index iterations, int threads) {
  const double begin = now(threads);
  for (Index i = 0; i < iterations; ++i) run();
  return (now(threads) - begin) / static_cast<double>(iterations);
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What the machine does at most, by what this run measured.
struct Roof {
  double flops[2];  ///< a second, of multiply-adds of registers: float, double
  double bytes;     ///< a second, from memory

  double flops_of(const GridCase& c) const { return flops[c.sizes.in_double ? 1 : 0]; }
};

inline constexpr int turns = 7;

inline Roof measure_roof(int threads) {
  const auto values = static_cast<std::size_t>((std::min)(0x1p30, available_bytes() / 4) / sizeof(float));
  const meo::AlignedVector<float> memory(values, 1.0F);
  // Called by pointers that anyone might have changed: the same pure function would be called once.
  float (*volatile run_float)() = multiply_adds<float>;
  double (*volatile run_double)() = multiply_adds<double>;
  float (*volatile run_read)(std::span<const float>) = read<float>;
  volatile double sink = 0;
  std::vector<double> of_float, of_double, of_reading;
  for (int turn = 0; turn < turns; ++turn) {
    of_float.push_back(seconds_of([&] { sink = run_float(); }, 10, 1));
    of_double.push_back(seconds_of([&] { sink = run_double(); }, 10, 1));
    of_reading.push_back(seconds_of([&] { sink = run_read({memory.data(), memory.size()}); }, 1, 1));
  }
  return {{multiply_adds_flops<float>() / median(of_float) * threads,
           multiply_adds_flops<double>() / median(of_double) * threads},
          static_cast<double>(values) * sizeof(float) / median(of_reading)};
}

struct GridRow {
  GridCase measured;
  double seconds;
  double dense_seconds;  ///< of the products that the ratio is over
  std::string dense;
  double beta;     ///< the time to read what it needs of the experts, over the products'
  double of_peak;  ///< operations of flops.hpp over those of the peak

  double ratio() const { return seconds / dense_seconds; }

  /// Without the allowance for everything else.
  double bound() const { return 1 + measured.merge_share() + beta / 2; }

  double target() const {
    if (measured.kind == GridKind::moe) return 1.05;
    if (measured.kind == GridKind::backward) return 1.15;
    if (measured.top_k() == 16 && measured.sizes.tokens == 128) return 1.20;
    return bound() + 0.05;
  }
  /// Whether the target is set for this case; for the others it says what the same terms come to.
  bool has_target() const {
    return measured.kind != GridKind::meo || (measured.top_k() <= 8 && measured.sizes.tokens >= 64) ||
           (measured.top_k() == 16 && measured.sizes.tokens == 128);
  }
  bool holds() const { return ratio() <= target(); }

  /// The larger of what reading and merging add, where it is more than what everything else may.
  const char* bounded_by() const {
    if ((std::max)(beta / 2, measured.merge_share()) < 0.05) return "arithmetic";
    return beta / 2 >= measured.merge_share() ? "bytes" : "merge";
  }
};

/// All methods in turn, dense products first, of which those that are far behind the first time leave.
template <class Scalar>
GridRow measure(const GridCase& c, const Roof& roof, const GridOptions& options) {
  const int threads = options.threads;
  Problem<Scalar> problem(c.sizes);
  const auto products = dense_products<Scalar>();
  struct Timed {
    std::string name;
    Prepared prepared;
    double first = 0;
    std::vector<double> seconds = {};
  };
  std::vector<Timed> methods;
  for (std::size_t p = 0; p < products.size(); ++p)
    methods.push_back(
        {products[p].name,
         problem.prepare({.name = "dense/" + products[p].name, .kind = Kind::dense, .product = p})});
  methods.push_back(
      {name_of(c.kind), problem.prepare({.name = name_of(c.kind),
                                         .kind = c.kind == GridKind::moe ? Kind::moe : Kind::meo,
                                         .top_k = c.top_k()})});
  double fastest = HUGE_VAL;
  for (Timed& method : methods) {
    method.first = seconds_of(method.prepared.run, 1, threads);
    if (&method != &methods.back()) fastest = (std::min)(fastest, method.first);
  }
  methods.erase(std::remove_if(methods.begin(), methods.end() - 1,
                               [&](const Timed& method) { return method.first > 1.3 * fastest; }),
                methods.end() - 1);
  for (int turn = 0; turn < turns; ++turn) {
    for (std::size_t i = 0; i < methods.size(); ++i) {
      Timed& method = methods[turn % 2 == 0 ? i : methods.size() - 1 - i];
      const auto iterations =
          static_cast<Index>(std::ceil(options.least_seconds() / (std::max)(method.first, 1e-6)));
      method.seconds.push_back(seconds_of(method.prepared.run, iterations, threads));
    }
  }
  const Timed layer = std::move(methods.back());
  methods.pop_back();
  const auto best = std::min_element(methods.begin(), methods.end(), [](const Timed& a, const Timed& b) {
    return median(a.seconds) < median(b.seconds);
  });
  const double seconds = median(layer.seconds), dense_seconds = c.products() * median(best->seconds);
  return {c,
          seconds,
          dense_seconds,
          best->name,
          layer.prepared.expert_bytes / roof.bytes / dense_seconds,
          layer.prepared.flops / seconds / roof.flops_of(c)};
}

/// Bytes that a case's problem takes: the experts as matrices, and in a layer; backward a second one.
inline double needed_bytes(const GridCase& c) {
  const double banks = c.kind == GridKind::backward ? 3 : 2;
  const double features = static_cast<double>(c.sizes.in_features + c.sizes.out_features);
  return c.scalar_bytes() *
         (banks * static_cast<double>(c.sizes.num_experts) * c.expert_size() + 4 * c.tokens() * features);
}

/// About what measuring a case takes, by the operations and the bytes that there are; for choosing only.
inline double expected_seconds(const GridCase& c, const Roof& roof, const GridOptions& options) {
  const double products = c.kind == GridKind::backward ? 2 : 1;
  const double dense = products * 2 * c.tokens() * c.expert_size() / (0.7 * roof.flops_of(c));
  const double bytes =
      c.scalar_bytes() * static_cast<double>(c.top_k()) * c.expert_size() * products / roof.bytes;
  const double layer = c.products() * dense * (1 + c.merge_share()) + bytes;
  return (turns + 2) * (layer + 2 * dense) + 3 * turns * options.least_seconds() + needed_bytes(c) / 1e9;
}

inline std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

struct GridResult {
  Roof roof;
  std::vector<GridRow> rows = {};  ///< the largest ratio first
  std::size_t cases = 0;           ///< of the grid
  std::size_t too_large = 0;       ///< for the memory that is free, among those whose turn came
  std::size_t too_slow = 0;        ///< would take more than GridOptions::most_seconds
};

/// Measures cases in the seed's order until the next does not fit. Throws std::runtime_error if none does.
inline GridResult measure_grid(const GridOptions& options) {
  GridResult result{.roof = measure_roof(options.threads)};
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<GridCase> cases = grid_cases(options.seed);
  result.cases = cases.size();
  for (const GridCase& c : cases) {
    const double expected = expected_seconds(c, result.roof, options);
    if (needed_bytes(c) > 0.7 * available_bytes()) {
      ++result.too_large;
      continue;
    }
    if (expected > options.most_seconds()) {
      ++result.too_slow;
      continue;
    }
    const double left =
        options.seconds - std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (expected > left) break;
    result.rows.push_back(c.sizes.in_double ? measure<double>(c, result.roof, options)
                                            : measure<float>(c, result.roof, options));
  }
  if (result.rows.empty())
    throw std::runtime_error("no case of the grid fits " + fixed(options.seconds, 0) +
                             " s and the memory that is free");
  std::stable_sort(result.rows.begin(), result.rows.end(),
                   [](const GridRow& a, const GridRow& b) { return a.ratio() > b.ratio(); });
  return result;
}

// ---------------------------------------------------------------------------------------------------------------
// The report

inline std::vector<std::string> grid_headings() {
  return {"layer", "scalar",   "sequences", "tokens", "ragged", "in",     "out",   "N",     "K",      "ms",
          "over",  "dense_ms", "ratio",     "K/T",    "beta",   "target", "holds", "bound", "of_peak"};
}

inline std::vector<std::string> cells_of(const GridRow& row) {
  const Case& sizes = row.measured.sizes;
  const double products = row.measured.products();
  const std::string over = products > 1 ? fixed(products, 0) + " x " + row.dense : row.dense;
  return {name_of(row.measured.kind),
          sizes.in_double ? "double" : "float",
          std::to_string(sizes.sequences),
          std::to_string(sizes.tokens),
          row.measured.ragged ? "yes" : "no",
          std::to_string(sizes.in_features),
          std::to_string(sizes.out_features),
          std::to_string(sizes.num_experts),
          std::to_string(row.measured.top_k()),
          fixed(row.seconds * 1e3, 3),
          over,
          fixed(row.dense_seconds * 1e3, 3),
          fixed(row.ratio(), 3),
          fixed(row.measured.merge_share(), 3),
          fixed(row.beta, 3),
          fixed(row.target(), 3),
          row.has_target() ? row.holds() ? "yes" : "no"
          : row.holds()    ? "(yes)"
                           : "(no)",
          row.bounded_by(),
          fixed(row.of_peak, 3)};
}

inline void write_line(std::ostream& out, const std::vector<std::string>& cells, const char* separator) {
  for (std::size_t i = 0; i < cells.size(); ++i) out << (i > 0 ? separator : "") << cells[i];
}

inline void write_grid_csv(std::ostream& out, const GridResult& result) {
  write_line(out, grid_headings(), ",");
  out << '\n';
  for (const GridRow& row : result.rows) {
    write_line(out, cells_of(row), ",");
    out << '\n';
  }
}

/// exp of the mean logarithm.
template <class Function>
double geometric_mean(std::span<const GridRow* const> rows, const Function& f) {
  double sum = 0;
  for (const GridRow* row : rows) sum += std::log(f(*row));
  return std::exp(sum / static_cast<double>(rows.size()));
}

/// How many of some cases hold their target, their geometric mean, and what bounds those that do not.
inline void print_summary_line(std::ostream& out, const std::string& name,
                               const std::vector<const GridRow*>& rows) {
  if (rows.empty()) return;
  Index holding = 0, by_bytes = 0, by_merge = 0;
  for (const GridRow* row : rows) {
    if (row->holds()) ++holding;
    else if (row->bounded_by() == std::string("bytes")) ++by_bytes;
    else if (row->bounded_by() == std::string("merge")) ++by_merge;
  }
  const auto count = static_cast<Index>(rows.size());
  out << "| " << name << " | " << count << " | " << holding << " | " << by_bytes << " | " << by_merge << " | "
      << count - holding - by_bytes - by_merge << " | "
      << fixed(geometric_mean(rows, [](const GridRow& row) { return row.ratio(); }), 3) << " | "
      << fixed(geometric_mean(rows,
                              [](const GridRow& row) {
                                return row.measured.kind == GridKind::meo ? row.bound() : row.target();
                              }),
               3)
      << " |\n";
}

inline void print_grid(std::ostream& out, const GridOptions& options, const GridResult& result) {
  out << describe_machine() << "; " << compiler << ", " << instruction_sets()
      << "; dense products: " << describe_dense_products() << "; " << options.threads << " thread(s)\n"
      << "Peak of registers " << fixed(result.roof.flops[0] * 1e-9, 0) << " GFLOP/s in float, "
      << fixed(result.roof.flops[1] * 1e-9, 0) << " in double; memory " << fixed(result.roof.bytes * 1e-9, 1)
      << " GB/s. Seed " << options.seed << ", " << fixed(options.seconds, 0) << " s: " << result.rows.size()
      << " of " << result.cases << " cases; left out " << result.too_large
      << " for which there is no memory and " << result.too_slow << " that would take more than "
      << fixed(options.most_seconds(), 1) << " s each.\n\n";

  const std::vector<std::string> headings = grid_headings();
  const std::vector<std::string> rules(headings.size(), "--:");
  for (const auto* cells : {&headings, &rules}) {
    out << "| ";
    write_line(out, *cells, " | ");
    out << " |\n";
  }
  for (const GridRow& row : result.rows) {
    out << "| ";
    write_line(out, cells_of(row), " | ");
    out << " |\n";
  }

  out << "\n| cases | measured | hold | miss: bytes | merge | arithmetic | geometric mean | its target |\n"
      << "| --- | --: | --: | --: | --: | --: | --: | --: |\n";
  const auto print = [&](const std::string& name, const std::function<bool(const GridRow&)>& belongs) {
    std::vector<const GridRow*> rows;
    for (const GridRow& row : result.rows)
      if (belongs(row)) rows.push_back(&row);
    print_summary_line(out, name, rows);
  };
  for (const bool in_double : {false, true}) {
    const std::string scalar = in_double ? "double" : "float";
    const auto print_kind = [&](const char* name, GridKind kind, bool has_target) {
      print(name + scalar, [=](const GridRow& row) {
        return row.measured.kind == kind && row.measured.sizes.in_double == in_double &&
               row.has_target() == has_target;
      });
    };
    print_kind("MEO, K <= 8, T >= 64 (or K = 16, T = 128), ", GridKind::meo, true);
    print_kind("MEO, other, ", GridKind::meo, false);
    print_kind("MEO backward, K = 4, ", GridKind::backward, true);
    print_kind("MoE by token, ", GridKind::moe, true);
  }
}

}  // namespace bench
