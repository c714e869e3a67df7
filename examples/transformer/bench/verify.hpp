#pragma once

/// That models which are timed do the work that is counted for them.

#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

#include <meo/flops.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/types.hpp>

#include "../model/model_flops.hpp"
#include "subject.hpp"

namespace transformer::bench {

/// A model computes something else than it has to.
struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// How far outputs may be off, over the largest: float's roundings leave some 2⁻¹⁷ in twelve layers, experts
/// of 8 bits some 2⁻⁷, while a block, an expert or a text left out leaves about one.
inline float most_difference(const MixtureConfig& mixture) {
  return mixture.storage == nullptr ? 0x1p-12f : 0x1p-5f;
}

/// Throws WrongResult unless all differences are within `most` times the largest expected value.
inline void require_close(const std::string& what, const meo::Matrix<float>& actual,
                          const meo::Matrix<float>& expected, float most = most_difference({})) {
  const float difference = (actual - expected).lpNorm<Eigen::Infinity>(),
              largest = expected.lpNorm<Eigen::Infinity>();
  if (actual.allFinite() && difference <= most * largest) return;
  throw WrongResult(what + ": expected what the dense model has, up to " + std::to_string(largest) +
                    ", got differences of up to " + std::to_string(difference));
}

/// An expert's, out × (in + 1) with a bias.
template <class Bank>
meo::Matrix<float> weight_and_bias(const Bank& bank, Index expert) {
  meo::Matrix<float> all = bank.weight(expert);
  if (!bank.has_bias()) return all;
  all.conservativeResize(Eigen::NoChange, all.cols() + 1);
  all.rightCols(1) = bank.bias(expert);
  return all;
}

/// Throws WrongResult unless a model whose experts are copies has the dense model's outputs.
inline void verify_outputs(Subject& dense, Subject& subject, const Work& work, Subject::Context& context) {
  const meo::Matrix<float> expected = dense.model().forward(work.batch, nullptr, context);
  const Rows<float> actual = subject.model().forward(work.batch, nullptr, context);
  require_close(subject.name() + "'s outputs", actual, expected,
                most_difference(subject.model().config().mixture));
}

/// The same of a word after others.
inline void verify_words(Subject& dense, Subject& subject, const Work& work, Index words,
                         Subject::Context& context) {
  dense.run_words(work, words, Merging::once, context);
  const meo::Matrix<float> expected = context.logits();
  for (const Merging merging : {Merging::once, Merging::anew}) {
    subject.run_words(work, words, merging, context);
    require_close(subject.name() + "'s outputs of a word", context.logits(), expected,
                  most_difference(subject.model().config().mixture));
  }
}

/// Throws WrongResult unless such a model has the dense model's gradients, those of a projection's experts
/// summed. Its gates are zero: nothing goes through them.
inline void verify_gradients(Subject& dense, Subject& subject, const Work& work, Subject::Context& context) {
  const Training<float> without_noise;
  for (Subject* const each : {&dense, &subject}) {
    meo::set_zero(meo::parameters(each->gradients()));
    each->pass_both_ways(work, without_noise, context);
  }
  std::map<std::string, meo::Matrix<float>> expected;
  dense.gradients().visit([&](std::string_view name, auto&& part) {
    if constexpr (requires { part.linear; })
      expected[std::string(name)] = weight_and_bias(part.linear.bank(), 0);
    else if constexpr (requires { part.matrix; }) expected[std::string(name)] = part.matrix;
  });
  subject.gradients().visit([&](std::string_view name, auto&& part) {
    const std::string what = subject.name() + "'s gradient of " + std::string(name);
    if constexpr (requires {
                    part.num_experts();
                    part.weight(0);
                  }) {
      meo::Matrix<float> sum = weight_and_bias(part, 0);
      for (Index e = 1; e < part.num_experts(); ++e) sum += weight_and_bias(part, e);
      const std::string of_dense(name.substr(0, name.rfind('.')));
      require_close(what, sum, expected.at(of_dense));
    } else if constexpr (requires { part.linear.bank(); }) {
      require_close(what, weight_and_bias(part.linear.bank(), 0), expected.at(std::string(name)));
    } else if constexpr (requires { part.matrix; }) {
      require_close(what, part.matrix, expected.at(std::string(name)));
    }  // else of gates and token attention
  });
}

/// Throws WrongResult unless what the gates of the batch decide costs as many FLOPs as were counted.
inline void verify_routings(Subject& subject, const Work& work, Subject::Context& context) {
  const Training<float> without_noise;
  subject.model().forward(work.batch, &without_noise, context);  // keeps the routings of all layers
  const meo::Method method = method_of(subject.model().config().mixture.kind);
  std::size_t number = 0;
  subject.model().visit_projections([&](const std::string& name, auto& projection) {
    const auto& layer = context.trunk.layers[number / 2].feed_forward;
    const meo::Routing<float>& routing = (number % 2 == 0 ? layer.up : layer.down).routing;
    const meo::LayerOptions& options = projection.mixture_options();
    const meo::LayerShape shape = meo::layer_shape<float>(options, work.batch.sequences);
    const std::int64_t counted = meo::flops(method, shape).total();
    const std::int64_t decided =
        meo::flops(method, shape, meo::assignment_shape(method, options, work.batch.sequences, routing))
            .total();
    if (decided != counted) {
      throw WrongResult(subject.name() + ": the routing of " + name + ": expected " +
                        std::to_string(counted) + " FLOPs, got " + std::to_string(decided));
    }
    ++number;
  });
}

}  // namespace transformer::bench
