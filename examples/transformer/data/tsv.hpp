#pragma once

/// Tables of texts: a row a line, columns apart by tabs. Quotes are text like all else, as in GLUE's files. A
/// line ends with \n, \r\n or the file, an UTF-8 byte order mark before the first is passed over.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/types.hpp>

#include "../text/files.hpp"

namespace transformer {

using meo::Index;

/// What becomes of lines whose columns are not as many as the first line's. GLUE's loaders look at the
/// columns that they need alone.
struct TsvRules {
  bool has_header = true;     ///< the first line names the columns
  bool ignores_more = false;  ///< columns too many are passed over; else an error
  bool skips_fewer = false;   ///< a line that lacks a column which is asked for is passed over; else an error
};

class Tsv {
 public:
  /// Throws meo::io::Error, with line and column, for a file that cannot be read or has no line, and for
  /// columns too many.
  static Tsv load(const std::filesystem::path& path, const TsvRules& rules) {
    return Tsv(path.string(), load_file(path), rules);
  }

  Tsv(std::string file, std::string_view text, const TsvRules& rules)
      : file_(std::move(file)), rules_(rules) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    Index line = 0;
    std::size_t columns = 0;
    for_each_line(text, [&](std::string_view content) {
      std::vector<std::string> fields = fields_of(content);
      if (++line == 1) columns = fields.size();
      if (fields.size() > columns && !rules.ignores_more) {
        fail(line, "column " + std::to_string(columns + 1) + ": expected " + std::to_string(columns) +
                       " columns, as in line 1, got " + std::to_string(fields.size()));
      }
      if (line == 1 && rules.has_header) header_ = std::move(fields);
      else rows_.push_back({line, std::move(fields)});
    });
    if (line == 0) throw meo::io::Error(file_, "expected at least one line, got none");
  }

  const std::string& file() const { return file_; }

  /// The number of a column, from its name in the header, or written from 1 on where there is no header.
  /// Throws meo::io::Error if there is none.
  std::size_t column(std::string_view name) const {
    if (!rules_.has_header) {
      std::size_t number = 0;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
      if (error == std::errc() && end == name.data() + name.size() && number >= 1) return number - 1;
      throw meo::io::Error(file_, "column '" + std::string(name) +
                                      "': expected a number of at least 1, as there is no header");
    }
    const auto found = std::find(header_.begin(), header_.end(), name);
    if (found != header_.end()) return static_cast<std::size_t>(found - header_.begin());
    std::string all;
    for (const std::string& other : header_) all += (all.empty() ? "'" : ", '") + other + "'";
    fail(1, "expected a column '" + std::string(name) + "', got " + all);
  }

  /// Keeps the lines that have these columns alone; see TsvRules. Returns the numbers of those that went.
  /// Throws meo::io::Error, with line and column, for the first one where they may not go.
  std::vector<Index> require_columns(const std::vector<std::size_t>& columns) {
    std::vector<Index> gone;
    std::erase_if(rows_, [&](const Row& row) {
      for (const std::size_t column : columns) {
        if (column < row.fields.size()) continue;
        if (!rules_.skips_fewer) {
          fail(row.line, "column " + std::to_string(column + 1) + named(column) + ": expected a value, got " +
                             std::to_string(row.fields.size()) + " columns");
        }
        gone.push_back(row.line);
        return true;
      }
      return false;
    });
    return gone;
  }

  std::size_t rows() const { return rows_.size(); }
  /// Of a column that require_columns has seen.
  const std::string& at(std::size_t row, std::size_t column) const { return rows_[row].fields[column]; }

  /// Which of these texts the value is. Throws meo::io::Error, with line and column, for any other.
  Index choice(std::size_t row, std::size_t column, const std::vector<std::string>& choices) const {
    const auto found = std::find(choices.begin(), choices.end(), at(row, column));
    if (found != choices.end()) return static_cast<Index>(found - choices.begin());
    std::string all;
    for (const std::string& choice : choices) all += (all.empty() ? "" : ", ") + choice;
    fail_at(row, column, "one of " + all);
  }

  /// Throws meo::io::Error, with line and column, for what is no finite number.
  double number(std::size_t row, std::size_t column) const {
    const std::string& text = at(row, column);
    try {
      std::size_t end = 0;
      const double value = std::stod(text, &end);
      if (end == text.size() && std::isfinite(value)) return value;
    } catch (const std::exception&) {
    }
    fail_at(row, column, "a number");
  }

 private:
  struct Row {
    Index line;
    std::vector<std::string> fields;
  };

  static std::vector<std::string> fields_of(std::string_view line) {
    std::vector<std::string> fields;
    for (std::size_t begin = 0, end = 0; end != std::string_view::npos; begin = end + 1) {
      end = line.find('\t', begin);
      fields.emplace_back(line.substr(begin, end == std::string_view::npos ? end : end - begin));
    }
    return fields;
  }

  std::string named(std::size_t column) const {
    return column < header_.size() ? " ('" + header_[column] + "')" : "";
  }

  [[noreturn]] void fail(Index line, const std::string& what) const {
    throw meo::io::Error(file_, "line " + std::to_string(line) + ", " + what);
  }
  [[noreturn]] void fail_at(std::size_t row, std::size_t column, const std::string& expected) const {
    fail(rows_[row].line, "column " + std::to_string(column + 1) + named(column) + ": expected " + expected +
                              ", got '" + at(row, column) + "'");
  }

  std::string file_;
  TsvRules rules_;
  std::vector<std::string> header_;
  std::vector<Row> rows_;
};

}  // namespace transformer
