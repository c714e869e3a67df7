#pragma once

/// Task level: which description each sequence has, and how the inputs are checked for it.

#include <numeric>
#include <span>
#include <vector>

#include <meo/errors.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/offsets.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A function from a sequence to its description.
template <class Scalar>
auto task_of(const Inputs<Scalar>& inputs) {
  const bool has_one = inputs.descriptions == nullptr || inputs.descriptions->size() == 1;
  return [tasks = inputs.task_of_sequence, has_one](Index sequence) {
    if (!tasks.empty()) return tasks[static_cast<std::size_t>(sequence)];
    return has_one ? 0 : sequence;
  };
}

template <class Scalar>
Offsets description_offsets(const Inputs<Scalar>& inputs) {
  return {inputs.descriptions, inputs.task_embeddings.rows()};
}

/// Throws std::invalid_argument unless the inputs describe the tasks of so many sequences. Returns the
/// descriptions' offsets.
template <class Scalar>
Offsets check_tasks(Index sequences, Index task_features, const Inputs<Scalar>& inputs) {
  const MatrixView<Scalar>& embeddings = inputs.task_embeddings;
  require(static_cast<bool>(embeddings), "task_embeddings: expected some at task level, got none");
  require(embeddings.cols() == task_features, "task_embeddings: expected task_features = ", task_features,
          " columns, got ", embeddings.cols());
  const Offsets offsets = description_offsets(inputs);
  if (inputs.descriptions != nullptr) {
    require(inputs.descriptions->tokens() == embeddings.rows(), "descriptions: expected ", embeddings.rows(),
            " tokens in all, as task_embeddings has rows, got ", inputs.descriptions->tokens());
  }
  const Index descriptions = offsets.num_sequences();
  const std::span<const Index> tasks = inputs.task_of_sequence;
  if (tasks.empty()) {
    require(descriptions == 1 || descriptions == sequences || sequences == 0,
            "descriptions: expected 1 or one for each of ", sequences, " sequences, got ", descriptions);
  } else {
    require(static_cast<Index>(tasks.size()) == sequences, "task_of_sequence: expected ", sequences,
            " entries, got ", tasks.size());
    for (const Index task : tasks) {
      require(task >= 0 && task < descriptions, "task_of_sequence: expected 0 to ", descriptions - 1,
              ", got ", task);
    }
  }
  return offsets;
}

/// Counting sort: order[begins[t]] … order[begins[t + 1] − 1] are the sequences of description t, ascending.
template <class Scalar>
void sort_by_task(Index sequences, Index descriptions, const Inputs<Scalar>& inputs,
                  std::vector<Index>& begins, std::vector<Index>& order) {
  begins.assign(static_cast<std::size_t>(descriptions) + 1, 0);
  order.resize(static_cast<std::size_t>(sequences));
  const auto task = task_of(inputs);
  for (Index b = 0; b < sequences; ++b) ++begins[static_cast<std::size_t>(task(b))];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  for (Index b = sequences; b-- > 0;)
    order[static_cast<std::size_t>(--begins[static_cast<std::size_t>(task(b))])] = b;
}

}  // namespace meo::detail
