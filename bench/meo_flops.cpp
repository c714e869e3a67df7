/// The paper's figure "GFLOPs against the number of selected experts" as a table, computed by meo/flops.hpp,
/// and one feed-forward projection run for real, so that counted operations and time stand side by side.
/// `--help` says more.

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <limits>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <meo/experts/linear.hpp>
#include <meo/flops.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "instruction_sets.hpp"
#include "support/bounds.hpp"

namespace {

using meo::Convention;
using meo::Index;
using meo::LayerFlops;
using meo::LayerOptions;
using meo::LayerShape;
using meo::Level;
using meo::Method;
using meo::ModelShape;

constexpr int check_failed = 1;
constexpr int cannot_run = 2;

constexpr std::string_view help_text = R"(usage: meo_flops [options]

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

// ---------------------------------------------------------------------------------------------------------------
// The command line

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  bool own_model = false;
  ModelShape model = meo::bert_base;
  Index experts = 8;
  std::vector<Index> top_k = {1, 2, 4, 8};
  Level level = Level::sequence;
  std::optional<std::string> csv;
  bool run = true;
  bool help = false;
};

Index parse_count(std::string_view option, std::string_view text) {
  constexpr Index largest = 1'000'000'000;
  Index value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value > largest)
    throw UsageError(std::string(option) + " needs a whole number from 1 to 1000000000, not '" +
                     std::string(text) + "'");
  return value;
}

std::vector<Index> parse_counts(std::string_view option, std::string_view text) {
  std::vector<Index> values;
  for (;;) {
    const std::size_t comma = text.find(',');
    values.push_back(parse_count(option, text.substr(0, comma)));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

Level parse_level(std::string_view text) {
  for (const Level level : {Level::token, Level::sequence, Level::task})
    if (text == to_string(level)) return level;
  throw UsageError("--level needs token, sequence or task, not '" + std::string(text) + "'");
}

/// Counts are 64-bit integers: a model beyond them is refused rather than miscounted.
void check_countable(const ModelShape& model, Index experts, Index top_k) {
  const auto tokens = static_cast<double>(model.tokens);
  const auto features = static_cast<double>(model.features);
  const auto parameters = features * static_cast<double>(model.hidden_features);
  const double attention = 4 * tokens * features * (2 * features + tokens);
  const double feed_forward = 4 * parameters * static_cast<double>(top_k) * (tokens + 1);
  const double head = 2 * tokens * features * (static_cast<double>(model.vocabulary) + features);
  const double gate = 2 * tokens * features * static_cast<double>(experts);
  if (static_cast<double>(model.layers) * (attention + feed_forward) + head + gate > 9e18)
    throw UsageError("the model is too large: its operations do not fit a 64-bit count");
}

/// Throws UsageError.
Arguments parse(const std::vector<std::string_view>& words) {
  Arguments arguments;
  Index experts = 0;
  std::vector<Index> top_k;
  const std::array<std::pair<std::string_view, Index*>, 6> counts{{
      {"--layers", &arguments.model.layers},
      {"--features", &arguments.model.features},
      {"--hidden-features", &arguments.model.hidden_features},
      {"--vocabulary", &arguments.model.vocabulary},
      {"--tokens", &arguments.model.tokens},
      {"--experts", &experts},
  }};

  for (auto word = words.begin(); word != words.end(); ++word) {
    if (*word == "--help" || *word == "-h") {
      arguments.help = true;
      return arguments;
    }
    if (*word == "--no-run") {
      arguments.run = false;
      continue;
    }

    const std::string_view option = word->substr(0, word->find('='));
    const auto count =
        std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == option; });
    if (count == counts.end() && option != "--top-k" && option != "--level" && option != "--csv")
      throw UsageError("unknown option '" + std::string(*word) + "'");
    if (option == *word && (std::next(word) == words.end() || std::next(word)->starts_with("--")))
      throw UsageError(std::string(option) + " needs a value");
    const std::string_view value = option == *word ? *++word : word->substr(option.size() + 1);

    if (option == "--csv") {
      arguments.csv = value;
      continue;
    }
    arguments.own_model = true;
    if (count != counts.end()) *count->second = parse_count(option, value);
    else if (option == "--top-k") top_k = parse_counts(option, value);
    else arguments.level = parse_level(value);
  }

  if (!top_k.empty()) arguments.top_k = top_k;
  if (experts == 0) experts = *std::max_element(arguments.top_k.begin(), arguments.top_k.end());
  if (top_k.empty()) std::erase_if(arguments.top_k, [&](Index k) { return k > experts; });
  arguments.experts = experts;
  const Index largest_top_k = *std::max_element(arguments.top_k.begin(), arguments.top_k.end());
  if (largest_top_k > experts)
    throw UsageError("--top-k " + std::to_string(largest_top_k) + " is more than the " +
                     std::to_string(experts) + " experts");
  check_countable(arguments.model, experts, largest_top_k);
  return arguments;
}

