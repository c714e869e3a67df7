// Loading and saving hold at most a tenth of a layer beside it. A program of its own: it counts what operator
// new is asked for, and Eigen, which calls malloc, reports its allocations through an assertion that release
// builds keep.

#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? static_cast<void>(0) : throw std::logic_error(#condition))

#include <cstddef>
#include <filesystem>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/heap.hpp"
#include "support/options.hpp"

namespace {

using namespace meo;

/// Most bytes that are live at a time during f, beyond those before it; throws for an allocation by Eigen.
template <class Function>
std::size_t peak_of(Function&& f) {
  const test::heap::NoEigenMalloc none;
  return test::heap::peak_of(f);
}

/// From a layer of Saved to a file and from there to one of Loaded. Peaks are those of the layer and of what
/// stands beside it.
template <class Saved, class Loaded>
void check_memory(const typename Saved::Options& options) {
  const test::Folder folder;
  const auto path = folder / "f.safetensors";
  const auto check_peak = [](std::size_t peak, std::size_t layer) {
    CHECK(layer > 4'000'000);
    CHECK(peak > layer);
    CHECK(10 * peak <= 11 * layer);
  };
  const std::size_t saving = peak_of([&] {
    const Saved layer(options);
    io::SafetensorsWriter writer;
    io::save(layer, writer);
    writer.write(path);
  });
  check_peak(saving, peak_of([&] { const Saved layer(options); }));
  for (const bool require_finite : {false, true}) {
    const std::size_t loading = peak_of([&] {
      Loaded layer(options);
      io::load(layer, io::SafetensorsReader(path), "param.", {.require_finite = require_finite});
    });
    check_peak(loading, peak_of([&] { const Loaded layer(options); }));
  }
}

TEST_CASE("the peak is that of what is live at a time", "[noalloc]") {
  CHECK(peak_of([] {
          const std::vector<float> kept(1000);
          { const std::vector<float> freed(3000); }
          const meo::AlignedVector<double> more(1000);
        }) == 16000);
  CHECK_THROWS_AS(peak_of([] { Matrix<float>::Ones(3, 3).eval(); }), std::logic_error);
}

TEMPLATE_TEST_CASE("loading or saving a layer holds at most a tenth of it beside it", "[noalloc]",
                   MoeLayer<float>, MoeLayer<double>, MeoLayer<float>, MeoLayer<double>) {
  for (const Level level : test::all_levels) {
    INFO(to_string(level) << " level");
    check_memory<TestType, TestType>(test::small_layer(level, 512, 768));
  }
  INFO("many experts");
  check_memory<TestType, TestType>({.in_features = 128, .out_features = 128, .num_experts = 128});
}

TEST_CASE("nor does it where the file has another type", "[noalloc]") {
  check_memory<MoeLayer<float>, MoeLayer<double>>(test::small_layer(Level::token, 512, 768));
  check_memory<MeoLayer<double>, MeoLayer<float>>(test::small_layer(Level::token, 512, 768));
}

TEMPLATE_TEST_CASE("nor does it for a block", "[noalloc]", FeedForward<MoeLayer<float>>,
                   FeedForward<MeoLayer<double>>) {
  for (const bool shared_gate : {false, true})
    check_memory<TestType, TestType>(test::small_block(Level::token, 256, 512, true, shared_gate));
}

TEST_CASE("loading a block of a public model holds an expert's tensor beside it at most", "[noalloc]") {
  using Block = FeedForward<MoeLayer<float>, AnyActivation>;
  constexpr Index features = 128, hidden = 256, experts = 32;
  const test::Folder folder;
  for (const char* const family : {"mixtral", "granitemoe", "gpt_oss"}) {
    CAPTURE(family);
    const bool is_turned = family == std::string("gpt_oss");
    const io::ModelFamily& table = io::model_family(family, "");
    const io::BlockFormat format{.prefix = "h.0.", .layout = table.layouts[0]};
    FeedForwardOptions options{.features = features,
                               .hidden_features = hidden,
                               .num_experts = experts,
                               .bias = is_turned,
                               .gated = true,
                               .shared_gate = true,
                               .routing = {.scores = {.bias = is_turned}}};
    const auto path = folder / family;
    const std::size_t block_bytes = peak_of([&] { const Block block(options, AnyActivation::Kind::silu); });
    CHECK(block_bytes > 12'000'000);
    // Besides numbers in pieces, 1 kB for each of three tensors an expert, and Gate and Up of one.
    const std::size_t most = 32768 + 3 * experts * 1024 + (is_turned ? 2 * features * hidden * 4 : 0);
    const std::size_t saving = peak_of([&] {
      const Block block(options, AnyActivation::Kind::silu);
      io::SafetensorsWriter writer;
      io::save(block, format, writer);
      writer.write(path);
    });
    CHECK(saving <= block_bytes + most);
    const std::size_t loading = peak_of([&] {
      const io::TensorFiles files{io::SafetensorsReader(path)};
      Block block(options, AnyActivation::Kind::silu);
      io::load(block, format, files, {.require_finite = true});
    });
    CHECK(loading <= block_bytes + most);
    CHECK(loading > block_bytes);
  }
}

}  // namespace
