#include <array>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/experts/expert_bank.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"
#include "support/types.hpp"

namespace {
namespace expert_bank_test {

using namespace meo;
using namespace meo::test;

/// Whether every column of every panel beyond out_features is zero.
template <class S, class T>
bool padding_is_zero(const ExpertBank<S, T>& bank) {
  const auto panels = bank.panels();
  for (Index p = 0; p < panels.num_panels(); ++p) {
    for (Index e = 0; e < panels.num_experts; ++e) {
      for (Index row = 0; row < panels.depth(); ++row) {
        for (Index column = panels.valid_columns(p); column < panels.columns; ++column) {
          if (panels.panel(p, e)[row * panels.columns + column] != T(0)) return false;
        }
      }
    }
  }
  return true;
}

/// Weights as the bank can store them, if that is in a type of fractions.
template <class T, class M>
M stored(const M& values) {
  return values.template cast<T>().template cast<typename M::Scalar>();
}

/// What must be read of weights that were set; those of 8 bits are the nearest multiples of their output's
/// scale, 1/127 of its largest weight in 17 bits.
template <class T, class S>
std::string differs(const Matrix<S>& read, const Matrix<S>& set) {
  if constexpr (!std::is_same_v<T, std::int8_t>) {
    return bit_difference(read, stored<T>(set));
  } else {
    Matrix<S> error(set.rows(), set.cols());
    for (Index out = 0; out < set.rows(); ++out)
      error.row(out).setConstant(set.row(out).cwiseAbs().maxCoeff() / 127 * S(1 + 0x1p-16) / 2);
    return disagreement(read, set, error);
  }
}

TEMPLATE_TEST_CASE("what is set is read back, for all shapes around the panels, and padding stays zero",
                   "[expert_bank]", (Types<float, float>), (Types<double, double>), (Types<double, float>),
                   (Types<long double, long double>), (Types<long double, float>),
                   (Types<float, Eigen::bfloat16>), (Types<float, Eigen::half>),
                   (Types<float, std::int8_t>)) {
  using S = typename TestType::Scalar;
  using T = typename TestType::Storage;
  Generator rng(26);
  for (const bool has_bias : {false, true}) {
    for (const Index in_features : {1, 2, 3, 7, 16, 33, 70}) {
      for (Index out_features = 1; out_features <= 70; ++out_features) {
        INFO("D " << in_features << ", F " << out_features << ", bias " << has_bias);
        ExpertBank<S, T> bank(3, in_features, out_features, has_bias);
        REQUIRE(padding_is_zero(bank));
        std::vector<Matrix<S>> weights;
        std::vector<Vector<S>> biases;
        for (Index e = 0; e < 3; ++e) {
          weights.push_back(random_normal<S>(rng, out_features, in_features));
          biases.push_back(random_normal<S>(rng, out_features, 1));
          bank.set_weight(e, weights.back());
          if (has_bias) bank.set_bias(e, biases.back());
        }
        for (Index e = 0; e < 3; ++e) {
          const Matrix<S> read = bank.weight(e);
          CHECK(differs<T>(read, weights[std::size_t(e)]) == "");
          if (has_bias) CHECK(bit_difference(bank.bias(e), biases[std::size_t(e)]) == "");
          bank.set_weight(e, read);
          CHECK(bit_difference(bank.weight(e), read) == "");
        }
        CHECK(padding_is_zero(bank));
      }
    }
  }
}

TEST_CASE("a bank tells its shape and starts at zero", "[expert_bank]") {
  const ExpertBank<float> bank(2, 3, 4, true);
  CHECK(bank.num_experts() == 2);
  CHECK(bank.in_features() == 3);
  CHECK(bank.out_features() == 4);
  CHECK(bank.has_bias());
  CHECK_FALSE(ExpertBank<float>(2, 3, 4, false).has_bias());
  for (Index e = 0; e < 2; ++e) {
    CHECK(bank.weight(e) == Matrix<float>::Zero(4, 3));
    CHECK(bank.bias(e) == Vector<float>::Zero(4));
  }
}

TEST_CASE("weights are taken from any expression: blocks, other storage orders, products", "[expert_bank]") {
  Generator rng(27);
  const Matrix<double> weight = random_normal<double>(rng, 5, 4);
  ExpertBank<double> bank(1, 4, 5, false);
  Matrix<double> larger = Matrix<double>::Constant(9, 9, 7);
  larger.block(2, 3, 5, 4) = weight;
  bank.set_weight(0, larger.block(2, 3, 5, 4));
  CHECK(bank.weight(0) == weight);
  bank.set_weight(0, Eigen::MatrixXd(2 * weight));
  CHECK(bank.weight(0) == 2 * weight);
  bank.set_weight(0, 3 * weight);
  CHECK(bank.weight(0) == 3 * weight);
}

TEMPLATE_TEST_CASE("copies have memory of their own, moves take it along", "[expert_bank]", float, double,
                   long double) {
  using S = TestType;
  Generator rng(28);
  const Matrix<S> weight = random_normal<S>(rng, 5, 4), other = random_normal<S>(rng, 5, 4);
  const Vector<S> bias = random_normal<S>(rng, 5, 1);
  ExpertBank<S> original(2, 4, 5, true);
  original.set_weight(1, weight);
  original.set_bias(1, bias);

  ExpertBank<S> copy(original), assigned(1, 1, 1, false);
  assigned = original;
  original.set_weight(1, other);
  original.set_bias(1, Vector<S>(2 * bias));
  for (const ExpertBank<S>* const each : {&copy, &assigned}) {
    CHECK(each->num_experts() == 2);
    CHECK(each->weight(1) == weight);
    CHECK(each->bias(1) == bias);
  }

  const S* const memory = copy.panels().data;
  ExpertBank<S> moved(std::move(copy));
  CHECK(moved.panels().data == memory);
  CHECK(moved.weight(1) == weight);
  original = std::move(moved);
  CHECK(original.panels().data == memory);
  CHECK(original.weight(1) == weight);
  CHECK(original.bias(1) == bias);
}

TEST_CASE("a bank that was moved from says so until it is assigned to", "[expert_bank]") {
  ExpertBank<float> bank(2, 3, 4, true);
  const auto says_so = [](auto&& f) {
    return error_lacks<std::logic_error>(f,
                                         {"meo: experts: expected one to use, got one that was moved from"});
  };
  CHECK_FALSE(bank.empty());
  const ExpertBank<float> moved = std::move(bank);
  CHECK_FALSE(moved.empty());
  CHECK(bank.empty());
  CHECK(says_so([&] { static_cast<void>(bank.weight(0)); }) == "");
  CHECK(says_so([&] { bank.set_weight(0, Matrix<float>::Ones(4, 3)); }) == "");
  CHECK(says_so([&] { static_cast<void>(bank.bias(0)); }) == "");
  CHECK(says_so([&] { bank.set_bias(0, Vector<float>::Ones(4)); }) == "");
  CHECK(says_so([&] { bank.values(); }) == "");
  CHECK(says_so([&] { std::as_const(bank).values(); }) == "");
  CHECK(says_so([&] { bank.panels(); }) == "");
  CHECK(says_so([&] { bank.mutable_panels(); }) == "");
  bank = moved;
  CHECK(bank.weight(0) == Matrix<float>::Zero(4, 3));
}

TEMPLATE_TEST_CASE("a bank of no size, or of one that no memory holds, is refused", "[expert_bank]", float,
                   double, long double) {
  using Bank = ExpertBank<TestType>;
  const auto refused = [](Index num_experts, Index in, Index out, std::initializer_list<std::string> parts) {
    return error_lacks<std::invalid_argument>([&] { Bank(num_experts, in, out, true); }, parts);
  };
  CHECK(refused(0, 3, 4, {"num_experts: expected at least 1, got 0"}) == "");
  CHECK(refused(2, -3, 4, {"in_features: expected at least 1, got -3"}) == "");
  CHECK(refused(2, 3, 0, {"out_features: expected at least 1, got 0"}) == "");

  const Index max = std::numeric_limits<Index>::max(), huge = Index{1} << 31;
  for (const auto& [num_experts, in, out] : std::vector<std::array<Index, 3>>{{max, 1, 1},
                                                                              {1, max, 1},
                                                                              {1, 1, max},
                                                                              {huge, huge, 1},
                                                                              {huge, 1, huge},
                                                                              {1, huge, huge},
                                                                              {max, max, max}}) {
    CHECK(refused(num_experts, in, out,
                  {"experts: expected a size that fits memory, got " + std::to_string(num_experts) + " of " +
                   std::to_string(out) + " x " + std::to_string(in)}) == "");
  }
}

TEST_CASE("bad arguments of setters and getters are named and change nothing", "[expert_bank]") {
  Generator rng(29);
  ExpertBank<double> bank(2, 3, 4, true);
  std::vector<Matrix<double>> weights;
  std::vector<Vector<double>> biases;
  for (Index e = 0; e < 2; ++e) {
    weights.push_back(random_normal<double>(rng, 4, 3));
    biases.push_back(random_normal<double>(rng, 4, 1));
    bank.set_weight(e, weights.back());
    bank.set_bias(e, biases.back());
  }
  const auto refused = [](auto&& f, const std::string& message) {
    return error_lacks<std::invalid_argument>(f, {message});
  };
  const Matrix<double> weight = Matrix<double>::Ones(4, 3);
  const Vector<double> bias = Vector<double>::Ones(4);
  for (const Index expert : {-1, 2}) {
    const std::string message = "expert: expected 0 to 1, got " + std::to_string(expert);
    CHECK(refused([&] { bank.set_weight(expert, weight); }, message) == "");
    CHECK(refused([&] { bank.set_bias(expert, bias); }, message) == "");
    CHECK(refused([&] { static_cast<void>(bank.weight(expert)); }, message) == "");
    CHECK(refused([&] { static_cast<void>(bank.bias(expert)); }, message) == "");
  }
  CHECK(refused([&] { bank.set_weight(0, weight.transpose()); },
                "weight (out_features x in_features): expected 4 x 3, got 3 x 4") == "");
  CHECK(refused([&] { bank.set_weight(1, Matrix<double>::Ones(4, 2)); }, "expected 4 x 3, got 4 x 2") == "");
  CHECK(refused([&] { bank.set_weight(1, Matrix<double>::Ones(5, 3)); }, "expected 4 x 3, got 5 x 3") == "");
  CHECK(refused([&] { bank.set_bias(1, Vector<double>::Ones(3)); }, "bias: expected 4 values, got 3") == "");
  CHECK(refused([&] { bank.set_bias(1, Vector<double>::Ones(5)); }, "bias: expected 4 values, got 5") == "");
  for (Index e = 0; e < 2; ++e) {
    CHECK(bank.weight(e) == weights[std::size_t(e)]);
    CHECK(bank.bias(e) == biases[std::size_t(e)]);
  }
}

TEST_CASE("weights that are not finite cannot be stored in 8 bits, and change nothing", "[expert_bank]") {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    ExpertBank<float, std::int8_t> bank(1, 3, 4, false);
    bank.set_weight(0, Matrix<float>::Ones(4, 3));
    Matrix<float> weight = 2 * Matrix<float>::Ones(4, 3);
    weight(3, 1) = value;
    CHECK(error_lacks<std::invalid_argument>(
              [&] { bank.set_weight(0, weight); },
              {"weight: expected finite numbers, to be stored in 8 bits, got ", "for output 3"}) == "");
    CHECK(differs<std::int8_t>(bank.weight(0), Matrix<float>(Matrix<float>::Ones(4, 3))) == "");
  }
}

TEST_CASE("smaller storage takes half and about a quarter of the memory", "[expert_bank]") {
  const auto bytes = [](const auto& bank) { return static_cast<double>(bank.bytes()); };
  const double floats = bytes(ExpertBank<float>(8, 768, 3072, true));
  CHECK(floats >= 4.0 * 8 * 769 * 3072);
  CHECK(bytes(ExpertBank<float, Eigen::bfloat16>(8, 768, 3072, true)) <= 0.505 * floats);
  CHECK(bytes(ExpertBank<float, Eigen::half>(8, 768, 3072, true)) <= 0.505 * floats);
  CHECK(bytes(ExpertBank<float, std::int8_t>(8, 768, 3072, true)) <= 0.26 * floats);
}

TEST_CASE("experts without biases have none to set or read", "[expert_bank]") {
  ExpertBank<double> bank(1, 3, 4, false);
  const std::string message = "bias: expected experts with biases, got bias = false";
  CHECK(error_lacks<std::invalid_argument>([&] { bank.set_bias(0, Vector<double>::Ones(4)); }, {message}) ==
        "");
  CHECK(error_lacks<std::invalid_argument>([&] { static_cast<void>(bank.bias(0)); }, {message}) == "");
}

}  // namespace expert_bank_test
}  // namespace
