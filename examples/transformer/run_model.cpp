/// Runs BERT and GPT-2, with dense, MoE or MEO feed-forward blocks: one learns how published folders become
/// models, and how their outputs and gradients are had. `--help` says what it reads and writes.

#include <filesystem>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "command_line.hpp"
#include "folder_run.hpp"
#include "mixture_options.hpp"
#include "recorded_run.hpp"
#include "storage_option.hpp"

#if defined(TRANSFORMER_TEXT)
#include "text/folder_tokenizer.hpp"
#endif

namespace {

using transformer::Batch;
using transformer::CommandWords;
using transformer::Index;
using transformer::UsageError;
using transformer::whole_number;

constexpr std::string_view help_text = R"(usage: run_model DIR [options]
       run_model FILE.safetensors [options]

Runs the model of DIR, a folder with config.json and model.safetensors (or several
files and model.safetensors.index.json), as BERT and GPT-2 are published.

  --text "…"      run it on this text, which is read by the folder's vocab.txt (WordPiece,
                  uncased unless tokenizer_config.json says do_lower_case: false) or its
                  vocab.json and merges.txt (byte pairs); may be given several times
  --pair "…"      the second text of a pair with the --text before it
  --ids "I I …"   run it on this text, as token ids; may be given several times
  --task-ids "…"  the description of the texts' task, at task level
  --mask I        the id whose places masked words are printed for  (default that of
                  [MASK] in vocab.txt with --text, else 103)
  --output OUT    write the logits, or a BertModel's hidden_states, to OUT as safetensors
  --ffn F         moe or meo: make each feed-forward projection of a dense model a
                  mixture whose experts are copies of it
  --level L       token, sequence, task (BERT) or segment (GPT-2)   (default sequence)
  --segment-tokens S
                  at level segment: gates decide for S tokens by the S before them
  --experts N     (default 8)
  --top-k K       experts that are selected                               (default 2)
  --storage S     experts stored as bf16, half or int8; all else is float
  --save DIR2     save the model, as after --ffn and --storage, to DIR2 in floats

Or runs the model of FILE, a safetensors file that holds a model and a batch.

  --output OUT    write logits, loss and moe_loss to OUT as safetensors
  --gradients     compute those of all parameters, and write them too

Metadata of FILE, all strings: sizes under the names of config.json, and
  model           bert or gpt2
  head            classification, regression, mlm (masked words) or lm (next word)
  use_moe         none, MoE or MEO; for GPT-2 Conv1D_MoE and Conv1D_MEO
  moe_level       token, sequence, task or segment, the last with segment_tokens
  num_experts, top_k, reduce_factor, description_size

Tensors of FILE (B texts of T tokens, R rows that are gated, N experts):
  input_ids       (B, T); token_type_ids and attention_mask, too, where there are some
  task_ids        (B, L), at task level
  labels          (B), or (B, T) for words; -100 is not asked for
  noise.i         (R, N), of the i-th gate, layer by layer, up before down
and the parameters under the names of the published models, after param.

OUT gets logits, loss (with the gates' balance losses), moe_loss (those alone) and
grad.NAME, with the dtypes of FILE's own tensors of these names where there are some.

Options may be written --name=value, too. Exit code: 0 fine, 1 what is read does not
fit, or OUT or DIR2 cannot be written, 2 wrong options.
)";

struct Text {
  std::string text;
  std::optional<std::string> pair;
};

struct Arguments {
  std::string path;
  transformer::FolderRun folder;
  std::vector<Text> texts;
  std::vector<std::vector<Index>> ids;  ///< texts as such
  std::vector<Index> task;
  std::optional<Index> mask;
  bool gradients = false;
  bool help = false;
  std::string only_folder, only_file;  ///< an option that needs it, if any
};

std::vector<Index> ids(const std::string& option, const std::string& text) {
  std::vector<Index> ids;
  std::istringstream words(text);
  for (std::string word; words >> word;) ids.push_back(whole_number<Index>(option, word, 0));
  return ids;
}

