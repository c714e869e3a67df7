#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/checkpoint.hpp>
#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/distributed/tensor_parallel_projections.hpp>
#include <meo/io/checkpoint.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/training/parameters.hpp>

#include "distributed/world.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace checkpoint_test {

using namespace meo;
using namespace meo::test;
using mpi::TensorParallel;

/// A path for all ranks, in a folder of the first one's that is gone with its object.
class SharedPath {
 public:
  SharedPath() {
    std::string name = (folder_ / "shared").string();
    Index size = Index(name.size());
    world().broadcast(std::span<Index>(&size, 1));
    name.resize(std::size_t(size));
    world().broadcast(std::span<char>(name));
    path_ = name;
  }
  SharedPath(const SharedPath&) = delete;
  SharedPath& operator=(const SharedPath&) = delete;
  ~SharedPath() { world().barrier(); }

  const std::filesystem::path& path() const { return path_; }

 private:
  Folder folder_;
  std::filesystem::path path_;
};

template <class Layer>
std::vector<std::byte> bytes_of_one_rank(const Layer& layer, const std::string& prefix) {
  io::SafetensorsWriter writer;
  writer.set_metadata("step", "7");
  io::save(layer, writer, prefix);
  return writer.bytes();
}

/// Whether two layers, or parts of them, have the same parameters.
template <class Layer>
bool are_same(Layer& a, Layer& b) {
  const auto of_a = parameters(a), of_b = parameters(b);
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    if (!std::equal(of_a[i].values.begin(), of_a[i].values.end(), of_b[i].values.begin())) return false;
  }
  return of_a.size() == of_b.size();
}

/// The same of what a rank has of two layers whose experts are spread.
template <class Layer>
bool are_same(mpi::ExpertParallel<Layer>& a, mpi::ExpertParallel<Layer>& b) {
  const auto same = [](const Parameters<double>& of_a, const Parameters<double>& of_b) {
    return std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), [](const auto& x, const auto& y) {
      return std::equal(x.values.begin(), x.values.end(), y.values.begin(), y.values.end());
    });
  };
  return same(a.router_parameters(), b.router_parameters()) &&
         same(a.expert_parameters(), b.expert_parameters());
}

template <class Layer, class Split = TensorParallel<Layer>>
void check_files(const typename Layer::Options& options) {
  Generator rng(5);
  Layer whole(options);
  whole.initialize(rng);
  const std::vector<std::byte> expected = bytes_of_one_rank(whole, "a.");
  const SharedPath file;

  Split split(world(), whole);
  mpi::CheckpointWriter writer(world());
  writer.set_metadata("step", "7");
  writer.add(split, "a.");
  writer.write(file.path());
  CHECK(load_bytes(file.path()) == expected);

  Split loaded(world(), options);
  mpi::load(loaded, mpi::open(world(), file.path()), "a.");
  CHECK(are_same(loaded, split));
}

TEST_CASE("a file that ranks write together is that of one rank, and any number reads it") {
  check_files<MoeLayer<double>>(small_layer(Level::token, 5, 37));
  check_files<MeoLayer<double>>(small_layer(Level::token, 20, 1003));
  check_files<FeedForward<MoeLayer<double>>>(small_block(Level::task, 3, 11, true, true));
  FeedForwardOptions block = small_block(Level::sequence, 3, 70, false, true);
  block.shared_experts = {.count = 1, .weight = SharedWeight::sigmoid};
  check_files<FeedForward<MeoLayer<double>>>(block);
  check_files<FeedForward<MeoLayer<double>>, mpi::TensorParallelProjections<MeoLayer<double>>>(
      small_block(Level::token, 6, 9, true, false));
  check_files<FeedForward<MeoLayer<double>>, mpi::TensorParallelProjections<MeoLayer<double>>>(
      small_block(Level::token, 6, 9, true, true));
}

TEST_CASE("experts that ranks own are written and read as those of one rank") {
  using Moe = MoeLayer<double>;
  LayerOptions layer = small_layer(Level::task, 5, 7);
  layer.num_experts = 3;  // fewer than four ranks
  layer.top_k = 2;
  layer.shared_experts = GENERATE(SharedExpertOptions{}, SharedExpertOptions{2, SharedWeight::sigmoid});
  check_files<Moe, mpi::ExpertParallel<Moe>>(layer);
  FeedForwardOptions block = small_block(Level::token, 3, 11, true, true);
  block.shared_experts = layer.shared_experts;
  using Block = FeedForward<Moe>;
  check_files<Block, mpi::ExpertParallel<Block>>(block);
}

