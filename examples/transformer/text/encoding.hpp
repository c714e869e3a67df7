#pragma once

/// What a text is to a model.

#include <cstddef>
#include <vector>

namespace transformer {

using Id = std::ptrdiff_t;  ///< meo::Index, as the models take words, without Eigen

struct Encoding {
  std::vector<Id> input_ids;
  std::vector<Id> token_type_ids;  ///< of each: 0, or 1 in the second of a pair of texts
};

}  // namespace transformer
