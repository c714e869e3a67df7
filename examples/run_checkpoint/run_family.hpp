#pragma once

/// Runs a block of a model of a public family: of a folder, or of a file.

#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "arguments.hpp"
#include "results.hpp"

namespace run_checkpoint {

/// Where the tensor is that a block is run on.
struct FamilyInput {
  std::optional<meo::io::SafetensorsReader> file;  ///< none: it is drawn
  std::string name = "x";

  FamilyInput(const meo::io::FamilyModel& model, const Arguments& arguments) {
    if (arguments.input && std::filesystem::is_regular_file(*arguments.input)) {
      file.emplace(std::filesystem::path(*arguments.input));
      return;
    }
    if (arguments.input) name = *arguments.input;
    const bool may_be_drawn = !arguments.input && std::filesystem::is_directory(arguments.file);
    if (!may_be_drawn || model.tensors().contains(name)) file = model.tensors().file_of(name);
  }

  meo::io::DType dtype() const { return file ? file->info(name).dtype : meo::io::DType::F32; }
};

inline constexpr Index drawn_tokens = 16;

template <class Scalar>
meo::Matrix<Scalar> draw(Index features) {
  std::mt19937_64 rng(0);
  std::normal_distribution<double> normal;
  meo::Matrix<Scalar> x(drawn_tokens, features);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<Scalar>(normal(rng));
  return x;
}

template <class Block>
void run_family_block(const meo::io::FamilyModel& model, const meo::io::BlockFormat& format,
                      const FamilyInput& input, const Arguments& arguments) {
  using Scalar = typename Block::Scalar;
  const Block block = meo::io::load_block<Block>(model, format, {.require_finite = true});
  const std::string note = "block: " + format.prefix + " of " + std::string(model.family().names[0]) + "\n";
  const Results<Scalar> results(input.file ? &*input.file : nullptr, input.dtype());
  if (input.file) {
    const auto x = Batch<Scalar>::read(*input.file, input.name);
    report_block(block, input.file->file(), input.name, input.file->info(input.name).shape, note, x.tokens,
                 {.sequences = &x.sequences}, results, arguments.output);
  } else {
    const Index features = block.options().features;
    report_block(block, arguments.file, input.name, {drawn_tokens, features}, "x is drawn\n" + note,
                 draw<Scalar>(features), {}, results, arguments.output);
  }
}

template <class Scalar>
void run_family_scalar(const meo::io::FamilyModel& model, const meo::io::BlockFormat& format,
                       const FamilyInput& input, const Arguments& arguments) {
  using Layer = meo::MoeLayer<Scalar>;
  if (model.activation() == "gpt_oss")
    return run_family_block<meo::FeedForward<Layer, meo::GptOssSwiglu>>(model, format, input, arguments);
  run_family_block<meo::FeedForward<Layer, meo::AnyActivation>>(model, format, input, arguments);
}

/// Doubles are computed as doubles, everything else in float.
inline void run_family(const meo::io::FamilyModel& model, const Arguments& arguments) {
  const std::string prefix = arguments.prefix.value_or("");
  const meo::io::BlockFormat format =
      arguments.layer ? model.layer(*arguments.layer, prefix) : model.block(prefix);
  const FamilyInput input(model, arguments);
  if (input.dtype() == meo::io::DType::F64) return run_family_scalar<double>(model, format, input, arguments);
  run_family_scalar<float>(model, format, input, arguments);
}

}  // namespace run_checkpoint
