/// Times whole models with dense, MoE and MEO feed-forward blocks: one learns what experts cost in a model.
/// `--help` says how. To be measured, it is built for this machine's instructions:
///
///     cmake --preset bench -D MEO_BUILD_EXAMPLES=ON && cmake --build build/bench --target bench_model

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "bench/arguments.hpp"
#include "bench/random_gates.hpp"
#include "bench/subject.hpp"
#include "bench/verify.hpp"
#include "model/model_flops.hpp"

template class transformer::Model<float>;  // with this program's OpenMP

namespace {

using namespace transformer;
using namespace transformer::bench;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// A line of the table.
struct Line {
  std::string row;
  Index top_k, texts, tokens, threads;
  ModelFlops flops;
  double seconds, ratio, optimizer_seconds;
};

/// Prints lines as they come, and to a CSV file.
class Table {
 public:
  /// Throws std::runtime_error for a file that cannot be written.
  explicit Table(const Arguments& arguments)
      : training_(arguments.training), decimals_(arguments.words > 0 ? 6 : 4) {
    if (arguments.csv) {
      csv_.open(*arguments.csv);
      csv_ << "model,head,pass,row,experts,top_k,texts,tokens,threads,flops,feed_forward_flops,seconds,ratio,"
              "adamw_seconds\n";
      require_written(*arguments.csv);
      csv_name_ = *arguments.csv;
    }
    const bool is_bert = arguments.config.family == Family::bert;
    csv_start_ = std::string(is_bert ? "bert," : "gpt2,") +
                 (!arguments.has_head() ? "none,"
                  : is_bert             ? "mlm,"
                                        : "lm,") +
                 (training_             ? "training,"
                  : arguments.words > 0 ? "word,"
                                        : "forward,");
    experts_ = arguments.experts;
    std::cout << std::left << std::setw(22) << "row" << std::right << std::setw(3) << "K" << std::setw(12)
              << "batch" << std::setw(9) << "threads" << std::setw(12) << "GFLOPs" << std::setw(14)
              << "feed-forward" << std::setw(11) << "seconds" << std::setw(8) << "ratio"
              << (training_ ? "    AdamW" : "") << '\n';
  }

  void add(const Line& line) {
    std::cout << std::left << std::setw(22) << line.row << std::right << std::setw(3) << line.top_k
              << std::setw(12) << std::to_string(line.texts) + " x " + std::to_string(line.tokens)
              << std::setw(9) << line.threads << std::fixed << std::setprecision(2) << std::setw(12)
              << giga(line.flops.total()) << std::setw(14) << giga(line.flops.feed_forward)
              << std::setprecision(decimals_) << std::setw(11) << line.seconds << std::setprecision(3)
              << std::setw(8) << line.ratio;
    if (training_) std::cout << std::setprecision(4) << std::setw(9) << line.optimizer_seconds;
    std::cout << std::endl;
    if (!csv_.is_open()) return;
    csv_ << csv_start_ << line.row << ',' << experts_ << ',' << line.top_k << ',' << line.texts << ','
         << line.tokens << ',' << line.threads << ',' << line.flops.total() << ',' << line.flops.feed_forward
         << ',' << line.seconds << ',' << line.ratio << ',' << line.optimizer_seconds << std::endl;
    require_written(csv_name_);
  }

 private:
  static double giga(std::int64_t flops) { return static_cast<double>(flops) * 1e-9; }

  void require_written(const std::string& name) const {
    if (!csv_) throw std::runtime_error("--csv: cannot write to " + name);
  }

  bool training_;
  int decimals_;  ///< of seconds
  Index experts_ = 0;
  std::string csv_start_, csv_name_;
  std::ofstream csv_;
};

void use_threads([[maybe_unused]] Index threads) {
#if defined(_OPENMP)
  omp_set_num_threads(static_cast<int>(threads));
#endif
}

class Bench {
 public:
  explicit Bench(const Arguments& arguments) : arguments_(arguments), table_(arguments) {
    for (const Index texts : arguments.sequences) {
      work_.push_back(random_work(arguments.config, texts, arguments.tokens, rng_));
    }
    subjects_.push_back(std::make_unique<Subject>("dense", arguments.config));
    randomize(dense().model(), rng_);
    if (arguments.training) dense().prepare_training();
  }

