// A safetensors file of any content is read, or refused with an io::Error; nothing else may happen. So is
// what it holds for a layer or a block, which an Error leaves as it was.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

namespace {

// Returns whether the action is not refused.
template <class Action>
bool refuse_at_most(Action action) {
  try {
    action();
    return true;
  } catch (const meo::io::Error&) {
    return false;
  }
}

template <class Layer>
std::vector<std::byte> saved(const Layer& layer) {
  meo::io::SafetensorsWriter writer;
  meo::io::save(layer, writer);
  return writer.bytes();
}

template <class Layer>
void try_load(Layer layer, const meo::io::SafetensorsReader& file) {
  const std::vector<std::byte> before = saved(layer);
  if (!refuse_at_most([&] { meo::io::load(layer, file); }) && saved(layer) != before) std::abort();
}

// All options are such that the seeds `moe`, `meo` and `block` are loaded.
template <class Layer, class Options>
Layer random_layer(const Options& options) {
  Layer layer(options);
  std::mt19937_64 rng(1);
  layer.initialize(rng);
  return layer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using Moe = meo::MoeLayer<float>;
  using Meo = meo::MeoLayer<float>;
  using Block = meo::FeedForward<Meo>;
  static const Moe moe_layer =
      random_layer<Moe>(meo::LayerOptions{.in_features = 2,
                                          .out_features = 1,
                                          .num_experts = 2,
                                          .routing = {.level = meo::Level::task, .task_features = 1}});
  static const Meo meo_layer = random_layer<Meo>(meo::LayerOptions{
      .in_features = 1, .out_features = 2, .num_experts = 2, .routing = {.level = meo::Level::token}});
  static const Block block = random_layer<Block>(meo::FeedForwardOptions{
      .features = 1, .hidden_features = 2, .num_experts = 1, .bias = false, .gated = true});

  refuse_at_most([&] {
    const meo::io::SafetensorsReader file(std::as_bytes(std::span(data, size)), "fuzz");
    for (const std::string& name : file.names()) {
      refuse_at_most([&] { file.read<double>(name); });
      refuse_at_most([&] { file.read<std::int64_t>(name); });
      refuse_at_most([&] { file.check_finite<float>(name); });
      refuse_at_most([&] { file.check<float>(name, file.info(name).shape, true); });
    }
    try_load(moe_layer, file);
    try_load(meo_layer, file);
    try_load(block, file);
  });
  return 0;
}