// ---------------------------------------------------------------------------------------------------------------
// Text

std::string fixed(double value, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  const bool rounds_to_minus_zero = value < 0 && out.str().find_first_not_of("-0.") == std::string::npos;
  return rounds_to_minus_zero ? fixed(0, digits) : out.str();
}

/// Rows of cells, the first of them the heading; columns are as wide as their widest cell.
class Table {
 public:
  /// The first `text_columns` columns are flush left, the others, numbers, flush right.
  Table(std::vector<std::string> heading, std::size_t text_columns) : text_columns_(text_columns) {
    add(std::move(heading));
  }

  void add(std::vector<std::string> cells) {
    widths_.resize(std::max(widths_.size(), cells.size()));
    for (std::size_t c = 0; c < cells.size(); ++c) widths_[c] = std::max(widths_[c], cells[c].size());
    rows_.push_back(std::move(cells));
  }

  friend std::ostream& operator<<(std::ostream& out, const Table& table) {
    for (const std::vector<std::string>& row : table.rows_) {
      for (std::size_t c = 0; c < row.size(); ++c)
        out << "  " << (c < table.text_columns_ ? std::left : std::right)
            << std::setw(static_cast<int>(table.widths_[c])) << row[c];
      out << '\n';
    }
    return out;
  }

 private:
  std::size_t text_columns_;
  std::vector<std::size_t> widths_;
  std::vector<std::vector<std::string>> rows_;
};

constexpr std::string_view name(Method method) {
  switch (method) {
    case Method::dense:
      return "dense";
    case Method::moe:
      return "MoE";
    case Method::meo:
      return "MEO";
  }
  return "unknown";
}

// ---------------------------------------------------------------------------------------------------------------
// The models

/// A model of the paper's figure and its two curves in GFLOPs at K = 1, 2, 4, 8, 16, 32, read off the picture
/// to about 0.7 %.
struct PaperModel {
  std::string_view name;
  ModelShape shape;
  std::array<double, 6> moe, meo;
};
constexpr std::array<Index, 6> paper_top_k{1, 2, 4, 8, 16, 32};
constexpr std::array<PaperModel, 3> paper_models{{
    {"Small",
     meo::bert_small,
     {7.38, 9.54, 13.83, 22.45, 39.65, 74.10},
     {7.38, 7.44, 7.45, 7.47, 7.54, 7.69}},
    {"Base",
     meo::bert_base,
     {28.53, 42.85, 71.7, 129.05, 244.03, 473.53},
     {28.4, 28.6, 28.8, 29.1, 29.5, 30.4}},
    {"Large",
     meo::bert_large,
     {87.15, 138.48, 241.75, 448.6, 860.3, 1685.2},
     {87.15, 87.77, 88.18, 89.02, 90.71, 93.74}},
}};
constexpr double tolerance_percent = 1;

/// One point: a model, a method and a number of selected experts.
struct Point {
  std::string_view model;
  Method method;
  Level level;
  Index top_k;
  double gflops_paper_convention, gflops_exact, gflops_dense;
  std::optional<double> paper_gflops;

  double deviation_percent() const { return (gflops_paper_convention / *paper_gflops - 1) * 100; }
  bool agrees_with_paper() const {
    return paper_gflops && std::abs(deviation_percent()) <= tolerance_percent;
  }
};

Point count_point(std::string_view model, const ModelShape& shape, Method method, Level level, Index top_k,
                  std::optional<double> paper_gflops) {
  const auto gflops = [&](Method counted, Convention convention) {
    return static_cast<double>(meo::flops(counted, shape, top_k, convention).total()) * 1e-9;
  };
  return {.model = model,
          .method = method,
          .level = level,
          .top_k = top_k,
          .gflops_paper_convention = gflops(method, Convention::paper),
          .gflops_exact = gflops(method, Convention::exact),
          .gflops_dense = gflops(Method::dense, Convention::exact),
          .paper_gflops = paper_gflops};
}

