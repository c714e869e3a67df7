/// Times of this library's layers beside the dense products that this machine has, case by case. `--help`
/// says more.

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "baselines.hpp"
#include "cases.hpp"
#include "grid.hpp"
#include "instruction_sets.hpp"
#include "machine.hpp"
#include "problem.hpp"
#include "program.hpp"

namespace {

using bench::UsageError;

constexpr const char* help_text = R"(usage: meo_bench [options]
       meo_bench --grid [--seconds=N] [--seed=N] [--csv=FILE] [--threads=N]

Times mixtures of experts in this library (meo, moe) beside dense products of one
expert on the same tokens (dense/eigen, dense/openblas, dense/onednn, as far as
the build has them) and beside experts merged in memory and then multiplied with
by Eigen (naive). meo_gate and moe_gate are what a layer does before its experts.
Benchmarks are named CASE/METHOD[/K], K experts selected:

  b8_t128            8 sequences of 128 tokens, 768 -> 3072 features, 8 experts,
                     float, gates by sequence; names of other sizes say them
  task_, token_      gates by task (one for all sequences), or by token (meo: by
                     sequence, after token attention)
  block_             768 -> 3072 -> 768 with GELU between
  double_            the same in double
  backward_          a layer's backward beside both products of a dense layer's
  orders_            few tokens: MEO as it chooses itself (meo), with experts
                     merged first (merge_first) or their outputs combined
                     (combine_outputs)
  kept               one token and an expert that was merged once: a step, beside
                     one of a dense layer (linear), and merging it, beside reading
                     the bytes of K experts and writing those of one (read_write);
                     kept_t16: a step of 16 tokens
  storage_           experts stored in fewer bits (meo_bfloat16, meo_half,
                     meo_int8) beside those of floats; storage_moe_: by token,
                     2048 -> 1024 features, 64 experts
  fixed_             small layers and their gates by token; *_fixed: the number
                     of experts is in the type, else in the options
  routers_           gates of other models by themselves, 1024 tokens of 2048
                     features and 64 or 256 experts, 8 of which a token has (smear
                     and condconv: all); block: the experts that those of 8 are for,
                     gated, 2048 -> 1024 or 512 -> 2048
  routed_            such a block with OLMoE's router, or with DeepSeek-V3's in 8 groups
                     for 256 experts, beside dense products of the rows that each
                     expert is given (gathered) and, of one token, reading its 8 experts
  peak/multiply_add  one thread's multiply-adds of registers, and nothing else
  b1_t1/read         the bytes of the experts are read, and nothing else

Nothing has biases. Every result is verified against plain Eigen, element by
element, before it is timed. The methods of a case take turns in random order;
one case follows another. GFLOP/s counts what flops.hpp counts, experts_GB/s the
bytes of the experts that are needed; the display shows medians, the file that
--benchmark_out names has every repetition. ratios.py makes a table of it.

  --threads=N              of this library and all products       (default 1)
  --grid                   a sample of D -> 4 D and back for D from 256 to 2048,
                           1 to 64 sequences of 16 to 512 tokens, ragged as well,
                           8 to 64 experts, K = 1 to N, float and double: MEO by
                           sequence, its backward (K = 4) and MoE by token (from
                           64 tokens an expert on), each in turn with the dense
                           products, as a table, the largest ratio first, with
                           what bounds each; only with these:
    --seconds=N            for all of it; what fits is measured (default 600)
    --seed=N               of the order in which cases are tried  (default 1)
    --csv=FILE             the table; plot_grid.py draws it
  --benchmark_filter=...   a regular expression, for example ^b8_t128/

Of Google Benchmark's own options these have other defaults:
  --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
  --benchmark_min_time=0.05
and --benchmark_out writes JSON only.

Exit code: 0 fine; 1 a result is wrong; 2 wrong options, no such benchmark, or a
file that cannot be written.

)";

void print_help() {
  std::cout << help_text << std::flush;
  benchmark::PrintDefaultHelp();
}

// ---------------------------------------------------------------------------------------------------------------
// The command line

struct Arguments {
  int threads = 1;
  bool grid = false;
  bench::GridOptions grid_options;
  std::optional<std::string> csv;  ///< of the grid
  std::optional<std::string> out;
  std::vector<std::string> others;  ///< the program's name, our defaults and what is Google Benchmark's
};

