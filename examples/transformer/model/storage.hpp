#pragma once

/// What experts' weights are stored as, where that is fewer bits than what is computed with: a model of those
/// is for inference, in float. Configs refer to a Storage; small_storage.hpp has those that there are, which
/// only programs that ask for one have in them.

#include <memory>
#include <string_view>

#include <meo/layers/layer_options.hpp>

namespace transformer {

enum class Mixture;
template <class Scalar>
class StoredMixture;

class Storage {
 public:
  virtual ~Storage() = default;

  /// As options of programs have it.
  virtual std::string_view name() const = 0;
  /// A mixture of float, with all parameters zero.
  virtual std::unique_ptr<StoredMixture<float>> make(Mixture kind,
                                                     const meo::LayerOptions& options) const = 0;
};

}  // namespace transformer