std::vector<Point> count_points(const Arguments& arguments) {
  std::vector<Point> points;
  if (arguments.own_model) {
    for (const Method method : {Method::moe, Method::meo})
      for (const Index top_k : arguments.top_k)
        points.push_back(count_point("own", arguments.model, method, arguments.level, top_k, std::nullopt));
    return points;
  }
  for (const PaperModel& model : paper_models)
    for (const Method method : {Method::moe, Method::meo})
      for (std::size_t i = 0; i < paper_top_k.size(); ++i)
        points.push_back(count_point(model.name, model.shape, method, arguments.level, paper_top_k[i],
                                     (method == Method::moe ? model.moe : model.meo)[i]));
  return points;
}

void write_csv(std::ostream& out, const std::vector<Point>& points) {
  out << "model,method,level,top_k,gflops_paper_convention,gflops_exact,paper_gflops,deviation_percent\n";
  for (const Point& point : points) {
    out << point.model << ',' << name(point.method) << ',' << to_string(point.level) << ',' << point.top_k
        << ',' << fixed(point.gflops_paper_convention, 9) << ',' << fixed(point.gflops_exact, 9) << ',';
    if (point.paper_gflops) out << *point.paper_gflops;
    out << ',';
    if (point.paper_gflops) out << fixed(point.deviation_percent(), 3);
    out << '\n';
  }
}

void print_points(const Arguments& arguments, const std::vector<Point>& points) {
  const ModelShape& model = arguments.model;
  std::cout << "GFLOPs of a BERT-like model, one sequence of " << model.tokens
            << " tokens, K experts selected";
  if (arguments.own_model)
    std::cout << "\nlayers " << model.layers << ", features " << model.features << ", hidden features "
              << model.hidden_features << ", vocabulary " << model.vocabulary;
  std::cout
      << "\nGFLOPs: the paper's convention, a merge is 1 per parameter and selected expert; exact: 2\n\n";

  std::vector<std::string> heading{"model", "method", "K", "GFLOPs", "exact", "x dense"};
  if (!arguments.own_model) heading.insert(heading.end(), {"paper", "deviation"});
  Table table(heading, 2);
  std::string_view model_above = points.front().model;
  for (const Point& point : points) {
    if (point.model != std::exchange(model_above, point.model)) table.add({});
    std::vector<std::string> cells{
        std::string(point.model),     std::string(name(point.method)),
        std::to_string(point.top_k),  fixed(point.gflops_paper_convention, 2),
        fixed(point.gflops_exact, 2), fixed(point.gflops_exact / point.gflops_dense, 3)};
    if (point.paper_gflops)
      cells.insert(cells.end(), {fixed(*point.paper_gflops, 2), fixed(point.deviation_percent(), 2) + " %"});
    table.add(std::move(cells));
  }
  std::cout << table << '\n';
}

// ---------------------------------------------------------------------------------------------------------------
// One layer, counted by item

using Scalar = float;

/// The up projection of the model's feed-forward block.
LayerOptions up_projection(const Arguments& arguments, Index top_k, Level level) {
  return {.in_features = arguments.model.features,
          .out_features = arguments.model.hidden_features,
          .num_experts = arguments.experts,
          .top_k = top_k,
          .bias = false,
          .routing = {.level = level, .task_features = arguments.model.features}};
}

LayerShape shape_of(const LayerOptions& options, const Arguments& arguments) {
  return meo::layer_shape<Scalar>(options, meo::Sequences::uniform(1, arguments.model.tokens));
}

double mflops(std::int64_t count) { return static_cast<double>(count) * 1e-6; }

void print_items(const Arguments& arguments) {
  const ModelShape& model = arguments.model;
  std::cout << "MFLOPs of one layer, " << model.features << " -> " << model.hidden_features << " features, "
            << model.tokens << " tokens, " << arguments.experts << " experts, " << to_string(arguments.level)
            << " level; a multiply-add is 2\n\n";
  Table table({"method", "K", "gate", "token attention", "task projection", "merge", "product", "combine",
               "total", "x dense"},
              1);
  const auto add = [&](Method method, Index top_k) {
    const LayerShape shape = shape_of(up_projection(arguments, top_k, arguments.level), arguments);
    const LayerFlops count = meo::flops(method, shape);
    const auto cell = [](std::int64_t item) { return item == 0 ? std::string("-") : fixed(mflops(item), 3); };
    table.add({std::string(name(method)), method == Method::dense ? "-" : std::to_string(top_k),
               cell(count.gate), cell(count.token_attention), cell(count.task_projection), cell(count.merge),
               cell(count.product), cell(count.combine), cell(count.total()),
               fixed(mflops(count.total()) / mflops(meo::flops(Method::dense, shape).total()), 3)});
  };
  add(Method::dense, 1);
  for (const Method method : {Method::moe, Method::meo})
    for (const Index top_k : arguments.top_k) add(method, top_k);
  std::cout << table << '\n';
}

