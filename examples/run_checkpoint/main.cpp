/// Runs a layer or a feed-forward block from a safetensors checkpoint on an input from the same file.
/// `--help` says which metadata and tensors it reads and what it writes.

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <locale>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

namespace {

using meo::Index;
using meo::Level;

constexpr std::string_view help_text = R"(usage: run_checkpoint FILE.safetensors [options]

Loads an MoE or MEO layer, or a feed-forward block of such layers, from FILE and
runs it on a tensor of FILE.

  --prefix P      what the names of the parameters begin with   (default param.)
  --input NAME    the tensor to run on                                (default x)
  --output OUT    write the results to OUT as safetensors
  --help          this text

Metadata of FILE, all strings:
  kind            MoE, MEO, or Conv1D_MEO (gates before token attention)
  level           token, sequence or task
  num_experts, top_k
  reduce_factor   of token attention and task projection           (default 64)
  loss_coef, noise_epsilon                               (default 0.01 for both)
  training        True: use the tensor `noise`, if FILE has one (default False)
  block           ffn for a block, which also reads
  activation      relu, gelu, gelu_tanh, silu or identity        (default gelu)
  gated           True or False                                  (default False)
  shared_gate     True or False: one gate, that of up, for all   (default False)

Tensors of FILE (B sequences of T tokens, R rows that are gated, N experts):
  x               (B, T, features), or (T, features) for one sequence
  task_embeddings (B, L, task features), at task level
  noise           (R, N), R = B T for MoE at token level, else R = B
and the parameters under the names of the MEO authors' state_dict: w_gate, w_noise,
weight and bias, or experts.i.dense.weight and .bias, tokenatt.*, task_proj.*; in a
block under up., gate_up. and down. Sizes are those of the tensors.

OUT gets y, gates (R, N), load (N) and loss (1); for a block y and loss. They have the
input's dtype, or that of FILE's tensor of the same name where there is one.

Parameters that are not finite are an error, and so is a y that is not; the error names
the first, y's by its row among all tokens and its column.

Exit code: 0 fine, 1 FILE does not fit, or OUT cannot be written (which is tried before
the run), 2 wrong options.
)";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string file;
  std::string prefix = "param.";
  std::string input = "x";
  std::optional<std::string> output;
  bool help = false;
};

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&] {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      return words[++i];
    };
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--prefix") arguments.prefix = value();
    else if (word == "--input") arguments.input = value();
    else if (word == "--output") arguments.output = value();
    else if (word.starts_with("-")) throw UsageError("unknown option '" + word + "'");
    else if (arguments.file.empty()) arguments.file = word;
    else throw UsageError("expected one file, got also '" + word + "'");
  }
  if (arguments.file.empty() && !arguments.help) throw UsageError("expected a file");
  return arguments;
}

/// The metadata of a checkpoint, with errors that name the file and the key.
class Metadata {
 public:
  explicit Metadata(const meo::io::SafetensorsReader& reader) : reader_(reader) {}

  std::string text(const std::string& key, const std::string& otherwise) const {
    return reader_.metadata().contains(key) ? reader_.metadata(key) : otherwise;
  }
  bool flag(const std::string& key) const {
    const std::string value = text(key, "False");
    if (value != "True" && value != "False") fail(key, "True or False", value);
    return value == "True";
  }
  Index count(const std::string& key) const {
    const std::string& value = reader_.metadata(key);
    Index count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    if (error != std::errc() || end != value.data() + value.size()) fail(key, "a number", value);
    if (count < 1) fail(key, "a number of at least 1", value);
    return count;
  }
  Index count(const std::string& key, Index otherwise) const {
    return reader_.metadata().contains(key) ? count(key) : otherwise;
  }
  double real(const std::string& key, double otherwise) const {
    if (!reader_.metadata().contains(key)) return otherwise;
    const std::string& value = reader_.metadata(key);
    double number = 0;
    std::istringstream text(value);  // not from_chars, which libc++ has for whole numbers only
    text.imbue(std::locale::classic());
    if (!(text >> std::noskipws >> number) || !text.eof()) fail(key, "a number", value);
    return number;
  }
  Level level() const {
    const std::string& value = reader_.metadata("level");
    for (const Level level : {Level::token, Level::sequence, Level::task}) {
      if (value == to_string(level)) return level;
    }
    fail("level", "token, sequence or task", value);
  }

  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& value) const {
    throw meo::io::Error(reader_.file(),
                         "metadata " + key + ": expected " + expected + ", got '" + value + "'");
  }

 private:
  const meo::io::SafetensorsReader& reader_;
};

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

