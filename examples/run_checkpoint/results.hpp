#pragma once

/// What a run reads, prints and writes.

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

namespace run_checkpoint {

using meo::Index;

/// A tensor of sequences as the library takes it: all tokens one under another, and where sequences begin.
template <class Scalar>
struct Batch {
  meo::Matrix<Scalar> tokens;
  meo::Sequences sequences;

  static Batch read(const meo::io::SafetensorsReader& reader, const std::string& name) {
    std::vector<Index> shape = reader.info(name).shape;
    if (shape.size() == 2) shape.insert(shape.begin(), 1);
    if (shape.size() != 3) {
      throw meo::io::Error(
          reader.file(), name,
          "expected a shape of two or three dimensions, got " + std::to_string(shape.size()));
    }
    const std::vector<Scalar> values = reader.read<Scalar>(name);
    if (values.empty()) throw meo::io::Error(reader.file(), name, "expected elements, got none");
    return {Eigen::Map<const meo::Matrix<Scalar>>(values.data(), shape[0] * shape[1], shape[2]),
            meo::Sequences::uniform(shape[0], shape[1])};
  }
};

inline void print_shape(std::string_view name, const std::vector<Index>& shape) {
  std::cout << name << ':';
  for (std::size_t i = 0; i < shape.size(); ++i) std::cout << (i > 0 ? " x " : " ") << shape[i];
  std::cout << '\n';
}

template <class Scalar>
void print_selection(std::string_view name, const meo::Routing<Scalar>& routing) {
  constexpr Index most = 8;
  std::cout << name << ", expert (weight) of each of " << routing.rows << " rows:\n";
  for (Index row = 0; row < (std::min)(routing.rows, most); ++row) {
    std::cout << "  row " << row << ':';
    for (std::size_t i = 0; i < routing.row_experts(row).size(); ++i) {
      std::cout << "  " << routing.row_experts(row)[i] << " (" << routing.row_weights(row)[i] << ')';
    }
    std::cout << '\n';
  }
  if (routing.rows > most) std::cout << "  and " << routing.rows - most << " more\n";
}

/// Median of a few runs.
inline void print_time(const std::function<void()>& forward) {
  std::vector<double> times;
  for (int run = 0; run < 5; ++run) {
    const auto start = std::chrono::steady_clock::now();
    forward();
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  std::cout << "time: " << times[times.size() / 2] << " ms\n";
}

/// Collects the results and writes them with the dtypes of the checkpoint.
template <class Scalar>
class Results {
 public:
  /// file: whose tensors of the same name say the dtypes, or null; dtype: of the others.
  Results(const meo::io::SafetensorsReader* file, meo::io::DType dtype) : file_(file), dtype_(dtype) {}

  template <class Values>
  void add(const std::string& name, const std::vector<Index>& shape, const Values& values) {
    const bool is_there = file_ != nullptr && file_->contains(name);
    writer_.add(name, shape, values, is_there ? file_->info(name).dtype : dtype_);
  }
  void write(const std::string& file) const { writer_.write(file); }

 private:
  const meo::io::SafetensorsReader* file_;
  meo::io::DType dtype_;
  meo::io::SafetensorsWriter writer_;
};

/// Throws if y, tokens × features, is not finite everywhere. Looks at the bits, because with -ffast-math
/// compilers take every number for finite.
template <class Scalar>
void check_finite(const std::string& file, const meo::Matrix<Scalar>& y) {
  using Bits = std::conditional_t<sizeof(Scalar) == 8, std::uint64_t, std::uint32_t>;
  constexpr auto infinity = static_cast<Bits>(sizeof(Scalar) == 8 ? 0x7ff0000000000000 : 0x7f800000);
  for (Index row = 0; row < y.rows(); ++row) {
    for (Index col = 0; col < y.cols(); ++col) {
      const auto bits = std::bit_cast<Bits>(y(row, col));
      if ((bits & infinity) != infinity) continue;
      const char* const got = bits << 1 != infinity << 1 ? "nan" : bits == infinity ? "inf" : "-inf";
      throw meo::io::Error(file, "y: expected finite numbers, got " + std::string(got) + " in row " +
                                     std::to_string(row) + ", column " + std::to_string(col));
    }
  }
}

/// The input's shape with another number of features.
inline std::vector<Index> output_shape(std::vector<Index> shape, Index features) {
  shape.back() = features;
  return shape;
}

/// Runs a block, prints what comes out and writes it where the user wants that. x_name, x_shape: of the
/// input; note: a line about it, or none.
template <class Block>
void report_block(const Block& block, const std::string& file, const std::string& x_name,
                  const std::vector<Index>& x_shape, const std::string& note,
                  const meo::Matrix<typename Block::Scalar>& x,
                  const meo::Inputs<typename Block::Scalar>& inputs, Results<typename Block::Scalar> results,
                  const std::optional<std::string>& output) {
  using Scalar = typename Block::Scalar;
  const std::vector<Index> y_shape = output_shape(x_shape, block.options().features);
  meo::Matrix<Scalar> y(x.rows(), block.options().features);
  meo::FeedForwardWorkspace<Scalar> workspace;
  const Scalar loss = block.forward(x, inputs, y, workspace);
  check_finite(file, y);

  print_shape(x_name, x_shape);
  std::cout << note;
  print_shape("y", y_shape);
  block.visit_routings(workspace, [](const std::string& projection, const meo::Routing<Scalar>& routing) {
    print_selection("gate of " + projection, routing);
  });
  std::cout << "loss: " << loss << '\n';
  if (output) {
    results.add("y", y_shape, y);
    results.add("loss", {1}, std::vector<Scalar>{loss});
    results.write(*output);
  }
  print_time([&] { block.forward(x, inputs, y, workspace); });
}

}  // namespace run_checkpoint
