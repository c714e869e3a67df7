#pragma once

/// Texts to learn words from, as token ids. Empty lines divide a file into documents, and its end ends one;
/// no window has parts of two.

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/types.hpp>

#include "../text/files.hpp"
#include "../train/random.hpp"

namespace transformer {

/// The tokens of a text.
using Tokenize = std::function<std::vector<Index>(std::string_view)>;

class Corpus {
 public:
  /// window: most tokens of one. Throws meo::io::Error for files that cannot be read, or have too few tokens.
  Corpus(const std::vector<std::string>& files, Index window, const Tokenize& tokenize) : window_(window) {
    for (const std::string& file : files) {
      const std::size_t before = words_.size();
      std::string document;
      const auto end_document = [&] {
        const std::vector<Index> words = tokenize(document);
        document.clear();
        if (words.size() < 2) return;
        words_.insert(words_.end(), words.begin(), words.end());
        ends_.push_back(static_cast<Index>(words_.size()));
      };
      for_each_line(load_file(file), [&](std::string_view line) {
        if (line.find_first_not_of(" \t") != std::string_view::npos) document.append(line) += '\n';
        else end_document();
      });
      end_document();
      if (words_.size() == before) throw meo::io::Error(file, "expected at least two tokens, got fewer");
    }
    for (Index d = 0; d < documents(); ++d)
      window_counts_.push_back((d == 0 ? 0 : window_counts_.back()) +
                               (std::max)(Index{1}, end(d) - begin(d) - window + 1));
  }

  Index documents() const { return static_cast<Index>(ends_.size()); }
  Index tokens() const { return static_cast<Index>(words_.size()); }
  std::span<const Index> words() const { return words_; }

  /// One that begins anywhere in a document where as many tokens follow, or a whole shorter document.
  std::span<const Index> random_window(std::mt19937_64& rng) const {
    const Index drawn = draw_below(rng, window_counts_.back());
    const auto found = std::upper_bound(window_counts_.begin(), window_counts_.end(), drawn);
    const Index document = found - window_counts_.begin();
    const Index first = document == 0 ? 0 : window_counts_[static_cast<std::size_t>(document) - 1];
    return from(begin(document) + drawn - first, document);
  }

  /// All texts, a window behind the other.
  std::vector<std::span<const Index>> windows() const {
    std::vector<std::span<const Index>> all;
    for (Index d = 0; d < documents(); ++d) {
      for (Index at = begin(d); at + 1 < end(d); at += window_) all.push_back(from(at, d));
    }
    return all;
  }

 private:
  Index begin(Index document) const {
    return document == 0 ? 0 : ends_[static_cast<std::size_t>(document) - 1];
  }
  Index end(Index document) const { return ends_[static_cast<std::size_t>(document)]; }

  std::span<const Index> from(Index at, Index document) const {
    const Index count = (std::min)(window_, end(document) - at);
    return std::span(words_).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count));
  }

  Index window_;
  std::vector<Index> words_;
  std::vector<Index> ends_;           ///< of each document
  std::vector<Index> window_counts_;  ///< of it and those before
};

}  // namespace transformer
