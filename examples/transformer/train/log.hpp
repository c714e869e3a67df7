#pragma once

/// Logs in CSV that a resumed run goes on with.

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include <meo/io/output_file.hpp>
#include <meo/types.hpp>

namespace transformer {

using meo::Index;

/// Lines that begin with the step at which they were written. Without a path nothing is written.
class Log {
 public:
  /// After `step` steps of training. At 0 the log begins anew; else it goes on with what is in the file.
  /// Lines of later steps, which an interrupted run wrote after its last checkpoint, go, and so does a line
  /// without an end. Nothing is changed before the first line comes. Throws std::runtime_error for a file
  /// with another header and for one that cannot be written.
  Log(std::string path, std::string header, Index step) : path_(std::move(path)), header_(std::move(header)) {
    if (path_.empty()) return;
    require_writable();
    if (step == 0 || !std::filesystem::is_regular_file(path_)) return;
    std::ifstream file(path_, std::ios::binary);
    std::string line;
    for (bool first = true; std::getline(file, line) && !file.eof(); first = false) {
      if (first && line != header_)
        throw std::runtime_error("'" + path_ + "': expected the header '" + header_ + "', got '" + line +
                                 "'");
      if (!first && !is_of_step(line, step)) break;
      kept_bytes_ += line.size() + 1;
    }
  }

  /// The lines are in the file when it returns. Throws std::runtime_error if they cannot be written.
  void add(const std::string& lines) {
    if (path_.empty()) return;
    if (!file_.is_open()) open();
    write(lines);
  }

 private:
  void open() {
    if (kept_bytes_ > 0) std::filesystem::resize_file(path_, kept_bytes_);
    file_.open(path_, std::ios::binary | (kept_bytes_ > 0 ? std::ios::app : std::ios::trunc));
    if (kept_bytes_ == 0) write(header_ + "\n");
  }

  void write(const std::string& text) {
    file_ << text << std::flush;
    if (!file_) fail();
  }

  [[noreturn]] void fail() const { throw std::runtime_error("cannot write '" + path_ + "'"); }

  /// Pipes and devices are not opened to find out: that can be noticed at their other end.
  void require_writable() const {
    std::error_code error;
    const auto status = std::filesystem::status(path_, error);
    if (!exists(status)) meo::io::require_writable(path_);
    else if (is_directory(status)) fail();
    else if (is_regular_file(status) && !std::ofstream(path_, std::ios::binary | std::ios::app)) fail();
  }

  /// Whether a line is of this step or an earlier one.
  static bool is_of_step(const std::string& line, Index step) {
    Index of = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), of);
    return error == std::errc() && of <= step;
  }

  std::string path_, header_;
  std::uintmax_t kept_bytes_ = 0;
  std::ofstream file_;
};

}  // namespace transformer
