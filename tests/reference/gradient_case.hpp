#pragma once

/// What tests of a layer's gradients and of a block's share.

#include <string>
#include <type_traits>
#include <vector>

#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

#include "reference/gradients.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace meo::reference {

/// A layer or a block with a batch and a gradient of y, all random.
template <class Library>
struct GradientCase {
  using S = typename Library::Scalar;
  using Parameters = std::conditional_t<IsLayer<Library>, Layer<S>, Block<S>>;

  template <class Options>
  GradientCase(const Options& options, const std::vector<Index>& lengths, Mode mode, test::Generator& rng)
      : parameters(random_parameters<Library>(options, rng)),
        input(random_input(parameters, lengths, mode, rng)) {
    if constexpr (IsLayer<Library>) dy = test::random_matrix<S>(rng, input.x.rows(), options.out_features);
    else dy = test::random_matrix<S>(rng, input.x.rows(), options.features);
  }

  Library library() const {
    if constexpr (IsLayer<Library>) return library_layer<Library>(parameters);
    else return library_block<Library>(parameters);
  }

  Gradients<Parameters, S> backward(const Matrix<S>& cotangent, S d_loss = 1) const {
    return reference::backward(library(), parameters, input.x, input.batch, cotangent, d_loss);
  }

  Parameters parameters;
  RandomInput<S> input;
  Matrix<S> dy;
};

/// All gradients under each other as one column.
template <class Parameters, class S>
Matrix<S> flat(Gradients<Parameters, S> gradients) {
  std::vector<S> values(gradients.x.data(), gradients.x.data() + gradients.x.size());
  values.insert(values.end(), gradients.task_embeddings.data(),
                gradients.task_embeddings.data() + gradients.task_embeddings.size());
  for (const auto& tensor : tensors(gradients.parameters))
    values.insert(values.end(), tensor.values.data(), tensor.values.data() + tensor.values.size());
  return Eigen::Map<const Matrix<S>>(values.data(), static_cast<Index>(values.size()), 1);
}

/// Gradients are linear in those of y and of the loss; those of parameters accumulate.
template <class Library>
void check_linear(const GradientCase<Library>& c, test::Generator& rng) {
  using S = typename Library::Scalar;
  const Matrix<S> other = test::random_matrix<S>(rng, c.dy.rows(), c.dy.cols());
  const Matrix<S> sum = flat(c.backward(c.dy, 1)) - 2 * flat(c.backward(other, S(0.5)));
  CHECK(test::disagreement_in_max_norm(flat(c.backward(c.dy - 2 * other, 0)), sum, 1e-13) == "");

  const Library library = c.library();
  const LibraryBatch<S> batch(c.input.batch);
  ContextOf<Library> context;
  Library gradients(library.options());
  Matrix<S> y(c.dy.rows(), c.dy.cols()), dx(c.input.x.rows(), c.input.x.cols());
  library.forward(c.input.x, batch.inputs(), y, context);
  for (int pass = 0; pass < 2; ++pass)
    library.backward(c.input.x, batch.inputs(), context, c.dy, gradients, dx);
  const auto once = c.backward(c.dy);
  CHECK(test::bit_difference(dx, once.x) == "");
  CHECK(test::bit_difference(context.task_embeddings_gradient(), once.task_embeddings) == "");
  const Gradients<typename GradientCase<Library>::Parameters, S> twice{parameters_of(gradients, c.parameters),
                                                                       2 * dx, 2 * once.task_embeddings};
  CHECK(test::disagreement_in_max_norm(flat(twice), Matrix<S>(2 * flat(once)), 1e-13) == "");
}

/// What a backward that throws has written all the same: to gradients, which were zero, or to dx, which was
/// filled with sevens.
template <class Library, class S>
std::string changed(Library& gradients, const Matrix<S>& dx) {
  for (const auto& range : parameters(gradients)) {
    for (const S value : range.values)
      if (value != 0) return "gradients have changed";
  }
  return (dx.array() == S(7)).all() ? "" : "dx has changed";
}

}  // namespace meo::reference
