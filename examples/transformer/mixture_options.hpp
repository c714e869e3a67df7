#pragma once

/// The options that make the feed-forward blocks of a dense model mixtures: --ffn, --level, --segment-tokens,
/// --experts and --top-k.

#include <optional>
#include <string>

#include <meo/types.hpp>

#include "command_line.hpp"
#include "model/config.hpp"

namespace transformer {

class MixtureOptions {
 public:
  /// Whether the option is one of these, whose value it then takes. Throws UsageError for a wrong value.
  bool take(const std::string& option, CommandWords& words) {
    if (option == "--ffn") {
      const std::string& kind = words.value_of(option);
      if (kind != "moe" && kind != "meo") throw UsageError("--ffn: expected moe or meo, got '" + kind + "'");
      mixture_.kind = kind == "moe" ? Mixture::moe : Mixture::meo;
      return true;
    }
    if (option == "--level") mixture_.level = level(words.value_of(option));
    else if (option == "--segment-tokens") mixture_.segment_tokens = count(option, words);
    else if (option == "--experts") mixture_.experts = count(option, words);
    else if (option == "--top-k") mixture_.top_k = count(option, words);
    else return false;
    needs_kind_ = option;
    return true;
  }

  /// None without --ffn. Throws UsageError for options that lack one another.
  std::optional<MixtureConfig> mixture() const {
    if ((mixture_.level == meo::Level::segment) != (mixture_.segment_tokens > 0))
      throw UsageError("--level=segment and --segment-tokens need each other");
    if (mixture_.kind == Mixture::none) {
      if (!needs_kind_.empty()) throw UsageError(needs_kind_ + " needs --ffn");
      return std::nullopt;
    }
    MixtureConfig mixture = mixture_;
    mixture.reduce_factor = mixture.kind == Mixture::meo ? 64 : 16;
    return mixture;
  }

 private:
  static Index count(const std::string& option, CommandWords& words) {
    return whole_number<Index>(option, words.value_of(option), 1);
  }

  static meo::Level level(const std::string& text) {
    for (const meo::Level level :
         {meo::Level::token, meo::Level::sequence, meo::Level::task, meo::Level::segment}) {
      if (text == to_string(level)) return level;
    }
    throw UsageError("--level: expected token, sequence, task or segment, got '" + text + "'");
  }

  MixtureConfig mixture_;
  std::string needs_kind_;  ///< an option that says something about a mixture
};

}  // namespace transformer