Arguments parse(CommandWords words) {
  Arguments arguments;
  transformer::MixtureOptions mixture;
  while (!words.done()) {
    const std::string word = words.take();
    if (word == "--help" || word == "-h") {
      arguments.help = true;
    } else if (word == "--gradients") {
      arguments.gradients = true;
      arguments.only_file = word;
    } else if (word == "--output") {
      arguments.folder.output = words.value_of(word);
    } else if (!word.starts_with("-")) {
      if (!arguments.path.empty()) throw UsageError("expected one file or folder, got also '" + word + "'");
      arguments.path = word;
    } else {
      if (word == "--text") {
        arguments.texts.push_back({words.value_of(word), {}});
      } else if (word == "--pair") {
        const std::string& pair = words.value_of(word);
        if (arguments.texts.empty() || arguments.texts.back().pair)
          throw UsageError("--pair needs a --text of its own before it");
        arguments.texts.back().pair = pair;
      } else if (word == "--ids") {
        arguments.ids.push_back(ids(word, words.value_of(word)));
      } else if (word == "--task-ids") {
        arguments.task = ids(word, words.value_of(word));
      } else if (word == "--mask") {
        arguments.mask = whole_number<Index>(word, words.value_of(word), 0);
      } else if (word == "--storage") {
        arguments.folder.storage = transformer::storage_of(words.value_of(word));
      } else if (word == "--save") {
        arguments.folder.save_to = words.value_of(word);
      } else if (!mixture.take(word, words)) {
        throw UsageError("unknown option '" + word + "'");
      }
      arguments.only_folder = word;
    }
  }
  if (arguments.path.empty() && !arguments.help) throw UsageError("expected a file or a folder");
  if (!arguments.texts.empty() && !arguments.ids.empty())
    throw UsageError("expected --text or --ids, got both");
#if !defined(TRANSFORMER_TEXT)
  if (!arguments.texts.empty())
    throw UsageError("--text needs utf8proc (Debian: libutf8proc-dev), without which this program was built");
#endif
  arguments.folder.mixture = mixture.mixture();
  return arguments;
}

Batch batch_of(const Arguments& arguments) {
  Batch batch;
  for (const std::vector<Index>& text : arguments.ids) batch.add(text);
  batch.task_words = arguments.task;
  if (!arguments.task.empty())
    batch.descriptions = meo::Sequences::uniform(1, static_cast<Index>(arguments.task.size()));
  return batch;
}

#if defined(TRANSFORMER_TEXT)
void run_texts(Arguments& arguments) {
  transformer::FolderRun& run = arguments.folder;
  const transformer::FolderTokenizer tokenizer(run.folder);
  const bool has_types = transformer::load_config(run.folder).family == transformer::Family::bert;
  Batch batch = batch_of(arguments);
  for (const Text& text : arguments.texts) {
    const transformer::Encoding encoding = tokenizer.encode(text.text, text.pair);
    if (has_types) batch.add(encoding.input_ids, encoding.token_type_ids);
    else batch.add(encoding.input_ids);
  }
  if (const auto mask = tokenizer.mask(); mask && !arguments.mask) run.mask_word = *mask;
  transformer::run_folder(run, batch, [&](Index id) { return tokenizer.spelling(id); });
}
#endif

void run(Arguments arguments) {
  if (!std::filesystem::exists(arguments.path))
    throw std::runtime_error(arguments.path + ": no such file or folder");
  const bool is_folder = std::filesystem::is_directory(arguments.path);
  const std::string& unfit = is_folder ? arguments.only_file : arguments.only_folder;
  if (!unfit.empty())
    throw UsageError(unfit + " is for " + (is_folder ? "a file, not a folder" : "a folder, not a file"));
  if (!is_folder) {
    transformer::run_recorded(arguments.path, arguments.gradients, arguments.folder.output);
    return;
  }
  arguments.folder.folder = arguments.path;
  if (arguments.mask) arguments.folder.mask_word = *arguments.mask;
#if defined(TRANSFORMER_TEXT)
  if (!arguments.texts.empty()) {
    run_texts(arguments);
    return;
  }
#endif
  transformer::run_folder(arguments.folder, batch_of(arguments), [](Index id) { return std::to_string(id); });
}

}  // namespace

int main(int argc, char** argv) {
  return transformer::exit_code_of("run_model", [&] {
    const Arguments arguments = parse(CommandWords({argv + 1, argv + argc}));
    if (arguments.help) std::cout << help_text;
    else run(arguments);
  });
}
