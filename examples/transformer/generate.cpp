/// Goes on with a text by GPT-2: one learns how a model computes each word once, with what it keeps of those
/// before. `--help` says more.

#include <cstdint>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "command_line.hpp"
#include "continuation.hpp"
#include "model/model_folder.hpp"
#include "storage_option.hpp"
#include "text/folder_tokenizer.hpp"
#include "train/saved_folder.hpp"

namespace {

using namespace transformer;

constexpr std::string_view help_text = R"(usage: generate DIR --prompt="…" [options]

Goes on with the text by the GPT-2 of DIR, a folder with config.json, model.safetensors,
vocab.json and merges.txt, and prints both. Every word is computed once. Mixtures decide
by the prompt's mean for all words that follow, so that their experts are merged once and
a word then costs what one of a dense model does; those of moe_level token decide for each.

  --tokens=N         most tokens to add                               (default 50)
  --temperature=T    of the distribution that each is drawn from; 0: always the most
                     probable one                                      (default 0)
  --top-words=K      draw from the K most probable alone             (default all)
  --seed=N                                                             (default 1)
  --storage=S        experts stored as bf16, half or int8; merged ones are floats
  --anew             mix the prompt's experts anew for every word, to compare

Ends at <|endoftext|>, if the vocabulary has it, and where the model has no more
positions. Options may be written --name value, too. Exit code: 0 fine, 1 what is read
does not fit, 2 wrong options.
)";

struct Arguments {
  std::string folder;
  std::optional<std::string> prompt;
  Index tokens = 50;
  Sampling sampling;
  std::uint64_t seed = 1;
  const Storage* storage = nullptr;
  Merging merging = Merging::once;
  bool help = false;
};

Arguments parse(CommandWords words) {
  Arguments arguments;
  while (!words.done()) {
    const std::string word = words.take();
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--prompt") arguments.prompt = words.value_of(word);
    else if (word == "--tokens") arguments.tokens = whole_number<Index>(word, words.value_of(word), 1);
    else if (word == "--temperature")
      arguments.sampling.temperature = number_within(word, words.value_of(word), 0);
    else if (word == "--top-words")
      arguments.sampling.top_words = whole_number<Index>(word, words.value_of(word), 1);
    else if (word == "--storage") arguments.storage = storage_of(words.value_of(word));
    else if (word == "--anew") arguments.merging = Merging::anew;
    else if (word == "--seed") arguments.seed = whole_number<std::uint64_t>(word, words.value_of(word), 0);
    else if (word.starts_with("-")) throw UsageError("unknown option '" + word + "'");
    else if (arguments.folder.empty()) arguments.folder = word;
    else throw UsageError("expected one folder, got also '" + word + "'");
  }
  if (arguments.help) return arguments;
  if (arguments.folder.empty()) throw UsageError("expected a folder");
  if (!arguments.prompt) throw UsageError("expected --prompt");
  return arguments;
}

void run(const Arguments& arguments) {
  const Config config = load_config_with(arguments.folder, std::nullopt, arguments.storage);
  if (config.family != Family::gpt2)
    throw meo::io::Error(arguments.folder, "model_type: expected gpt2, got bert");
  const FolderTokenizer tokenizer(arguments.folder);
  require_vocabulary(tokenizer, config, arguments.folder);
  const std::vector<Index> prompt = tokenizer.encode(*arguments.prompt, std::nullopt).input_ids;
  const Model<float> model = load_model<float>(arguments.folder, config);
  Continuation continuation(model, prompt, arguments.merging);
  std::cout << *arguments.prompt << std::flush;
  const std::optional<Index> end_of_text = tokenizer.find("<|endoftext|>");
  std::mt19937_64 rng(arguments.seed);
  for (Index i = 0; i < arguments.tokens && continuation.has_room(); ++i) {
    const Index word = draw_word(continuation.logits(), arguments.sampling, rng);
    if (word == end_of_text) break;
    std::cout << tokenizer.decode(std::vector<Index>{word}) << std::flush;
    continuation.add(word);
  }
  std::cout << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  return exit_code_of("generate", [&] {
    const Arguments arguments = parse(CommandWords({argv + 1, argv + argc}));
    if (arguments.help) std::cout << help_text;
    else run(arguments);
  });
}