// ---------------------------------------------------------------------------------------------------------------
// The same layer, run

using Matrix = meo::Matrix<Scalar>;
using MoeLayer = meo::MoeLayer<Scalar>;
using MeoLayer = meo::MeoLayer<Scalar>;

/// The largest error of `y` as a share of what rounding allows, element by element: two sums of the same
/// terms are each within γ_terms Σ |terms| of the exact one, see support/bounds.hpp.
double error_of_bound(const Matrix& y, const Matrix& expected, const Matrix& magnitude, Index terms) {
  const double factor = 2 * meo::test::gamma<Scalar>(terms);
  return meo::test::compare(y, expected.cast<double>(), factor * magnitude.cast<double>()).worst;
}

/// Both layers with the same parameters, their input and their output.
class LayerPair {
 public:
  LayerPair(const Arguments& arguments, Index top_k)
      : moe_(up_projection(arguments, top_k, Level::sequence)),
        meo_(moe_.options()),
        linear_(arguments.model.features, arguments.model.hidden_features, false),
        x_(arguments.model.tokens, arguments.model.features),
        y_(arguments.model.tokens, arguments.model.hidden_features) {
    std::mt19937_64 rng(42);
    meo_.initialize(rng);
    for (Index expert = 0; expert < arguments.experts; ++expert) moe_.set_weight(expert, meo_.weight(expert));
    moe_.gate().set_weight(meo_.gate().weight());
    std::uniform_real_distribution<Scalar> uniform(-1, 1);
    for (Scalar& value : x_.reshaped()) value = uniform(rng);
    dense_weight_ = meo_.weight(0);
    linear_.set_weight(dense_weight_);
  }

  void run_eigen() { y_.noalias() = x_ * dense_weight_.transpose(); }
  void run_linear() { linear_.apply(meo::MatrixView<Scalar>(x_), y_.data(), y_.cols()); }
  void run_moe() { moe_.forward(x_, {}, y_, workspace_); }
  void run_meo() { meo_.forward(x_, {}, y_, workspace_); }

  /// The largest of MEO's error against Eigen's product with the merged weight, of MoE's against MEO and of
  /// meo::Linear's against Eigen's, as a share of what rounding allows; infinite where the selections differ.
  double error() const {
    const auto [y_moe, routing_moe] = moe_.forward(x_);
    const auto [y_meo, routing_meo] = meo_.forward(x_);
    if (routing_moe.experts != routing_meo.experts || routing_moe.weights != routing_meo.weights)
      return std::numeric_limits<double>::infinity();

    Matrix merged = Matrix::Zero(dense_weight_.rows(), dense_weight_.cols());
    Matrix merged_magnitude = merged;
    for (std::size_t i = 0; i < routing_meo.experts.size(); ++i) {
      const Matrix weight = meo_.weight(routing_meo.experts[i]);
      merged += routing_meo.weights[i] * weight;
      merged_magnitude += routing_meo.weights[i] * weight.cwiseAbs();
    }
    const Matrix expected = x_ * merged.transpose();
    const Matrix magnitude = x_.cwiseAbs() * merged_magnitude.transpose();
    const Index terms = x_.cols() + routing_meo.top_k + 1;
    const Matrix dense = x_ * dense_weight_.transpose();
    const Matrix dense_magnitude = x_.cwiseAbs() * dense_weight_.cwiseAbs().transpose();
    return std::max({error_of_bound(y_meo, expected, magnitude, terms),
                     error_of_bound(y_moe, y_meo, magnitude, terms),
                     error_of_bound(linear_.forward(x_), dense, dense_magnitude, x_.cols())});
  }

 private:
  MoeLayer moe_;
  MeoLayer meo_;
  meo::Linear<Scalar> linear_;
  Matrix dense_weight_;
  Matrix x_;
  Matrix y_;
  meo::Workspace<Scalar> workspace_;
};

/// What a pair runs, the dense products first.
struct Run {
  std::string_view name;
  Method method;
  void (LayerPair::*run)();
};
constexpr std::array<Run, 4> runs{{{"dense, Eigen", Method::dense, &LayerPair::run_eigen},
                                   {"dense, meo::Linear", Method::dense, &LayerPair::run_linear},
                                   {"MoE", Method::moe, &LayerPair::run_moe},
                                   {"MEO", Method::meo, &LayerPair::run_meo}}};
constexpr std::size_t num_dense = 2;

/// Median milliseconds of the runs, made in turn so that none of them has the machine, or its caches, to
/// itself.
struct Times {
  std::array<double, runs.size()> milliseconds;
  std::size_t rounds;
};

