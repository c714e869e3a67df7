#pragma once

/// What a forward reads, from the arguments of a call in Python.

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <meo/meo.hpp>

#include "arrays.hpp"

namespace meo_python {

/// Arguments beside x, as they come; None where there is none.
struct InputArguments {
  std::optional<std::vector<Index>> lengths = {};
  std::optional<py::array> task_embeddings = {};
  std::optional<std::vector<Index>> description_lengths = {};
  std::vector<Index> task_of_sequence = {};
  py::object noise = py::none();  ///< an array, or the seed of a generator
  Index top_k = 0;                ///< 0: the layer's
  std::vector<bool> allowed_experts = {};
};

/// How rows divide into sequences: as an array of three dimensions says, or as the lengths do; else they are
/// one.
template <class Scalar>
std::optional<meo::Sequences> sequences_of(const Rows<Scalar>& rows,
                                           const std::optional<std::vector<Index>>& lengths,
                                           const char* name) {
  if (!lengths) {
    if (!rows.has_sequences()) return std::nullopt;
    return meo::Sequences::uniform(rows.num_sequences(), rows.sequence_length());
  }
  if (rows.has_sequences())
    throw py::value_error(std::string(name) + ": expected none beside an array of three dimensions");
  return meo::Sequences::from_lengths(*lengths);
}

/// x and the rest. Holds the arrays, so that they stay for as long as it does.
template <class Scalar>
class Batch {
 public:
  Batch(py::array x, const InputArguments& arguments)
      : x_(std::move(x), "x"),
        sequences_(sequences_of(x_, arguments.lengths, "lengths")),
        task_of_sequence_(arguments.task_of_sequence),
        top_k_(arguments.top_k),
        allowed_experts_(arguments.allowed_experts.begin(), arguments.allowed_experts.end()) {
    if (arguments.task_embeddings) {
      embeddings_.emplace(*arguments.task_embeddings, "task_embeddings");
      descriptions_ = sequences_of(*embeddings_, arguments.description_lengths, "description_lengths");
    }
    if (py::isinstance<py::array>(arguments.noise)) {
      noise_.emplace(arguments.noise, "noise");
    } else if (py::isinstance<py::int_>(arguments.noise)) {
      generator_.emplace(arguments.noise.cast<std::uint64_t>());
    } else if (!arguments.noise.is_none()) {
      throw py::type_error("noise: expected an array, the seed of a generator, or None");
    }
  }

  const Rows<Scalar>& x() const { return x_; }

  /// Of a generator, noise is drawn anew from where the last forward left it.
  meo::Inputs<Scalar> inputs() {
    meo::Inputs<Scalar> inputs{.sequences = pointer_to(sequences_),
                               .descriptions = pointer_to(descriptions_),
                               .task_of_sequence = task_of_sequence_,
                               .top_k = top_k_,
                               .allowed_experts = allowed_experts_};
    if (embeddings_) inputs.task_embeddings = embeddings_->matrix();
    if (noise_) inputs.noise = meo::Noise<Scalar>(meo::MatrixView<Scalar>(noise_->matrix()));
    if (generator_) inputs.noise = meo::Noise<Scalar>(*generator_);
    return inputs;
  }

 private:
  static const meo::Sequences* pointer_to(const std::optional<meo::Sequences>& sequences) {
    return sequences ? &*sequences : nullptr;
  }

  Rows<Scalar> x_;
  std::optional<meo::Sequences> sequences_;
  std::optional<Rows<Scalar>> embeddings_;
  std::optional<meo::Sequences> descriptions_;
  std::vector<Index> task_of_sequence_;
  Index top_k_;
  std::vector<unsigned char> allowed_experts_;
  std::optional<Rows<Scalar>> noise_;
  std::optional<std::mt19937_64> generator_;
};

}  // namespace meo_python
