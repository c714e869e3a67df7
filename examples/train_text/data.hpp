#pragma once

/// What is learned: from which file a window of bytes comes, or a made-up task of hidden domains.

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/types.hpp>

namespace train_text {

using meo::Index;

/// Uniform on 0 … count − 1; written out, so that a seed means the same with every standard library.
inline Index draw(std::mt19937_64& rng, Index count) {
  return static_cast<Index>(rng() % static_cast<std::uint64_t>(count));
}

/// Windows of bytes, one after another, with their classes.
struct Batch {
  Index window;
  std::vector<unsigned char> bytes;
  std::vector<Index> labels;

  Index size() const { return static_cast<Index>(labels.size()); }
  void add(const unsigned char* from, Index label) {
    bytes.insert(bytes.end(), from, from + window);
    labels.push_back(label);
  }
};

/// Throws std::runtime_error that names the file.
inline std::vector<unsigned char> read_file(const std::string& path) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw std::runtime_error("cannot read '" + path + "': " + error.message());
  std::vector<unsigned char> bytes(static_cast<std::size_t>(size));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (!file) throw std::runtime_error("cannot read '" + path + "'");
  return bytes;
}

/// What a model is trained for.
class Task {
 public:
  virtual ~Task() = default;

  /// What tells this task from another.
  virtual std::string description() const = 0;
  virtual Index classes() const = 0;
  /// `count` windows for a step.
  virtual Batch training(std::mt19937_64& rng, Index count) const = 0;
  /// About `count` windows that are not trained with.
  virtual Batch validation(Index count) const = 0;
};

/// Every file is a class. A file is cut into 20 stretches; each fifth is for validation, and no window
/// crosses from one to the other.
class FileTask : public Task {
 public:
  /// Throws std::runtime_error for a file that cannot be read or is too short.
  FileTask(const std::vector<std::string>& paths, Index window) : window_(window) {
    for (const std::string& path : paths) {
      files_.push_back(read_file(path));
      if (size_of(classes() - 1) / stretches < window) {
        throw std::runtime_error("'" + path + "': expected at least " + std::to_string(stretches) +
                                 " windows of " + std::to_string(window) + " bytes, got " +
                                 std::to_string(size_of(classes() - 1)) + " bytes");
      }
    }
  }

  /// The sizes of the files.
  std::string description() const override {
    std::string text = "files of ";
    for (Index file = 0; file < classes(); ++file)
      text += (file == 0 ? "" : ", ") + std::to_string(size_of(file));
    return text + " bytes";
  }

  Index classes() const override { return static_cast<Index>(files_.size()); }

  Batch training(std::mt19937_64& rng, Index count) const override {
    Batch batch{window_, {}, {}};
    while (batch.size() < count) {
      const Index file = draw(rng, classes()), stretch = draw(rng, stretches);
      if (is_validation(stretch)) continue;
      const Index begin = begin_of(file, stretch), end = begin_of(file, stretch + 1);
      batch.add(window_at(file, begin + draw(rng, end - begin - window_ + 1)), file);
    }
    return batch;
  }

  /// As many windows of each file, `count` in all but for a remainder, spread evenly over its validation
  /// stretches. In a short file they overlap.
  Batch validation(Index count) const override {
    Batch batch{window_, {}, {}};
    const Index per_file = count / classes();
    for (Index file = 0; file < classes(); ++file) {
      std::vector<Index> begins;
      for (Index stretch = 0; stretch < stretches; ++stretch) {
        if (!is_validation(stretch)) continue;
        for (Index at = begin_of(file, stretch); at + window_ <= begin_of(file, stretch + 1); ++at)
          begins.push_back(at);
      }
      const auto found = static_cast<Index>(begins.size());
      for (Index i = 0; i < per_file; ++i)
        batch.add(window_at(file, begins[static_cast<std::size_t>(i * found / per_file)]), file);
    }
    return batch;
  }

 private:
  static constexpr Index stretches = 20;
  static bool is_validation(Index stretch) { return stretch % 5 == 2; }

  Index size_of(Index file) const {
    return static_cast<Index>(files_[static_cast<std::size_t>(file)].size());
  }
  Index begin_of(Index file, Index stretch) const { return size_of(file) * stretch / stretches; }
  const unsigned char* window_at(Index file, Index at) const {
    return files_[static_cast<std::size_t>(file)].data() + at;
  }

  Index window_;
  std::vector<std::vector<unsigned char>> files_;
};

/// Experts matter by construction: every window belongs to one of eight hidden domains, which a quarter of
/// its bytes name. The others are random symbols, and the domain has a map of its own from symbols to four
/// classes; the label is the class that most symbols have. Windows without such a class are drawn again, so
/// that no class is more likely than another.
class DomainTask : public Task {
 public:
  /// Throws std::runtime_error for windows too short to have a symbol.
  DomainTask(std::uint64_t seed, Index window) : window_(window), validation_seed_(seed + 1) {
    if (window < 2) {
      throw std::runtime_error("domains: expected windows of at least 2 bytes, got " +
                               std::to_string(window));
    }
    std::mt19937_64 rng(seed);
    for (auto& map : maps_) {  // as many symbols of each class, shuffled
      for (std::size_t i = 0; i < map.size(); ++i) {
        const auto j = static_cast<std::size_t>(draw(rng, static_cast<Index>(i) + 1));
        map[i] = map[j];
        map[j] = static_cast<Index>(i) % classes();
      }
    }
  }

  std::string description() const override { return "domains"; }

  Index classes() const override { return 4; }

  Batch training(std::mt19937_64& rng, Index count) const override {
    Batch batch{window_, {}, {}};
    std::vector<unsigned char> bytes(static_cast<std::size_t>(window_));
    while (batch.size() < count) {
      const auto domain = static_cast<std::size_t>(draw(rng, domains));
      std::array<Index, 4> votes{};
      for (std::size_t t = 0; t < bytes.size(); ++t) {
        if (t % 4 == 0) {
          bytes[t] = static_cast<unsigned char>(symbols + static_cast<Index>(domain));
          continue;
        }
        const auto symbol = static_cast<std::size_t>(draw(rng, symbols));
        bytes[t] = static_cast<unsigned char>(symbol);
        ++votes[static_cast<std::size_t>(maps_[domain][symbol])];
      }
      const auto most = std::max_element(votes.begin(), votes.end());
      if (std::count(votes.begin(), votes.end(), *most) == 1) batch.add(bytes.data(), most - votes.begin());
    }
    return batch;
  }

  Batch validation(Index count) const override {
    std::mt19937_64 rng(validation_seed_);
    return training(rng, count);
  }

 private:
  static constexpr Index domains = 8;
  static constexpr Index symbols = 32;

  Index window_;
  std::uint64_t validation_seed_;
  std::array<std::array<Index, symbols>, domains> maps_;
};

}  // namespace train_text