/// A whole number of at least `least`.
template <class Number>
Number parse_number(const std::string& option, std::string_view text, Number least) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || number < least)
    throw UsageError(option + " needs a whole number of at least " + std::to_string(least) + ", not '" +
                     std::string(text) + "'");
  return number;
}

int parse_threads(std::string_view text) {
  const int threads = parse_number("--threads", text, 1);
#if !defined(_OPENMP)
  if (threads > 1) throw UsageError("--threads: this build has no OpenMP, so only one thread");
#endif
  return threads;
}

/// The file is taken from Google Benchmark, which would begin it anew for every case.
Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  arguments.others = {words.front(), "--benchmark_enable_random_interleaving=true",
                      "--benchmark_repetitions=9", "--benchmark_min_time=0.05"};
  const std::size_t num_defaults = arguments.others.size();
  for (auto word = std::next(words.begin()); word != words.end(); ++word) {
    const std::string option = word->substr(0, word->find('='));
    std::string value = option == *word ? "" : word->substr(option.size() + 1);
    const bool is_of_grid = option == "--seconds" || option == "--seed" || option == "--csv";
    if ((is_of_grid || option == "--threads") && option == *word && std::next(word) != words.end())
      value = *++word;
    if (is_of_grid && std::find(words.begin(), words.end(), "--grid") == words.end())
      throw UsageError(option + " is for --grid");
    if (option == "--threads") arguments.threads = parse_threads(value);
    else if (option == "--grid" && option == *word) arguments.grid = true;
    else if (option == "--seconds") arguments.grid_options.seconds = parse_number(option, value, 1);
    else if (option == "--seed") arguments.grid_options.seed = parse_number(option, value, std::uint64_t{0});
    else if (option == "--csv") arguments.csv = value;
    else if (option == "--benchmark_out") arguments.out = value;
    else if (option != "--benchmark_out_format") arguments.others.push_back(*word);
    else if (value != "json") throw UsageError("--benchmark_out_format can only be json");
  }
  if (arguments.grid && (arguments.out || arguments.others.size() > num_defaults))
    throw UsageError("--grid takes --seconds, --seed, --csv and --threads only");
  arguments.grid_options.threads = arguments.threads;
  return arguments;
}

/// Hands its options to Google Benchmark, which may print and exit. Throws UsageError for unknown ones.
void initialize_benchmark(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data(), print_help);
  if (count > 1) throw UsageError("unknown option '" + std::string(pointers[1]) + "'");
}

// ---------------------------------------------------------------------------------------------------------------
// The report

/// Google Benchmark reports each case as if it were all; this makes one report of them, in the order in which
/// the benchmarks were registered: medians for the display, everything for the file.
class Report : public benchmark::BenchmarkReporter {
 public:
  /// file: null for none.
  explicit Report(std::ostream* file) : display_(benchmark::CreateDefaultDisplayReporter()) {
    if (file != nullptr) file_.emplace().SetOutputStream(file);
    SetErrorStream(&errors_);
  }

  bool ReportContext(const Context& context) override {
    if (std::exchange(begun_, true)) return true;
    constexpr std::size_t widest_name = 40;
    Context of_all = context;
    of_all.name_field_width = widest_name;
    return display_->ReportContext(of_all) && (!file_ || file_->ReportContext(of_all));
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    runs_.insert(runs_.end(), runs.begin(), runs.end());
  }

  /// The end of a case.
  void Finalize() override {
    std::stable_sort(runs_.begin(), runs_.end(),
                     [](const Run& a, const Run& b) { return a.family_index < b.family_index; });
    if (file_) file_->ReportRuns(runs_);
    std::erase_if(runs_,
                  [](const Run& run) { return run.repetitions > 1 && run.aggregate_name != "median"; });
    display_->ReportRuns(runs_);
    runs_.clear();
  }

  /// The end of all.
  void finish() {
    if (!begun_) return;
    display_->Finalize();
    if (file_) file_->Finalize();
  }

  /// The first line of what Google Benchmark complained about.
  std::string error() const {
    const std::string text = errors_.str();
    return text.substr(0, text.find('\n'));
  }

 private:
  benchmark::BenchmarkReporter* display_;  // Google Benchmark keeps it
  std::optional<benchmark::JSONReporter> file_;
  std::ostringstream errors_;  // most of them are cases without a benchmark that matches the filter
  std::vector<Run> runs_;
  bool begun_ = false;
};