  void run() {
    for (const Index top_k : arguments_.top_k) {
      subjects_.resize(1);  // the others' memory is needed for those of this top_k
      for (const Row& row : arguments_.rows) add(row, top_k);
      for (const Work& work : work_) {
        prepare(work);
        for (const Index threads : arguments_.threads) {
          use_threads(threads);
          time(work, top_k, threads);
        }
      }
    }
  }

 private:
  Subject& dense() { return *subjects_.front(); }

  /// Makes the row's model, and verifies it as copies of the dense one.
  void add(const Row& row, Index top_k) {
    Config config = arguments_.config;
    config.mixture = row.mixture;
    config.mixture.top_k = top_k;
    Subject& subject = *subjects_.emplace_back(std::make_unique<Subject>(row.name, config));
    copy_dense(dense().model(), subject.model());
    if (arguments_.training) subject.prepare_training();
    for (const Work& work : work_) {
      verify_outputs(dense(), subject, work, context_);
      if (arguments_.training) verify_gradients(dense(), subject, work, context_);
      if (arguments_.words > 0) verify_words(dense(), subject, work, arguments_.words, context_);
    }
    set_apart(subject.model(), rng_);
  }

  /// Sets the gates for the batch, and verifies what they decide.
  void prepare(const Work& work) {
    if (subjects_.size() == 1) return;
    const Training<float> without_noise;
    Model<float>::Context of_dense;
    dense().model().forward(work.batch, &without_noise, of_dense);
    for (std::size_t i = 1; i < subjects_.size(); ++i) {
      set_random_gates(subjects_[i]->model(), dense().model(), of_dense, work.batch, rng_);
      verify_routings(*subjects_[i], work, context_);
    }
  }

  /// A line to be.
  struct Timed {
    Subject* subject;
    Merging merging;  ///< of words that follow a text

    std::string name() const { return subject->name() + (merging == Merging::anew ? "-anew" : ""); }
  };

  std::vector<Timed> timed() const {
    std::vector<Timed> all;
    for (const auto& subject : subjects_) {
      all.push_back({subject.get(), Merging::once});
      if (arguments_.words > 0 && keeps_decisions(subject->model().config().mixture))
        all.push_back({subject.get(), Merging::anew});
    }
    return all;
  }

  Seconds run(const Timed& timed, const Work& work) {
    if (arguments_.words == 0) return timed.subject->run(work, rng_, context_);
    return {.passes = timed.subject->run_words(work, arguments_.words, timed.merging, context_)};
  }

  /// Of a pass, or of a word: of that in the middle, as FLOPs grow evenly.
  ModelFlops flops(const Timed& timed, const Work& work) const {
    const Config& config = timed.subject->model().config();
    if (arguments_.words == 0) return model_flops(config, arguments_.has_head(), work.batch.sequences);
    return word_flops(config, arguments_.has_head(), arguments_.tokens - (arguments_.words + 1) / 2,
                      timed.merging);
  }

  void time(const Work& work, Index top_k, Index threads) {
    const std::vector<Timed> lines = timed();
    std::vector<std::vector<double>> total(lines.size()), optimizer(lines.size());
    std::vector<std::size_t> order(lines.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (const Timed& line : lines) run(line, work);  // grows memory
    for (Index repetition = 0; repetition < arguments_.repetitions; ++repetition) {
      std::shuffle(order.begin(), order.end(), rng_);
      for (const std::size_t i : order) {
        const Seconds seconds = run(lines[i], work);
        total[i].push_back(seconds.total());
        optimizer[i].push_back(seconds.optimizer);
      }
    }
    for (std::size_t i = 0; i < lines.size(); ++i) {
      table_.add({.row = lines[i].name(),
                  .top_k = top_k,
                  .texts = work.batch.sequences.size(),
                  .tokens = arguments_.tokens,
                  .threads = threads,
                  .flops = flops(lines[i], work),
                  .seconds = median(total[i]),
                  .ratio = median(total[i]) / median(total[0]),
                  .optimizer_seconds = median(optimizer[i])});
    }
  }

  const Arguments& arguments_;
  std::mt19937_64 rng_{42};
  Table table_;
  std::vector<Work> work_;
  std::vector<std::unique_ptr<Subject>> subjects_;  // the dense model first
  Model<float>::Context context_;
};

}  // namespace

int main(int argc, char** argv) {
  return transformer::exit_code_of("bench_model", [&] {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << help_text;
    else Bench(arguments).run();
  });
}
