#pragma once

/// The command line.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/types.hpp>

#include "trainer.hpp"

namespace train_text {

using meo::Index;
using meo::Level;

inline constexpr std::string_view help_text = R"(usage: train_text [options] FILE...
       train_text [options] --domains

Learns from which file a window of bytes comes; validation windows are from parts
of the files that training never sees. With --domains it learns a made-up task in
which every window belongs to one of eight hidden domains, each with its own map.

  --layer=dense|moe|meo     feed-forward blocks                    (default meo)
  --level=token|sequence    what one gate decision covers     (default sequence)
  --experts=N --top-k=K                                           (default 8, 2)
  --width=D --hidden=H --blocks=L                            (default 64, 256, 2)
  --reduce-factor=R         MEO's token attention has D / R features  (default 8)
  --window=T --batch=B      bytes of a window, windows of a step  (default 64, 16)
  --steps=S                 to train to                            (default 400)
  --learning-rate=R                                              (default 0.001)
  --seed=N                                                           (default 1)
  --report=S                steps between two progress lines       (default 100)
  --log=FILE                a line of CSV for every progress line
  --experts-log=FILE        how every gate used its experts, as CSV
  --checkpoint=FILE         written at every progress line, whole or not at all
  --resume=FILE             a checkpoint to go on from, trained with the same data
                            and options, but for --steps, --report and files to
                            write; logs go on behind the checkpoint's step
)";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string layer = "meo", log, experts_log, checkpoint, resume;
  Level level = Level::sequence;
  Index experts = 8, top_k = 2, width = 64, hidden = 256, blocks = 2, reduce_factor = 8, window = 64,
        batch = 16, steps = 400, report = 100;
  double learning_rate = 1e-3;
  std::uint64_t seed = 1;
  bool domains = false, help = false;
  std::vector<std::string> files;
};

/// A whole number of at least `least`, and at most what the type holds.
template <class Integer>
Integer parse_whole(const std::string& option, const std::string& text, Integer least) {
  Integer value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    throw UsageError(option + " needs a whole number from " + std::to_string(least) + " to " +
                     std::to_string((std::numeric_limits<Integer>::max)()) + ", not '" + text + "'");
  }
  return value;
}

inline double parse_positive(const std::string& option, const std::string& text) {
  std::size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);  // not from_chars, which libc++ has for whole numbers only
  } catch (const std::exception&) {
  }
  if (end != text.size() || !(value > 0 && std::isfinite(value)))
    throw UsageError(option + " needs a positive number, not '" + text + "'");
  return value;
}

inline const std::string& parse_choice(const std::string& option, const std::string& text,
                                       std::initializer_list<std::string_view> choices) {
  if (std::find(choices.begin(), choices.end(), text) != choices.end()) return text;
  std::string all;
  for (const std::string_view choice : choices) all += (all.empty() ? "" : "|") + std::string(choice);
  throw UsageError(option + " needs " + all + ", not '" + text + "'");
}

inline const std::string& parse_path(const std::string& option, const std::string& text) {
  if (text.empty()) throw UsageError(option + " needs a file");
  return text;
}

/// Throws UsageError if a file to write is another one as well, which would lose one of them.
inline void require_distinct_files(const Arguments& a) {
  std::vector<std::pair<std::string, std::filesystem::path>> seen;
  const auto add = [&](const std::string& what, const std::string& path, bool is_written) {
    std::error_code error;
    if (path.empty() || std::filesystem::is_character_file(path, error)) return;  // /dev/null loses nothing
    const auto file = std::filesystem::weakly_canonical(path, error);
    for (const auto& [other, at] : seen) {
      if (is_written && at == file)
        throw UsageError(what + " and " + other + " are one file, '" + path + "'");
    }
    seen.emplace_back(what, file);
  };
  for (const std::string& file : a.files) add("what is learned from", file, false);
  add("--log", a.log, true);
  add("--experts-log", a.experts_log, true);
  add("--checkpoint", a.checkpoint, true);
}

/// Throws UsageError.
inline Arguments parse(const std::vector<std::string>& words) {
  Arguments a;
  for (const std::string& word : words) {
    const std::string option = word.substr(0, word.find('='));
    const std::string value = option == word ? "" : word.substr(option.size() + 1);
    const auto count = [&] { return parse_whole<Index>(option, value, 1); };
    if (!word.starts_with("--")) a.files.push_back(word);
    else if (word == "--help") a.help = true;
    else if (word == "--domains") a.domains = true;
    else if (option == "--layer") a.layer = parse_choice(option, value, {"dense", "moe", "meo"});
    else if (option == "--level")
      a.level =
          parse_choice(option, value, {"token", "sequence"}) == "token" ? Level::token : Level::sequence;
    else if (option == "--experts") a.experts = count();
    else if (option == "--top-k") a.top_k = count();
    else if (option == "--width") a.width = count();
    else if (option == "--hidden") a.hidden = count();
    else if (option == "--blocks") a.blocks = count();
    else if (option == "--reduce-factor") a.reduce_factor = count();
    else if (option == "--window") a.window = count();
    else if (option == "--batch") a.batch = count();
    else if (option == "--steps") a.steps = count();
    else if (option == "--report") a.report = count();
    else if (option == "--seed") a.seed = parse_whole<std::uint64_t>(option, value, 0);
    else if (option == "--learning-rate") a.learning_rate = parse_positive(option, value);
    else if (option == "--log") a.log = parse_path(option, value);
    else if (option == "--experts-log") a.experts_log = parse_path(option, value);
    else if (option == "--checkpoint") a.checkpoint = parse_path(option, value);
    else if (option == "--resume") a.resume = parse_path(option, value);
    else throw UsageError("unknown option '" + word + "'");
  }
  if (a.help) return a;
  if (a.domains != a.files.empty()) throw UsageError("expected files, or --domains alone");
  if (a.files.size() == 1) throw UsageError("expected at least two files");
  require_distinct_files(a);
  if (a.layer == "dense") {  // one expert, which MEO then uses where it lies
    a.experts = a.top_k = 1;
    a.level = Level::sequence;
  }
  return a;
}

/// What a run depends on, but for how far it goes. data: what the task says of itself.
inline Settings settings(const Arguments& a, const std::string& data) {
  char rate[32];  // the shortest number that is read as the same one
  const auto rate_end = std::to_chars(rate, rate + sizeof(rate), a.learning_rate).ptr;
  return {{"data", data},
          {"layer", a.layer},
          {"level", std::string(to_string(a.level))},
          {"experts", std::to_string(a.experts)},
          {"top-k", std::to_string(a.top_k)},
          {"width", std::to_string(a.width)},
          {"hidden", std::to_string(a.hidden)},
          {"blocks", std::to_string(a.blocks)},
          {"reduce-factor", std::to_string(a.reduce_factor)},
          {"window", std::to_string(a.window)},
          {"batch", std::to_string(a.batch)},
          {"learning-rate", std::string(rate, rate_end)},
          {"seed", std::to_string(a.seed)}};
}

}  // namespace train_text
