#pragma once

/// Numbers as text, and tables of text.

#include <algorithm>
#include <cstddef>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace bench::flops {

inline std::string fixed(double value, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  const bool rounds_to_minus_zero = value < 0 && out.str().find_first_not_of("-0.") == std::string::npos;
  return rounds_to_minus_zero ? fixed(0, digits) : out.str();
}

/// Rows of cells, the first of them the heading; columns are as wide as their widest cell.
class Table {
 public:
  /// The first `text_columns` columns are flush left, the others, numbers, flush right.
  Table(std::vector<std::string> heading, std::size_t text_columns) : text_columns_(text_columns) {
    add(std::move(heading));
  }

  void add(std::vector<std::string> cells) {
    widths_.resize(std::max(widths_.size(), cells.size()));
    for (std::size_t c = 0; c < cells.size(); ++c) widths_[c] = std::max(widths_[c], cells[c].size());
    rows_.push_back(std::move(cells));
  }

  friend std::ostream& operator<<(std::ostream& out, const Table& table) {
    for (const std::vector<std::string>& row : table.rows_) {
      for (std::size_t c = 0; c < row.size(); ++c)
        out << "  " << (c < table.text_columns_ ? std::left : std::right)
            << std::setw(static_cast<int>(table.widths_[c])) << row[c];
      out << '\n';
    }
    return out;
  }

 private:
  std::size_t text_columns_;
  std::vector<std::size_t> widths_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace bench::flops