/// What the run reads beside the parameters.
template <class Scalar>
struct Run {
  Batch<Scalar> x;
  std::optional<Batch<Scalar>> task_embeddings;
  std::optional<meo::Matrix<Scalar>> noise;
  bool lacks_noise = false;  // training says that there should be some

  Run(const meo::io::SafetensorsReader& reader, const std::string& input, const Metadata& metadata)
      : x(Batch<Scalar>::read(reader, input)) {
    if (metadata.level() == Level::task) task_embeddings = Batch<Scalar>::read(reader, "task_embeddings");
    const bool training = metadata.flag("training");
    lacks_noise = training && !reader.contains("noise");
    if (training && !lacks_noise) {
      const std::vector<Index> shape = reader.info("noise").shape;
      if (shape.size() != 2)
        throw meo::io::Error(reader.file(), "noise", "expected a shape of two dimensions");
      noise = reader.read_matrix<Scalar>("noise", shape[0], shape[1]);
    }
  }

  Index task_features() const { return task_embeddings ? task_embeddings->tokens.cols() : 0; }

  meo::Inputs<Scalar> inputs() const {
    meo::Inputs<Scalar> inputs{.sequences = &x.sequences};
    if (task_embeddings) {
      inputs.task_embeddings = task_embeddings->tokens;
      inputs.descriptions = &task_embeddings->sequences;
    }
    if (noise) inputs.noise = meo::Noise<Scalar>(*noise);
    return inputs;
  }
};

/// (out_features, in_features) of the expert weights under a prefix.
template <class Layer>
std::pair<Index, Index> weight_shape(const meo::io::SafetensorsReader& reader, const std::string& prefix) {
  const std::string name = prefix + (Layer::Kind::stacks_experts ? "weight" : "experts.0.dense.weight");
  const std::vector<Index>& shape = reader.info(name).shape;
  const std::size_t dimensions = Layer::Kind::stacks_experts ? 3 : 2;
  if (shape.size() != dimensions) {
    throw meo::io::Error(reader.file(), name,
                         "expected a shape of " + std::to_string(dimensions) + " dimensions, got " +
                             std::to_string(shape.size()));
  }
  return {shape[dimensions - 2], shape[dimensions - 1]};
}

/// Options of a layer or a block, with its sizes, completed by what the metadata and the tensors under the
/// prefix of the layer, or of one of the block's, say of both.
template <class Layer, class Options>
Options completed(Options options, const meo::io::SafetensorsReader& reader, const std::string& prefix,
                  Index task_features) {
  const Metadata metadata(reader);
  options.num_experts = metadata.count("num_experts");
  options.top_k = metadata.count("top_k");
  options.bias = reader.contains(prefix + (Layer::Kind::stacks_experts ? "bias" : "experts.0.dense.bias"));
  options.routing = {.level = metadata.level(),
                     .task_features = task_features,
                     .reduce_factor = metadata.count("reduce_factor", 64),
                     .gate_before_attention = metadata.text("kind", "") == "Conv1D_MEO",
                     .loss_coefficient = metadata.real("loss_coef", 0.01),
                     .noise_epsilon = metadata.real("noise_epsilon", 0.01)};
  return options;
}

