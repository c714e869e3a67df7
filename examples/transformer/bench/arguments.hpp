#pragma once

/// The command line of bench_model.

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../command_line.hpp"
#include "../model/config.hpp"
#include "../model/small_storage.hpp"

namespace transformer::bench {

inline constexpr std::string_view help_text = R"(usage: bench_model [options]

Times whole models with dense, MEO and MoE feed-forward blocks, in turn, in one run.

  --model M            bert (BERT-Base) or gpt2 (GPT-2 small)             (default bert)
  --head H             none: the model ends with its hidden states; mlm (BERT) or lm
                       (GPT-2): words at every token                      (default none)
  --training           time steps of training instead of inference
  --words W            time words that follow a text, the last W of it, one by one;
                       gpt2, one text
  --rows R,R,…         which of meo-sequence, meo-token, moe-token and moe-sequence to
                       time beside dense, gpt2 with segment in place of sequence; or
                       none                  (default all, with --training MEO's alone);
                       with -bf16, -half or -int8 behind its name experts are stored so
  --top-k K,K,…        experts that are selected                        (default 1,2,4,8)
  --experts N          of every feed-forward projection                       (default 8)
  --sequences B,B,…    texts of a batch                                     (default 8,1)
  --tokens T           of each text                                         (default 128)
  --segment-tokens S   of a segment, gpt2                                   (default 128)
  --threads C,C,…      more than 1 where it is compiled with OpenMP           (default 1)
  --repetitions R      of which seconds are the median                        (default 7)
  --layers, --width, --hidden, --heads, --vocabulary
                       other sizes than the model's
  --csv FILE           write the table to FILE, too

Scalars are floats. Each row is a model of its own with memory of its own for every
expert: copies of the dense model's weights times 1 + a random number of up to 1/32.
Seconds are by the clock, but those of one thread its own, which leave out what other
programs take. Gates are random with logits of unit variance over the rows that they
decide for; each text is made of 16 words of its own. A model that selects K experts is
made anew for each K; in each repetition all rows run once, in random order.

Before any timing, models whose experts are plain copies have to give the dense model's
outputs, and with --training its gradients, summed over the experts; and what the gates
of the timed models decide has to cost the FLOPs that the table says.

With --words a row's mixtures decide for the prompt, whose experts are merged once, and
for a row -anew mixed as their layer does for every word; those of moe-token decide for
each. Seconds and FLOPs are of one word.

Columns: FLOPs of a forward, two a multiply-add. Those of the feed-forward blocks are
what meo::flops counts, all else
  8 L T d²             projections of attention (L layers, T tokens in all, width d)
  4 L d Σ n²           scores and weighted values (texts of n tokens); gpt2, whose tokens
                       see none that follow them, 2 L d Σ n (n + 1)
  2 T V d              with a head (V words); mlm 2 T d² more
A step of training is forward, with the gates' noise and without dropout, backward and
AdamW over all parameters; the seconds of AdamW, with setting gradients to zero, are
also a column of their own.

Exit code: 0 fine, 1 a model computes something else or FILE cannot be written, 2 wrong
options.
)";

/// Feed-forward blocks that are timed.
struct Row {
  std::string name;
  MixtureConfig mixture;  ///< of as many selected experts as is said later
};

struct Arguments {
  Config config;
  bool training = false;
  Index words = 0;        ///< that follow a text; 0: passes are timed
  std::vector<Row> rows;  ///< without dense
  std::vector<Index> top_k{1, 2, 4, 8}, sequences{8, 1}, threads{1};
  Index experts = 8;
  Index tokens = 128;
  Index repetitions = 7;
  std::optional<std::string> csv;
  bool help = false;