Times measure(LayerPair& pair) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t fewest = 5, most = 101;
  constexpr std::chrono::seconds budget{2};

  std::array<std::vector<double>, runs.size()> milliseconds;
  for (const Run& run : runs) (pair.*run.run)();  // grows the workspace
  const Clock::time_point start = Clock::now();
  for (std::size_t round = 0; round < fewest || (round < most && Clock::now() - start < budget); ++round) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Clock::time_point begin = Clock::now();
      (pair.*runs[i].run)();
      milliseconds[i].push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    }
  }
  const auto median = [](std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  Times times{.milliseconds = {}, .rounds = milliseconds[0].size()};
  std::transform(milliseconds.begin(), milliseconds.end(), times.milliseconds.begin(), median);
  return times;
}

/// Returns whether the outputs agree.
bool run_layer(const Arguments& arguments) {
  std::cout << "The same layer run at sequence level: float, Eigen " << EIGEN_WORLD_VERSION << '.'
            << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION << ", " << Eigen::nbThreads()
            << " thread(s),\ncompiled for " << bench::instruction_sets() << "\n\n";
  std::vector<Times> all_times;
  std::array<double, num_dense> dense_milliseconds{};  // over all K, to choose by
  double worst_error = 0;
  for (const Index top_k : arguments.top_k) {
    LayerPair pair(arguments, top_k);
    worst_error = std::max(worst_error, pair.error());
    if (worst_error > 1) {
      std::cerr << "meo_flops: at K = " << top_k
                << " the outputs of MoE, MEO, meo::Linear and Eigen disagree\n";
      return false;
    }
    all_times.push_back(measure(pair));
    for (std::size_t i = 0; i < num_dense; ++i) dense_milliseconds[i] += all_times.back().milliseconds[i];
  }

  const auto fastest = static_cast<std::size_t>(
      std::min_element(dense_milliseconds.begin(), dense_milliseconds.end()) - dense_milliseconds.begin());
  Table table({"method", "K", "MFLOPs", "FLOPs x dense", "ms", "time x dense", "GFLOP/s", "runs"}, 1);
  for (std::size_t k = 0; k < all_times.size(); ++k) {
    const Index top_k = arguments.top_k[k];
    const Times& times = all_times[k];
    const LayerShape shape = shape_of(up_projection(arguments, top_k, Level::sequence), arguments);
    const double dense = mflops(meo::flops(Method::dense, shape).total());
    table.add({});
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const double count = mflops(meo::flops(runs[i].method, shape).total());
      table.add({std::string(runs[i].name), runs[i].method == Method::dense ? "-" : std::to_string(top_k),
                 fixed(count, 3), fixed(count / dense, 3), fixed(times.milliseconds[i], 3),
                 fixed(times.milliseconds[i] / times.milliseconds[fastest], 3),
                 fixed(count / times.milliseconds[i], 1), std::to_string(times.rounds)});
    }
  }
  std::cout << table << "\nTime x dense is over \"" << runs[fastest].name
            << "\", the fastest dense product of this build.\n"
            << "MoE, MEO, meo::Linear and Eigen agree in every element, to " << fixed(worst_error, 4)
            << " of the rounding error's bound.\n";
  return true;
}

int run(const Arguments& arguments) {
  if (arguments.help) {
    std::cout << help_text;
    return 0;
  }

  const std::vector<Point> points = count_points(arguments);
  const auto agreeing =
      std::count_if(points.begin(), points.end(), [](const Point& p) { return p.agrees_with_paper(); });
  const bool reproduced = arguments.own_model || agreeing == std::ssize(points);

  if (arguments.csv) {
    std::ofstream file;
    if (*arguments.csv != "-") file.open(*arguments.csv);
    std::ostream& out = *arguments.csv == "-" ? std::cout : file;
    write_csv(out, points);
    out.flush();
    if (!out) throw std::runtime_error("cannot write '" + *arguments.csv + "'");
    return reproduced ? 0 : check_failed;
  }

  print_points(arguments, points);
  if (!arguments.own_model)
    std::cout << agreeing << " of " << points.size() << " points are within 1 % of the paper's figure.\n\n";
  print_items(arguments);
  const bool agreed = !arguments.run || run_layer(arguments);
  return reproduced && agreed ? 0 : check_failed;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse({argv + 1, argv + argc}));
  } catch (const UsageError& error) {
    std::cerr << "meo_flops: " << error.what() << "; --help lists the options\n";
  } catch (const std::exception& error) {
    std::cerr << "meo_flops: " << error.what() << '\n';
  }
  return cannot_run;
}