TEST_CASE("layers that every rank has whole stand beside those that are split") {
  Generator rng(6);
  MoeLayer<float> whole(small_layer(Level::token, 3, 8)), other(small_layer(Level::token, 2, 5));
  whole.initialize(rng);
  other.initialize(rng);
  io::SafetensorsWriter one;
  io::save(whole, one, "a.");
  io::save(other, one, "b.");
  const SharedPath file;
  const TensorParallel<MoeLayer<float>> split(world(), whole);
  mpi::CheckpointWriter writer(world());
  writer.add(split, "a.");
  writer.add(other, "b.");
  writer.write(file.path());
  CHECK(load_bytes(file.path()) == one.bytes());
}

TEST_CASE("what one rank finds wrong in its part of a file, all throw, and load nothing") {
  const int last = world().size() - 1;
  Generator rng(7);
  const auto options = small_layer(Level::sequence, 5, 8);
  MeoLayer<double> whole(options);
  whole.initialize(rng);
  Matrix<double> weight = whole.weight(2);
  weight(7, 1) = std::numeric_limits<double>::quiet_NaN();  // the last rank's
  whole.set_weight(2, weight);
  const SharedPath file;
  mpi::CheckpointWriter writer(world());
  const TensorParallel<MeoLayer<double>> split(world(), whole);
  writer.add(split);
  writer.write(file.path());

  TensorParallel<MeoLayer<double>> loaded(world(), options), zero(world(), options);
  const auto load = [&](const io::LoadOptions& how) {
    mpi::load(loaded, mpi::open(world(), file.path()), "param.", how);
  };
  // No other rank has read it.
  CHECK_THROWS_WITH(load({.require_finite = true}),
                    Catch::Contains("expected a finite number") &&
                        Catch::Contains(" (on rank " + std::to_string(last) + ")"));
  CHECK(are_same(loaded.part(), zero.part()));
  load({});
  CHECK(std::isnan(loaded.part().weight(2)(loaded.part().out_features() - 1, 1)) == (world().rank() == last));

  TensorParallel<MeoLayer<double>> larger(world(), small_layer(Level::sequence, 5, 9));
  CHECK_THROWS_WITH(mpi::load(larger, mpi::open(world(), file.path())),
                    Catch::Contains("expected shape [4, 9, 5], got [4, 8, 5]"));
  auto without_bias = options;
  without_bias.bias = false;
  TensorParallel<MeoLayer<double>> unbiased(world(), without_bias);
  CHECK_THROWS_WITH(mpi::load(unbiased, mpi::open(world(), file.path())),
                    Catch::Contains("is no parameter of what is loaded"));
}

TEST_CASE("a file that one rank alone cannot open or write is an error of all") {
  const int last = world().size() - 1;
  const bool is_last = world().rank() == last;
  const SharedPath file;
  const TensorParallel<MeoLayer<double>> split(world(), small_layer(Level::sequence, 5, 8));
  mpi::CheckpointWriter writer(world());
  writer.add(split);
  writer.write(file.path());
  CHECK_THROWS_WITH(mpi::open(world(), is_last ? "no such file" : file.path()),
                    Catch::Contains("no such file: cannot be read") &&
                        Catch::Contains(" (on rank " + std::to_string(last) + ")"));
  CHECK_THROWS_AS(writer.write("no such folder/file"), mpi::Error);

  if (last == 0) return;
  const std::vector<std::byte> before = load_bytes(file.path());
  mpi::CheckpointWriter other(world());
  if (!is_last) other.add(split);
  CHECK_THROWS_WITH(other.write(file.path()),
                    Catch::Contains("tensors and metadata of the checkpoint: expected the same"));
  auto slices = mpi::tensor_slices(split, "");
  mpi::CheckpointWriter incomplete(world());
  for (auto& slice : slices) {
    if (slice.held == mpi::Held::in_part) slice.held = mpi::Held::by_first;
    incomplete.add(slice);
  }
  CHECK_THROWS_WITH(incomplete.write(file.path()), Catch::Contains("elements of all ranks together, got"));
  CHECK(load_bytes(file.path()) == before);
}

}  // namespace checkpoint_test
}  // namespace