void print_shape(std::string_view name, const std::vector<Index>& shape) {
  std::cout << name << ':';
  for (std::size_t i = 0; i < shape.size(); ++i) std::cout << (i > 0 ? " x " : " ") << shape[i];
  std::cout << '\n';
}

template <class Scalar>
void print_input(std::string_view name, const std::vector<Index>& shape, const Run<Scalar>& run) {
  print_shape(name, shape);
  if (run.lacks_noise) std::cout << "training is True, but there is no noise: run as inference\n";
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
template <class Function>
void print_time(const Function& forward) {
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
  Results(const meo::io::SafetensorsReader& reader, const std::string& input)
      : reader_(reader), dtype_(reader.info(input).dtype) {}

  template <class Values>
  void add(const std::string& name, const std::vector<Index>& shape, const Values& values) {
    writer_.add(name, shape, values, reader_.contains(name) ? reader_.info(name).dtype : dtype_);
  }
  void write(const std::string& file) const { writer_.write(file); }

 private:
  const meo::io::SafetensorsReader& reader_;
  meo::io::DType dtype_;
  meo::io::SafetensorsWriter writer_;
};

/// Throws if y, tokens × features, is not finite everywhere. Looks at the bits, because with -ffast-math
/// compilers take every number for finite.
template <class Scalar>
void check_finite(const meo::io::SafetensorsReader& reader, const meo::Matrix<Scalar>& y) {
  using Bits = std::conditional_t<sizeof(Scalar) == 8, std::uint64_t, std::uint32_t>;
  constexpr auto infinity = static_cast<Bits>(sizeof(Scalar) == 8 ? 0x7ff0000000000000 : 0x7f800000);
  for (Index row = 0; row < y.rows(); ++row) {
    for (Index col = 0; col < y.cols(); ++col) {
      const auto bits = std::bit_cast<Bits>(y(row, col));
      if ((bits & infinity) != infinity) continue;
      const char* const got = bits << 1 != infinity << 1 ? "nan" : bits == infinity ? "inf" : "-inf";
      throw meo::io::Error(reader.file(), "y: expected finite numbers, got " + std::string(got) + " in row " +
                                              std::to_string(row) + ", column " + std::to_string(col));
    }
  }
}

/// The input's shape with another number of features.
std::vector<Index> output_shape(std::vector<Index> shape, Index features) {
  shape.back() = features;
  return shape;
}

template <class Layer>
void run_layer(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  using Scalar = typename Layer::Scalar;
  const Metadata metadata(reader);
  const Run<Scalar> run(reader, arguments.input, metadata);
  const auto [out_features, in_features] = weight_shape<Layer>(reader, arguments.prefix);
  const auto options =
      completed<Layer>(meo::LayerOptions{.in_features = in_features, .out_features = out_features}, reader,
                       arguments.prefix, run.task_features());
  // Before there is a layer: metadata may ask for any amount of memory.
  meo::io::check_shapes<Layer>(options, reader, arguments.prefix);
  Layer layer(options);
  meo::io::load(layer, reader, arguments.prefix, {.require_finite = true});

  meo::Matrix<Scalar> y(run.x.tokens.rows(), options.out_features);
  meo::Workspace<Scalar> workspace;
  const meo::Routing<Scalar>& routing = layer.forward(run.x.tokens, run.inputs(), y, workspace);
  check_finite(reader, y);

  const std::vector<Index>& x_shape = reader.info(arguments.input).shape;
  const std::vector<Index> y_shape = output_shape(x_shape, options.out_features);
  print_input(arguments.input, x_shape, run);
  print_shape("y", y_shape);
  print_selection("gate", routing);
  std::cout << "loss: " << routing.loss << '\n';
  if (arguments.output) {
    Results<Scalar> results(reader, arguments.input);
    results.add("y", y_shape, y);
    results.add("gates", {routing.rows, routing.num_experts}, routing.dense());
    results.add("load", {routing.num_experts}, routing.load);
    results.add("loss", {1}, std::vector<Scalar>{routing.loss});
    results.write(*arguments.output);
  }
  print_time([&] { layer.forward(run.x.tokens, run.inputs(), y, workspace); });
}

template <class Layer>
void run_block(const meo::io::SafetensorsReader& reader, const Arguments& arguments,
               meo::AnyActivation activation) {
  using Scalar = typename Layer::Scalar;
  const Metadata metadata(reader);
  const Run<Scalar> run(reader, arguments.input, metadata);
  const std::string up = arguments.prefix + "up.";
  const auto [hidden_features, features] = weight_shape<Layer>(reader, up);
  const auto options = completed<Layer>(meo::FeedForwardOptions{.features = features,
                                                                .hidden_features = hidden_features,
                                                                .gated = metadata.flag("gated"),
                                                                .shared_gate = metadata.flag("shared_gate")},
                                        reader, up, run.task_features());
  using Block = meo::FeedForward<Layer, meo::AnyActivation>;
  meo::io::check_shapes<Block>(options, reader, arguments.prefix);
  Block block(options, activation);
  meo::io::load(block, reader, arguments.prefix, {.require_finite = true});

  meo::Matrix<Scalar> y(run.x.tokens.rows(), features);
  meo::FeedForwardWorkspace<Scalar> workspace;
  const Scalar loss = block.forward(run.x.tokens, run.inputs(), y, workspace);
  check_finite(reader, y);

  const std::vector<Index>& x_shape = reader.info(arguments.input).shape;
  print_input(arguments.input, x_shape, run);
  print_shape("y", output_shape(x_shape, features));
  block.visit_routings(workspace, [](const std::string& projection, const meo::Routing<Scalar>& routing) {
    print_selection("gate of " + projection, routing);
  });
  std::cout << "loss: " << loss << '\n';
  if (arguments.output) {
    Results<Scalar> results(reader, arguments.input);
    results.add("y", output_shape(x_shape, features), y);
    results.add("loss", {1}, std::vector<Scalar>{loss});
    results.write(*arguments.output);
  }
  print_time([&] { block.forward(run.x.tokens, run.inputs(), y, workspace); });
}

template <class Layer>
void run_kind(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  const Metadata metadata(reader);
  const std::string block = metadata.text("block", "");
  if (block.empty()) return run_layer<Layer>(reader, arguments);
  if (block != "ffn") metadata.fail("block", "ffn or none", block);
  const std::string activation = metadata.text("activation", "gelu");
  if (const auto chosen = meo::AnyActivation::from_name(activation))
    return run_block<Layer>(reader, arguments, *chosen);
  metadata.fail("activation", "relu, gelu, gelu_tanh, silu or identity", activation);
}

template <class Scalar>
void run_scalar(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  const std::string& kind = reader.metadata("kind");
  if (kind == "MoE") return run_kind<meo::MoeLayer<Scalar>>(reader, arguments);
  if (kind == "MEO" || kind == "Conv1D_MEO") return run_kind<meo::MeoLayer<Scalar>>(reader, arguments);
  Metadata(reader).fail("kind", "MoE, MEO or Conv1D_MEO", kind);
}

void run(const Arguments& arguments) {
  if (arguments.output) {
    std::error_code not_there;
    if (std::filesystem::equivalent(arguments.file, *arguments.output, not_there))
      throw UsageError("--output would replace the file that it runs, '" + arguments.file + "'");
    meo::io::require_writable(*arguments.output);
  }
  const meo::io::SafetensorsReader reader(arguments.file);
  // Doubles are computed as doubles, everything else in float.
  if (reader.info(arguments.input).dtype == meo::io::DType::F64) run_scalar<double>(reader, arguments);
  else run_scalar<float>(reader, arguments);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << help_text;
    else run(arguments);
    if (!std::cout.flush()) throw std::runtime_error("cannot write to standard output");
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "run_checkpoint: " << error.what() << "\nTry --help.\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "run_checkpoint: " << error.what() << '\n';
    return 1;
  }
}
