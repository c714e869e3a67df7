#pragma once

/// A library's gradients against central differences of the reference's loss.

#include <string>

#include <meo/types.hpp>

#include "reference/gradients.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace meo::reference {

/// library: a layer or a block with the parameters of the reference's, `parameters`. cotangent: the gradient
/// of y. Checks the gradients of x, of the task embeddings, where there are some, and of every parameter.
template <class Library, class Parameters>
void check_differences(const Library& library, Parameters parameters, RandomInput<double> input,
                       const Matrix<double>& cotangent) {
  // A central difference is off by h²/6 times the third derivative, h = 2⁻¹⁷, which is below 1e3 times the
  // largest derivative of the small layers of the tests.
  constexpr long double tolerance = 1e-8L;
  auto actual = backward(library, parameters, input.x, input.batch, cotangent);
  const Matrix<long double> wide_cotangent = cotangent.cast<long double>();
  const auto check = [&](const std::string& name, const Matrix<double>& gradient, auto& values) {
    INFO(name);
    const auto loss = [&] { return loss_of(forward(parameters, input.x, input.batch), wide_cotangent); };
    CHECK(test::disagreement_in_max_norm(gradient, differences(values, loss), tolerance) == "");
  };
  check("x", actual.x, input.x);
  if (input.batch.task_embeddings.size() != 0)
    check("task embeddings", actual.task_embeddings, input.batch.task_embeddings);
  auto values = tensors(parameters);
  const auto gradients = tensors(actual.parameters);
  for (std::size_t i = 0; i < values.size(); ++i)
    check(gradients[i].name, gradients[i].values, values[i].values);
}

}  // namespace meo::reference