// ---------------------------------------------------------------------------------------------------------------
// The benchmarks

/// The methods of a case and the problem they share, which is made when the first of them is run.
template <class Scalar>
class CaseRunner {
 public:
  explicit CaseRunner(const bench::Case& c) : case_(c), methods_(bench::methods<Scalar>(c)) {}

  void run(std::size_t m, benchmark::State& state) {
    if (!problem_) problem_ = std::make_unique<bench::Problem<Scalar>>(case_);
    if (prepared_.empty()) prepared_.resize(methods_.size());
    if (!prepared_[m]) prepared_[m] = problem_->prepare(methods_[m]);
    const bench::Prepared& prepared = *prepared_[m];
    for (auto _ : state) {
      prepared.run();
      benchmark::DoNotOptimize(problem_->result());
      benchmark::ClobberMemory();
    }
    using benchmark::Counter;
    const auto rate = [](double giga) { return Counter(giga, Counter::kIsIterationInvariantRate); };
    if (prepared.flops > 0) state.counters["GFLOP/s"] = rate(prepared.flops * 1e-9);
    if (prepared.expert_bytes > 0) state.counters["experts_GB/s"] = rate(prepared.expert_bytes * 1e-9);
  }

  const std::vector<bench::Method>& methods() const { return methods_; }

 private:
  bench::Case case_;
  std::vector<bench::Method> methods_;
  std::unique_ptr<bench::Problem<Scalar>> problem_;
  std::vector<std::optional<bench::Prepared>> prepared_;
};

template <class Scalar>
void register_case(const bench::Case& c) {
  const auto runner = std::make_shared<CaseRunner<Scalar>>(c);
  for (std::size_t m = 0; m < runner->methods().size(); ++m) {
    const std::string name = c.name + '/' + runner->methods()[m].name;
    benchmark::RegisterBenchmark(name.c_str(), [runner, m](benchmark::State& state) {
      runner->run(m, state);
    })->Unit(benchmark::kMillisecond);
  }
}

/// One case at a time, so that what is compared is interleaved closely and a case's memory is free for the
/// next. Returns the number of benchmarks that the filter let through.
std::size_t run_cases(Report& report) {
  std::size_t count = 0;
  for (const bench::Case& c : bench::all_cases()) {
    if (c.in_double) register_case<double>(c);
    else register_case<float>(c);
    count += benchmark::RunSpecifiedBenchmarks(&report);
    benchmark::ClearRegisteredBenchmarks();
  }
  return count;
}

/// Opens a file that is to be written, if one is asked for.
std::ofstream open(const std::optional<std::string>& path) {
  std::ofstream file;
  if (path) file.open(*path);
  return file;
}

/// Throws std::runtime_error if the file could not be written.
void check(const std::ofstream& file, const std::optional<std::string>& path) {
  if (!file) throw std::runtime_error("cannot write '" + *path + "'");
}

int run_grid(const Arguments& arguments) {
  std::ofstream file = open(arguments.csv);
  check(file, arguments.csv);
  const bench::GridResult result = bench::measure_grid(arguments.grid_options);
  bench::print_grid(std::cout, arguments.grid_options, result);
  std::cout << std::flush;
  if (arguments.csv) bench::write_grid_csv(file, result);
  file.flush();
  check(file, arguments.csv);
  return 0;
}

int run(const std::vector<std::string>& words) {
  Arguments arguments = parse(words);
  bench::set_threads(arguments.threads);
  if (arguments.grid) return run_grid(arguments);
  initialize_benchmark(arguments.others);
  benchmark::AddCustomContext("threads", std::to_string(arguments.threads));
  benchmark::AddCustomContext("machine", bench::describe_machine());
  benchmark::AddCustomContext("instructions", bench::instruction_sets());
  benchmark::AddCustomContext("compiler", bench::compiler);
  benchmark::AddCustomContext("dense_products", bench::describe_dense_products());

  std::ofstream file = open(arguments.out);
  check(file, arguments.out);
  Report report(arguments.out ? &file : nullptr);
  if (run_cases(report) == 0) throw UsageError(report.error());
  report.finish();
  file.flush();
  check(file, arguments.out);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_program("meo_bench", [&] { return run({argv, argv + argc}); });
}
