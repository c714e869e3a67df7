#pragma once

/// The command line.

#include <charconv>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <meo/types.hpp>

namespace run_checkpoint {

inline constexpr std::string_view help_text = R"(usage: run_checkpoint FILE.safetensors [options]
       run_checkpoint DIR --layer L [options]

Loads an MoE or MEO layer, or a feed-forward block of such layers, from FILE and
runs it on a tensor of FILE; or a block of a model of a public family: mixtral,
olmoe, qwen2_moe, qwen3_moe, deepseek_v2, deepseek_v3, gpt_oss, granitemoe, switch.

  --prefix P      what the names of the parameters begin with   (default param.);
                  of a family's block their first words, where there are several
  --layer L       a family's block by the number of its layer
  --input NAME    the tensor to run on                                (default x);
                  of a family also a file that has x
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
or
  family          a family, and the fields of its config.json

DIR has config.json, and model.safetensors or several files with an index. Without an
x there, and without --input, 16 tokens are drawn.

Tensors of FILE (B sequences of T tokens, R rows that are gated, N experts):
  x               (B, T, features), or (T, features) for one sequence
  task_embeddings (B, L, task features), at task level
  noise           (R, N), R = B T for MoE at token level, else R = B
and the parameters under the names of the MEO authors' state_dict: w_gate, w_noise,
weight and bias, or experts.i.dense.weight and .bias, tokenatt.*, task_proj.*; in a
block under up., gate_up. and down. Sizes are those of the tensors. Or those of a
family, under its names.

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
  std::string file;  ///< or folder
  std::optional<std::string> prefix;
  std::optional<meo::Index> layer;
  std::optional<std::string> input;
  std::optional<std::string> output;
  bool help = false;
};

inline meo::Index parse_layer(const std::string& text) {
  meo::Index layer = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  if (error != std::errc() || end != text.data() + text.size() || layer < 0)
    throw UsageError("--layer: expected a number, got '" + text + "'");
  return layer;
}

inline Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&] {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      return words[++i];
    };
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--prefix") arguments.prefix = value();
    else if (word == "--layer") arguments.layer = parse_layer(value());
    else if (word == "--input") arguments.input = value();
    else if (word == "--output") arguments.output = value();
    else if (word.starts_with("-")) throw UsageError("unknown option '" + word + "'");
    else if (arguments.file.empty()) arguments.file = word;
    else throw UsageError("expected one file, got also '" + word + "'");
  }
  if (arguments.file.empty() && !arguments.help) throw UsageError("expected a file");
  return arguments;
}

}  // namespace run_checkpoint
