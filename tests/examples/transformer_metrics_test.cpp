// The metrics of examples/transformer against what scikit-learn 1.2.1 and SciPy 1.10.1 give: accuracy_score,
// f1_score (of class 1, and average="macro"), matthews_corrcoef, pearsonr and spearmanr.

#include <cmath>
#include <limits>
#include <vector>

#include "../../examples/transformer/data/metrics.hpp"
#include "examples/transformer_models.hpp"
#include "support/catch.hpp"

namespace {
namespace transformer_metrics_test {

using transformer::Index;
using transformer::test::message_of;

// Some ten roundings of numbers of about 1.
constexpr double bound = 1e-14;

struct Classes {
  std::vector<Index> predictions, labels;
  Index classes;
  double accuracy, f1, macro_f1, matthews;
};

const std::vector<Classes> of_classes{
    {{1, 0, 1, 1, 0, 1, 0, 0, 1, 1},
     {1, 0, 0, 1, 1, 1, 0, 1, 1, 0},
     2,
     0.6,
     0.6666666666666666,
     0.5833333333333333,
     0.16666666666666666},
    // One class alone is predicted, is the label, or both; all is wrong.
    {{1, 1, 1, 1}, {1, 0, 0, 1}, 2, 0.5, 0.6666666666666666, 0.3333333333333333, 0},
    {{0, 0, 0, 0}, {1, 0, 0, 1}, 2, 0.5, 0, 0.3333333333333333, 0},
    {{0, 0, 0}, {0, 0, 0}, 2, 1, 0, 1, 0},
    {{1, 1, 0, 0}, {0, 0, 1, 1}, 2, 0, 0, 0, -1},
    // More classes, of which one may be no label, or not come at all.
    {{0, 1, 2, 2, 1, 0, 0, 2, 1, 1},
     {0, 2, 2, 2, 1, 0, 1, 1, 1, 0},
     3,
     0.6,
     0,
     0.611111111111111,
     0.3939393939393939},
    {{0, 1, 2, 0}, {0, 1, 1, 0}, 3, 0.75, 0, 0.5555555555555555, 0.6708203932499369},
    {{3, 3, 3, 0}, {0, 3, 1, 1}, 4, 0.25, 0, 0.16666666666666666, 0}};

struct Values {
  std::vector<double> predictions, labels;
  double pearson, spearman;
};

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

const std::vector<Values> of_values{
    {{2.5, 0.1, 3.75, 4.2, 1, 3.3}, {3, 0.5, 2.75, 5, 1.25, 4}, 0.9212162915311002, 0.8285714285714287},
    // Ties in both, at both ends and within.
    {{1, 2, 2, 3, 3, 3, 0}, {1, 1, 2, 2, 5, 0, 0}, 0.5040161287741852, 0.46162382886769227},
    {{5, 4, 3, 2}, {1, 2, 3, 4}, -1, -1},
    {{0.1, 0.1, 0.1}, {1, 2, 3}, nan, nan},
    {{1, 2, 3}, {0.1, 0.1, 0.1}, nan, nan},
    {{1e6 + 1, 1e6 + 2, 1e6 + 4}, {1, 3, 2}, 0.3273268353539885, 0.5}};

void check_close(double actual, double expected) {
  CAPTURE(actual, expected);
  CHECK((std::isnan(expected) ? std::isnan(actual) : std::abs(actual - expected) <= bound));
}

TEST_CASE("Metrics of classes are scikit-learn's", "[transformer][metrics]") {
  for (const Classes& c : of_classes) {
    CAPTURE(c.predictions, c.labels);
    check_close(transformer::accuracy(c.predictions, c.labels), c.accuracy);
    check_close(transformer::macro_f1(c.predictions, c.labels, c.classes), c.macro_f1);
    check_close(transformer::matthews(c.predictions, c.labels, c.classes), c.matthews);
    if (c.classes == 2) check_close(transformer::f1(c.predictions, c.labels), c.f1);
  }
}

TEST_CASE("Metrics of values are SciPy's", "[transformer][metrics]") {
  for (const Values& v : of_values) {
    CAPTURE(v.predictions, v.labels);
    check_close(transformer::pearson(v.predictions, v.labels), v.pearson);
    check_close(transformer::spearman(v.predictions, v.labels), v.spearman);
  }
  CHECK(transformer::ranks(std::vector<double>{7, 5, 7, 1, 7, 5}) ==
        std::vector<double>{5, 2.5, 5, 1, 5, 2.5});
}

TEST_CASE("Metrics refuse what has none", "[transformer][metrics]") {
  const std::vector<Index> two{0, 1}, three{0, 1, 2}, none, negative{0, -1};
  const std::vector<double> values{1, 2}, no_values;
  const std::string start = "predictions: expected ";
  CHECK(message_of([&] { transformer::accuracy(two, three); }) ==
        start + "3, one for each label, and at least 1, got 2");
  CHECK(message_of([&] { transformer::matthews(none, none, 2); }) ==
        start + "0, one for each label, and at least 1, got 0");
  CHECK(message_of([&] { transformer::pearson(no_values, values); }) ==
        start + "2, one for each label, and at least 1, got 0");
  CHECK(message_of([&] { transformer::spearman(no_values, no_values); }) ==
        start + "0, one for each label, and at least 1, got 0");
  CHECK(message_of([&] { transformer::f1(three, three); }) == "class: expected 0 to 1, got 2");
  CHECK(message_of([&] { transformer::macro_f1(two, negative, 3); }) == "class: expected 0 to 2, got -1");
}

}  // namespace transformer_metrics_test
}  // namespace
