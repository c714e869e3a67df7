/// Runs BERT and GPT-2, with dense, MoE or MEO feed-forward blocks. `--help` says what it reads and writes.

#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "recorded_run.hpp"

namespace {

constexpr std::string_view help_text = R"(usage: run_model FILE.safetensors [options]

Runs the model of FILE, a safetensors file that holds a model and a batch.

  --output OUT    write logits, loss and moe_loss to OUT as safetensors
  --gradients     compute those of all parameters, and write them too
  --help          this text

Metadata of FILE, all strings: sizes under the names of config.json, and
  model           bert or gpt2
  head            classification, regression, mlm (masked words) or lm (next word)
  use_moe         none, MoE or MEO; for GPT-2 Conv1D_MoE and Conv1D_MEO
  moe_level       token, sequence or task
  num_experts, top_k, reduce_factor, description_size

Tensors of FILE (B texts of T tokens, R rows that are gated, N experts):
  input_ids       (B, T); token_type_ids and attention_mask, too, where there are some
  task_ids        (B, L), at task level
  labels          (B), or (B, T) for words; -100 is not asked for
  noise.i         (R, N), of the i-th gate, layer by layer, up before down
and the parameters under the names of the published models, after param.

OUT gets logits, loss (with the gates' balance losses), moe_loss (those alone) and
grad.NAME, with the dtypes of FILE's own tensors of these names where there are some.

Exit code: 0 fine, 1 FILE does not fit, or OUT cannot be written, 2 wrong options.
)";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string file;
  std::optional<std::filesystem::path> output;
  bool gradients = false;
  bool help = false;
};

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--help" || word == "-h") {
      arguments.help = true;
    } else if (word == "--gradients") {
      arguments.gradients = true;
    } else if (word == "--output") {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      arguments.output = words[++i];
    } else if (word.starts_with("-")) {
      throw UsageError("unknown option '" + word + "'");
    } else if (arguments.file.empty()) {
      arguments.file = word;
    } else {
      throw UsageError("expected one file, got also '" + word + "'");
    }
  }
  if (arguments.file.empty() && !arguments.help) throw UsageError("expected a file");
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << help_text;
    else transformer::run_recorded(arguments.file, arguments.gradients, arguments.output);
    if (!std::cout.flush()) throw std::runtime_error("cannot write to standard output");
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "run_model: " << error.what() << "; --help says more\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "run_model: " << error.what() << '\n';
    return 1;
  }
}