  bool has_head() const { return config.task != Task::hidden_states; }
};

inline std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts{""};
  for (const char c : text) {
    if (c == ',') parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

inline Index count_of(const std::string& option, const std::string& text) {
  constexpr Index most = 1'000'000;
  Index value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most)
    throw UsageError(option + ": expected a whole number from 1 to 1000000, got '" + text + "'");
  return value;
}

inline std::vector<Index> counts_of(const std::string& option, const std::string& text) {
  std::vector<Index> counts;
  for (const std::string& part : parts_of(text)) counts.push_back(count_of(option, part));
  return counts;
}

inline Config base_config(Family family) {
  const bool is_bert = family == Family::bert;
  return {.family = family,
          .task = Task::hidden_states,
          .vocabulary = is_bert ? 30522 : 50257,
          .width = 768,
          .layers = 12,
          .heads = 12,
          .hidden = 3072,
          .positions = is_bert ? 512 : 1024,
          .activation = is_bert ? meo::AnyActivation::Kind::gelu : meo::AnyActivation::Kind::gelu_tanh,
          .norm_epsilon = is_bert ? 1e-12 : 1e-5};
}

/// names: none for all.
inline std::vector<Row> rows_of(const std::vector<std::string>& names, const Arguments& arguments,
                                Index segment_tokens) {
  const meo::Level whole =
      arguments.config.family == Family::bert ? meo::Level::sequence : meo::Level::segment;
  std::vector<Row> known;
  for (const auto& [kind, level] :
       {std::pair(Mixture::meo, whole), std::pair(Mixture::meo, meo::Level::token),
        std::pair(Mixture::moe, meo::Level::token), std::pair(Mixture::moe, whole)}) {
    known.push_back({std::string(kind == Mixture::meo ? "meo-" : "moe-").append(to_string(level)),
                     {.kind = kind,
                      .level = level,
                      .segment_tokens = level == meo::Level::segment ? segment_tokens : 0,
                      .experts = arguments.experts,
                      .reduce_factor = kind == Mixture::meo ? 64 : 16}});
  }
  if (names == std::vector<std::string>{"none"}) return {};
  const std::vector<Row> of_floats = known;
  if (names.empty()) {
    if (arguments.training)
      std::erase_if(known, [](const Row& row) { return row.mixture.kind != Mixture::meo; });
    return known;
  }
  for (const Row& row : of_floats) {
    for (const Storage* storage : small_storages()) {
      Row& small = known.emplace_back(row);
      small.name.append("-").append(storage->name());
      small.mixture.storage = storage;
    }
  }
  std::vector<Row> rows;
  for (const std::string& name : names) {
    const auto row =
        std::find_if(known.begin(), known.end(), [&](const Row& other) { return other.name == name; });
    if (row == known.end()) {
      std::string all;
      for (const Row& other : of_floats) all += other.name + ", ";
      throw UsageError("--rows: expected " + all + "or none alone, got '" + name + "'");
    }
    rows.push_back(*row);
  }
  return rows;
}

/// Throws UsageError for what fits none of the models.
inline void check_arguments(const Arguments& arguments) {
  if (const Index most = *std::max_element(arguments.top_k.begin(), arguments.top_k.end());
      most > arguments.experts) {
    throw UsageError("--top-k: expected at most --experts = " + std::to_string(arguments.experts) + ", got " +
                     std::to_string(most));
  }
  if (arguments.tokens > arguments.config.positions) {
    throw UsageError("--tokens: expected at most the model's " + std::to_string(arguments.config.positions) +
                     " positions, got " + std::to_string(arguments.tokens));
  }
  if (arguments.config.width % arguments.config.heads != 0) {
    throw UsageError("--width: expected a multiple of --heads = " + std::to_string(arguments.config.heads) +
                     ", got " + std::to_string(arguments.config.width));
  }
  if (arguments.words > 0) {
    if (arguments.config.family != Family::gpt2 || arguments.training)
      throw UsageError("--words: expected --model=gpt2, without --training");
    if (arguments.words >= arguments.tokens) {
      throw UsageError("--words: expected less than --tokens = " + std::to_string(arguments.tokens) +
                       ", got " + std::to_string(arguments.words));
    }
    if (arguments.sequences != std::vector<Index>{1})
      throw UsageError("--words: expected --sequences=1, as words follow one text");
  }
  for (const Row& row : arguments.rows) {
    if (arguments.training && row.mixture.storage != nullptr)
      throw UsageError("--training: expected experts of floats, got " + row.name);
  }
#if !defined(_OPENMP)
  if (arguments.threads != std::vector<Index>{1})
    throw UsageError("--threads: expected 1, as the program is compiled without OpenMP");
#endif
}

/// words: of the command line, "--name value" or "--name=value". Throws UsageError.
inline Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  std::vector<std::pair<std::string, std::string>> values;  // options with one
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const std::size_t equals = word.find('=');
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--training") arguments.training = true;
    else if (!word.starts_with("--")) throw UsageError("unexpected '" + word + "'");
    else if (equals != std::string::npos)
      values.emplace_back(word.substr(0, equals), word.substr(equals + 1));
    else if (i + 1 == words.size()) throw UsageError(word + " needs a value");
    else values.emplace_back(word, words[++i]);
  }
  if (arguments.help) return arguments;

  Family family = Family::bert;
  for (const auto& [option, value] : values) {
    if (option != "--model") continue;
    if (value != "bert" && value != "gpt2")
      throw UsageError("--model: expected bert or gpt2, got '" + value + "'");
    family = value == "bert" ? Family::bert : Family::gpt2;
  }
  Config& config = arguments.config = base_config(family);
  const std::string head = family == Family::bert ? "mlm" : "lm";
  Index segment_tokens = 128;
  std::vector<std::string> rows;
  const std::array<std::pair<std::string_view, Index*>, 10> counts{{{"--experts", &arguments.experts},
                                                                    {"--words", &arguments.words},
                                                                    {"--tokens", &arguments.tokens},
                                                                    {"--repetitions", &arguments.repetitions},
                                                                    {"--segment-tokens", &segment_tokens},
                                                                    {"--layers", &config.layers},
                                                                    {"--width", &config.width},
                                                                    {"--hidden", &config.hidden},
                                                                    {"--heads", &config.heads},
                                                                    {"--vocabulary", &config.vocabulary}}};
  for (const auto& [option, value] : values) {
    if (option == "--words") arguments.sequences = {1};
  }
  const std::array<std::pair<std::string_view, std::vector<Index>*>, 3> lists{
      {{"--top-k", &arguments.top_k},
       {"--sequences", &arguments.sequences},
       {"--threads", &arguments.threads}}};
  for (const auto& [option, value] : values) {
    const auto is_named = [&name = option](const auto& known) { return known.first == name; };
    const auto one = std::find_if(counts.begin(), counts.end(), is_named);
    const auto list = std::find_if(lists.begin(), lists.end(), is_named);
    if (one != counts.end()) {
      *one->second = count_of(option, value);
    } else if (list != lists.end()) {
      *list->second = counts_of(option, value);
    } else if (option == "--rows") {
      rows = parts_of(value);
    } else if (option == "--csv") {
      arguments.csv = value;
    } else if (option == "--head") {
      if (value != "none" && value != head)
        throw UsageError("--head: expected none or " + head + ", got '" + value + "'");
      config.task = value == "none"          ? Task::hidden_states
                    : family == Family::bert ? Task::masked_words
                                             : Task::next_word;
    } else if (option != "--model") {
      throw UsageError("unknown option '" + option + "'");
    }
  }
  arguments.rows = rows_of(rows, arguments, segment_tokens);
  check_arguments(arguments);
  return arguments;
}

}  // namespace transformer::bench
