// The windows of examples/train_text's files: where they come from, and which files are refused.

#include <cstddef>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/train_text/data.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace train_text_data_test {

using namespace train_text;

constexpr Index window = 8;

/// A file and a byte of it.
using Position = std::pair<Index, Index>;

/// Files of random bytes, of which no two windows are alike: a window tells where it comes from.
class Files {
 public:
  explicit Files(const std::vector<Index>& sizes) : sizes_(sizes) {
    std::mt19937_64 rng(1);
    for (std::size_t file = 0; file < sizes.size(); ++file) {
      std::string text;
      for (Index i = 0; i < sizes[file]; ++i) text += static_cast<char>(rng() % 256);
      paths_.push_back((folder_ / std::to_string(file)).string());
      std::ofstream(paths_.back(), std::ios::binary) << text;
      for (Index at = 0; at + window <= sizes[file]; ++at) {
        const Position position(static_cast<Index>(file), at);
        REQUIRE(positions_.emplace(text.substr(static_cast<std::size_t>(at), window), position).second);
      }
    }
  }

  const std::vector<std::string>& paths() const { return paths_; }

  /// Where the windows of a batch begin, in its order; each must be of the file that its label says.
  std::vector<Position> positions_of(const Batch& batch) const {
    std::vector<Position> positions;
    for (Index b = 0; b < batch.size(); ++b) {
      const auto begin = batch.bytes.begin() + b * window;
      const auto found = positions_.find(std::string(begin, begin + window));
      REQUIRE(found != positions_.end());
      REQUIRE(found->second.first == batch.labels[static_cast<std::size_t>(b)]);
      positions.push_back(found->second);
    }
    return positions;
  }

  /// Every window that lies within a stretch, a twentieth of its file, for validation or for training.
  std::set<Position> windows_of_stretches(bool validation) const {
    std::set<Position> windows;
    for (std::size_t file = 0; file < sizes_.size(); ++file) {
      for (Index stretch = 0; stretch < 20; ++stretch) {
        const bool is_fifth = stretch == 2 || stretch == 7 || stretch == 12 || stretch == 17;
        const Index end = sizes_[file] * (stretch + 1) / 20;
        for (Index at = sizes_[file] * stretch / 20; is_fifth == validation && at + window <= end; ++at)
          windows.emplace(static_cast<Index>(file), at);
      }
    }
    return windows;
  }

 private:
  meo::test::Folder folder_;
  std::vector<Index> sizes_;
  std::vector<std::string> paths_;
  std::map<std::string, Position> positions_;
};

std::set<Position> bytes_of(const std::vector<Position>& windows) {
  std::set<Position> bytes;
  for (const auto& [file, begin] : windows) {
    for (Index i = 0; i < window; ++i) bytes.emplace(file, begin + i);
  }
  return bytes;
}

// The first file is as short as may be, so that a stretch is one window; the others do not divide by 20.
const std::vector<Index> sizes{20 * window, 20 * window + 33, 20 * window + 99};

TEST_CASE("training draws every window of the stretches that are for it, and no other", "[train_text]") {
  const Files files(sizes);
  const FileTask task(files.paths(), window);
  CHECK(task.classes() == 3);
  std::mt19937_64 rng(2);
  const Batch batch = task.training(rng, 10000);
  CHECK(batch.size() == 10000);
  const std::vector<Position> trained = files.positions_of(batch);
  CHECK(std::set(trained.begin(), trained.end()) == files.windows_of_stretches(false));
}

TEST_CASE("validation takes as many windows of each file, from stretches that training never sees",
          "[train_text]") {
  const Files files(sizes);
  const FileTask task(files.paths(), window);
  const std::set<Position> possible = files.windows_of_stretches(true);
  for (const Index count : {3, 14, 100, 1000}) {
    CAPTURE(count);
    const Batch batch = task.validation(count);
    CHECK(batch.size() == count / 3 * 3);
    const std::vector<Position> validated = files.positions_of(batch);
    std::map<Index, Index> of_file;
    for (const Position& position : validated) {
      CHECK(possible.contains(position));
      ++of_file[position.first];
    }
    CHECK(of_file == std::map<Index, Index>{{0, count / 3}, {1, count / 3}, {2, count / 3}});
    // More windows than there are: each of them, some more than once.
    if (count == 1000) CHECK(std::set(validated.begin(), validated.end()) == possible);
  }

  std::mt19937_64 rng(3);
  const std::set<Position> trained = bytes_of(files.positions_of(task.training(rng, 10000)));
  const std::set<Position> validated = bytes_of(files.positions_of(task.validation(1000)));
  for (const Position& byte : validated) CHECK_FALSE(trained.contains(byte));
}

TEST_CASE("validation windows are spread over all stretches for validation", "[train_text]") {
  const Files files({20 * 50, 20 * 70});
  const std::vector<Position> validated =
      files.positions_of(FileTask(files.paths(), window).validation(2 * 4));
  // Four windows of each file are the first of its four stretches, which have as many windows.
  std::vector<Position> expected;
  for (const Index file : {0, 1}) {
    for (const Index stretch : {2, 7, 12, 17}) expected.emplace_back(file, stretch * (file == 0 ? 50 : 70));
  }
  CHECK(validated == expected);
}

TEST_CASE("files that are missing, no files or too short are refused by name", "[train_text]") {
  const Files files({20 * window, 20 * window - 1});
  const meo::test::Folder folder;
  const auto lacks = [&](const std::string& path, std::initializer_list<std::string> parts) {
    const std::vector<std::string> paths{files.paths()[0], path};
    const std::string error =
        meo::test::error_lacks<std::runtime_error>([&] { FileTask task(paths, window); }, parts);
    return error != "" ? error
                       : meo::test::error_lacks<std::runtime_error>([&] { FileTask task(paths, window); },
                                                                    {"'" + path + "'"});
  };
  CHECK(lacks(files.paths()[1], {"expected at least 20 windows of 8 bytes", "got 159 bytes"}) == "");
  CHECK(lacks((folder / "missing").string(), {"cannot read", "No such file"}) == "");
  CHECK(lacks((folder / "").string(), {"cannot read"}) == "");  // the folder itself
  const std::string empty = (folder / "empty").string();
  std::ofstream(empty).close();
  CHECK(lacks(empty, {"got 0 bytes"}) == "");
  // So many bytes that twenty windows of them cannot be counted.
  CHECK(meo::test::error_lacks<std::runtime_error>(
            [&] { FileTask task({files.paths()[0]}, std::numeric_limits<Index>::max()); },
            {"20 windows of", "got 160 bytes"}) == "");
}

TEST_CASE("tasks say what tells them apart", "[train_text]") {
  const Files files({20 * window, 20 * window + 1});
  CHECK(FileTask(files.paths(), window).description() == "files of 160, 161 bytes");
  CHECK(DomainTask(1, window).description() == "domains");
}

TEST_CASE("hidden domains need a symbol in a window", "[train_text]") {
  CHECK(meo::test::error_lacks<std::runtime_error>([] { DomainTask task(1, 1); },
                                                   {"at least 2 bytes", "got 1"}) == "");
  std::mt19937_64 rng(4);
  CHECK(DomainTask(1, 2).training(rng, 5).size() == 5);
}

}  // namespace train_text_data_test
}  // namespace
