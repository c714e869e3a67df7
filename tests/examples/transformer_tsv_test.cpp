// The TSV files of examples/transformer.

#include <string>
#include <vector>

#include "../../examples/transformer/data/tsv.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"

namespace {
namespace transformer_tsv_test {

using transformer::Index;
using transformer::Tsv;
using transformer::TsvRules;
using transformer::test::message_of;
using Fields = std::vector<std::string>;

std::vector<Fields> all_of(const Tsv& tsv, std::size_t columns) {
  std::vector<Fields> rows;
  for (std::size_t row = 0; row < tsv.rows(); ++row) {
    rows.emplace_back();
    for (std::size_t column = 0; column < columns; ++column) rows.back().push_back(tsv.at(row, column));
  }
  return rows;
}

TEST_CASE("A TSV is lines and tabs, and nothing else", "[transformer][tsv]") {
  const std::vector<Fields> expected{{"\"a", "b\"\"", "'"}, {"", "", ""}, {" x ", "\\t", "é"}};
  const std::string rows = "\"a\tb\"\"\t'\n\t\t\n x \t\\t\té";
  for (const std::string head : {"", "\xef\xbb\xbf"}) {
    for (const std::string tail : {"", "\n", "\r\n"}) {
      Tsv tsv("f.tsv", head + "one\ttwo\t#3 x\n" + rows + tail, {});
      CHECK(all_of(tsv, 3) == expected);
      CHECK(tsv.column("one") == 0);
      CHECK(tsv.column("#3 x") == 2);
      CHECK(tsv.require_columns({0, 2}).empty());
      CHECK(all_of(Tsv("f.tsv", head + rows + tail, {.has_header = false}), 3) == expected);
    }
  }
  std::string windows = "one\ttwo\t#3 x\n" + rows;
  for (std::size_t at = 0; (at = windows.find('\n', at)) != std::string::npos; at += 2)
    windows.replace(at, 1, "\r\n");
  CHECK(all_of(Tsv("f.tsv", windows, {}), 3) == expected);
  CHECK(Tsv("f.tsv", "one\ttwo", {}).rows() == 0);
}

TEST_CASE("A TSV's faults are named by file, line and column", "[transformer][tsv]") {
  const std::string file = "meo: f.tsv: ";
  CHECK(message_of([] { Tsv("f.tsv", "", {}); }) == file + "expected at least one line, got none");
  CHECK(message_of([] { Tsv("f.tsv", "\xef\xbb\xbf", {}); }) ==
        file + "expected at least one line, got none");

  Tsv tsv("f.tsv", "text\tlabel\nx\tyes\ny\nz\tno\nw\tmaybe", {});
  CHECK(message_of([&] { tsv.column("pair"); }) ==
        file + "line 1, expected a column 'pair', got 'text', 'label'");
  CHECK(message_of([&] {
          tsv.require_columns({1, 0});
        }) == file + "line 3, column 2 ('label'): expected a value, got 1 columns");
  CHECK(message_of([&] { tsv.number(0, 1); }) ==
        file + "line 2, column 2 ('label'): expected a number, got 'yes'");

  // What GLUE's loaders do with QQP.
  Tsv forgiving("f.tsv", "text\tlabel\nx\tyes\ny\nz\tno\ttoo much\nw\tmaybe",
                {.ignores_more = true, .skips_fewer = true});
  CHECK(forgiving.require_columns({0, 1}) == std::vector<Index>{3});
  CHECK(all_of(forgiving, 2) == std::vector<Fields>{{"x", "yes"}, {"z", "no"}, {"w", "maybe"}});
  CHECK(forgiving.choice(1, 1, {"yes", "no"}) == 1);
  CHECK(message_of([&] {
          forgiving.choice(2, 1, {"yes", "no"});
        }) == file + "line 5, column 2 ('label'): expected one of yes, no, got 'maybe'");

  CHECK(message_of([] { Tsv("f.tsv", "a\tb\n1\t2\n1\t2\t3", {}); }) ==
        file + "line 3, column 3: expected 2 columns, as in line 1, got 3");

  Tsv without("f.tsv", "x\t0.5\t1e400\ny\t-1\tnan\nz\t\t1x", {.has_header = false});
  CHECK(without.column("2") == 1);
  for (const std::string name : {"0", "text", "-1", "1x", ""}) {
    CHECK(message_of([&] { without.column(name); }) ==
          file + "column '" + name + "': expected a number of at least 1, as there is no header");
  }
  CHECK(without.number(0, 1) == 0.5);
  CHECK(without.number(1, 1) == -1);
  const auto fault = [&](std::size_t row, std::size_t column, const std::string& got) {
    CHECK(message_of([&] { without.number(row, column); }) == file + "line " + std::to_string(row + 1) +
                                                                  ", column " + std::to_string(column + 1) +
                                                                  ": expected a number, got '" + got + "'");
  };
  fault(0, 2, "1e400");
  fault(1, 2, "nan");
  fault(2, 1, "");
  fault(2, 2, "1x");
  CHECK(message_of([&] { without.require_columns({3}); }) ==
        file + "line 1, column 4: expected a value, got 3 columns");

  const meo::test::Folder folder;
  const std::string missing = (folder / "missing.tsv").string();
  CHECK(message_of([&] { Tsv::load(missing, {}); }) ==
        "meo: " + missing + ": cannot be read: No such file or directory");
}

}  // namespace transformer_tsv_test
}  // namespace
