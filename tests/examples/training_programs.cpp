// The programs pretrain, glue and generate of examples/transformer: from plain text and small tables to
// scores, predictions and text, with a tiny model; that a run goes on from where it was killed; what they
// refuse.

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/program.hpp"

namespace {

using meo::test::Folder;
using meo::test::load_bytes;
using meo::test::load_text;
using meo::test::Outcome;
using Path = std::filesystem::path;
using Words = std::vector<std::string>;

Words operator+(Words left, const Words& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

Outcome pretrain(const Folder& folder, const Words& words) {
  return meo::test::run_program(MEO_PRETRAIN, folder, words);
}
Outcome glue(const Folder& folder, const Words& words) {
  return meo::test::run_program(MEO_GLUE, folder, words);
}
Outcome generate(const Folder& folder, const Words& words) {
  return meo::test::run_program(MEO_GENERATE, folder, words);
}

void require_fine(const Outcome& outcome) {
  CHECK(outcome.errors == "");
  REQUIRE(outcome.exit_code == 0);
}

void write(const Path& path, std::string_view text) {
  std::filesystem::create_directories(path.parent_path());
  meo::test::save(path, meo::test::to_bytes(text));
}

std::vector<Words> read_table(const Path& path, char separator = ',') {
  std::vector<Words> lines;
  std::istringstream text(load_text(path));
  for (std::string line; std::getline(text, line);) {
    std::istringstream cells(line);
    lines.emplace_back();
    for (std::string cell; std::getline(cells, cell, separator);) lines.back().push_back(cell);
  }
  return lines;
}

/// A log without what depends on the time a run takes, its last two columns.
std::vector<Words> timeless(const Path& log) {
  std::vector<Words> lines = read_table(log);
  for (Words& line : lines) line.resize(line.size() - 2);
  return lines;
}

const std::string common_words = "the cat dog sat ran on mat a red . blue is was";

/// A BERT of two layers of 16 and its words.
std::string write_bert(const Folder& folder) {
  const Path bert = folder / "bert";
  std::string words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (const char c : common_words) words += c == ' ' ? '\n' : c;
  write(bert / "vocab.txt", words + "\n");
  const nlohmann::json config{
      {"model_type", "bert"},         {"vocab_size", 18},         {"hidden_size", 16},
      {"num_hidden_layers", 2},       {"num_attention_heads", 2}, {"intermediate_size", 24},
      {"max_position_embeddings", 24}};
  write(bert / "config.json", config.dump());
  return bert.string();
}

/// A GPT-2 of two layers of 16, whose words are the printable bytes, the end of a line and the end of a text.
std::string write_gpt2(const Folder& folder) {
  const Path gpt2 = folder / "gpt2";
  nlohmann::json words;
  int next = 0;
  for (int byte = 0; byte < 256; ++byte) {
    // The characters that stand for bytes: themselves where they are printable, else U+0100 and those behind.
    const bool is_itself = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    const int point = is_itself ? byte : 0x100 + next++;
    std::string token;
    if (point < 0x80) token = {static_cast<char>(point)};
    else token = {static_cast<char>(0xc0 | point >> 6), static_cast<char>(0x80 | (point & 0x3f))};
    words[token] = byte;
  }
  words["<|endoftext|>"] = 256;
  write(gpt2 / "vocab.json", words.dump());
  write(gpt2 / "merges.txt", "#version: 0.2\n");
  const nlohmann::json config{{"model_type", "gpt2"}, {"vocab_size", 257}, {"n_embd", 16},
                              {"n_layer", 2},         {"n_head", 2},       {"n_positions", 64}};
  write(gpt2 / "config.json", config.dump());
  return gpt2.string();
}

std::string write_texts(const Folder& folder) {
  std::string text;
  for (int i = 0; i < 6; ++i) text += "the cat sat on the mat .\nthe dog ran .\n\na red cat was blue .\n";
  write(folder / "texts", text);
  return (folder / "texts").string();
}

const Words small{"--batch=4", "--seed=3", "--report=2"};

struct TaskFile {
  std::string task;
  Words files;       ///< of the dev sets; test's have test for dev
  std::string head;  ///< of train and dev; empty: none
  std::string row;   ///< of train and dev, with T and P for the texts and L for the label
  std::string test_head, test_row;
  Words labels;
  Words scores;       ///< in the log
  Words submissions;  ///< files
};

const std::vector<TaskFile> tasks{
    {"cola", {"dev"}, "", "src\tL\t\tT", "index\tsentence", "0\tT", {"0", "1"}, {"matthews"}, {"CoLA"}},
    {"sst-2",
     {"dev"},
     "sentence\tlabel",
     "T\tL",
     "index\tsentence",
     "0\tT",
     {"0", "1"},
     {"accuracy"},
     {"SST-2"}},
    {"mrpc",
     {"dev"},
     "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
     "L\t1\t2\tT\tP",
     "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
     "0\t1\t2\tT\tP",
     {"0", "1"},
     {"accuracy", "f1"},
     {"MRPC"}},
    {"sts-b",
     {"dev"},
     "index\tgenre\tsentence1\tsentence2\tscore",
     "0\tg\tT\tP\tL",
     "index\tgenre\tsentence1\tsentence2",
     "0\tg\tT\tP",
     {"0.5", "4.750"},
     {"pearson", "spearman"},
     {"STS-B"}},
    {"qqp",
     {"dev"},
     "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
     "0\t1\t2\tT\tP\tL",
     "id\tquestion1\tquestion2",
     "0\tT\tP",
     {"0", "1"},
     {"accuracy", "f1"},
     {"QQP"}},
    {"mnli",
     {"dev_matched", "dev_mismatched"},
     "index\tsentence1\tsentence2\tlabel1\tgold_label",
     "0\tT\tP\tx\tL",
     "index\tsentence1\tsentence2",
     "0\tT\tP",
     {"neutral", "contradiction", "entailment"},
     {"accuracy", "mm_accuracy"},
     {"MNLI-m", "MNLI-mm"}},
    {"qnli",
     {"dev"},
     "index\tquestion\tsentence\tlabel",
     "0\tT\tP\tL",
     "index\tquestion\tsentence",
     "0\tT\tP",
     {"entailment", "not_entailment"},
     {"accuracy"},
     {"QNLI"}},
    {"rte",
     {"dev"},
     "index\tsentence1\tsentence2\tlabel",
     "0\tT\tP\tL",
     "index\tsentence1\tsentence2",
     "0\tT\tP",
     {"entailment", "not_entailment"},
     {"accuracy"},
     {"RTE"}},
    {"wnli",
     {"dev"},
     "index\tsentence1\tsentence2\tlabel",
     "0\tT\tP\tL",
     "index\tsentence1\tsentence2",
     "0\tT\tP",
     {"0", "1"},
     {"accuracy"},
     {"WNLI"}}};

/// Of rows whose label is told by the text's last words.
std::string table_of(const std::string& head, const std::string& row, const Words& labels, int rows) {
  static const Words subjects{"the cat", "a dog", "\"the mat"}, ends{"is red", "sat .", "was on a"};
  std::string table = head.empty() ? "" : head + "\n";
  for (int i = 0; i < rows; ++i) {
    const std::size_t label = static_cast<std::size_t>(i) % labels.size();
    for (const char c : row) {
      if (c == 'T') table += subjects[static_cast<std::size_t>(i / 2) % 3] + " " + ends[label];
      else if (c == 'P') table += ends[label];
      else if (c == 'L') table += labels[label];
      else table += c;
    }
    table += '\n';
  }
  return table;
}

/// All files of a task.
std::string write_task(const Folder& folder, const TaskFile& task) {
  const Path data = folder / task.task;
  write(data / "train.tsv", table_of(task.head, task.row, task.labels, 12));
  for (std::string file : task.files) {
    write(data / (file + ".tsv"), table_of(task.head, task.row, task.labels, 7));
    file.replace(0, 3, "test");
    write(data / (file + ".tsv"), table_of(task.test_head, task.test_row, task.labels, 5));
  }
  return data.string();
}

}  // namespace

TEST_CASE("From plain text to a score of each of GLUE's tasks", "[programs]") {
  const Folder folder;
  const std::string bert = write_bert(folder), texts = write_texts(folder),
                    trained = (folder / "trained").string(), log = (folder / "log.csv").string();
  const Outcome outcome =
      pretrain(folder, small + Words{bert, "--steps=5", "--learning-rate=0.003", "--validation=" + texts,
                                     "--save=" + trained, "--log=" + log, texts});
  require_fine(outcome);
  CHECK(outcome.output.starts_with("training: 7 documents of 102 tokens\nstep 2 of 5  loss "));
  CHECK(outcome.says("\nstep 5 of 5  loss "));
  const std::vector<Words> lines = read_table(log);
  REQUIRE(lines.size() == 4);
  CHECK(lines[0] == Words{"step", "loss", "balance_loss", "learning_rate", "validation_loss", "perplexity",
                          "validation_accuracy", "flops_per_token", "tokens_per_second", "seconds"});
  CHECK((lines[1][0] == "2" && lines[2][0] == "4" && lines[3][0] == "5"));
  CHECK(std::stod(lines[3][5]) == Approx(std::exp(std::stod(lines[3][4]))).epsilon(1e-4));
  CHECK(meo::test::names_in(trained) == Words{"config.json", "model.safetensors", "vocab.txt"});

  Words mixture{"--ffn=meo", "--level=sequence", "--experts=3", "--top-k=2"};
  for (const TaskFile& task : tasks) {
    CAPTURE(task.task);
    const std::string data = write_task(folder, task), tuned = (folder / (task.task + "-tuned")).string();
    const Path predictions = folder / (task.task + "-predictions");
    const Outcome of_task =
        glue(folder,
             small + mixture +
                 Words{trained, "--task=" + task.task, "--data=" + data, "--epochs=2", "--learning-rate=0.01",
                       "--predictions=" + predictions.string(), "--save=" + tuned, "--log=" + log});
    require_fine(of_task);
    CHECK(of_task.output.starts_with("training: 12 texts, 3 steps an epoch\nstep 2 of 6  loss "));
    const std::vector<Words> table = read_table(log);
    REQUIRE(table.size() == 4);
    CHECK(Words(table[0].begin() + 4, table[0].end() - 3) == task.scores);

    std::size_t files = 0;
    for (const std::string& submission : task.submissions) {
      const std::vector<Words> rows = read_table(predictions / (submission + ".tsv"), '\t');
      REQUIRE(rows.size() == 6);
      CHECK(rows[0] == Words{"index", "prediction"});
      for (std::size_t i = 1; i < rows.size(); ++i) {
        REQUIRE(rows[i].size() == 2);
        CHECK(rows[i][0] == std::to_string(i - 1));
        if (task.task == "sts-b") CHECK((rows[i][1].size() == 5 && std::stod(rows[i][1]) <= 5));
        else CHECK(std::find(task.labels.begin(), task.labels.end(), rows[i][1]) != task.labels.end());
      }
      ++files;
    }
    CHECK(meo::test::names_in(predictions).size() == files);

    // The folder that was saved has the mixture, and scores what the last line says.
    const Outcome again = glue(folder, {tuned, "--task", task.task, "--data", data, "--evaluate"});
    require_fine(again);
    std::istringstream scores(again.output);
    std::string name, value;
    for (std::size_t i = 0; i < task.scores.size(); ++i) {
      REQUIRE(scores >> name >> value);
      CHECK(name == task.scores[i]);
      CHECK(value == table[3][4 + i]);
    }
  }
}

TEST_CASE("Any table is learned from, with pairs, numbers and task descriptions", "[programs]") {
  const Folder folder;
  const std::string bert = write_bert(folder), log = (folder / "log.csv").string(),
                    experts = (folder / "experts.csv").string();
  const Words labels{"spam", "ham", "a \"b\""};
  const auto table = [&](const std::string& name, const std::string& text) {
    write(folder / name, text);
    return (folder / name).string();
  };
  const std::string train = table("train", table_of("who\twhat\tkind", "T\tP\tL", labels, 12)),
                    dev = table("dev", table_of("who\twhat\tkind", "T\tP\tL", labels, 7)),
                    test = table("test", table_of("what\tmore\twho", "P\tm\tT", labels, 4));
  const Words columns{"--text=who", "--pair=what", "--label=kind"}, files{"--train=" + train, "--dev=" + dev};
  const Path predictions = folder / "predictions";
  require_fine(glue(folder, small + columns + files +
                                Words{bert, "--test=" + test, "--predictions=" + predictions.string(),
                                      "--steps=200", "--report=200", "--learning-rate=0.01", "--dropout=0",
                                      "--seed=4", "--ffn=meo", "--level=task", "--description=the cat",
                                      "--experts=3", "--log=" + log, "--experts-log=" + experts}));
  const std::vector<Words> lines = read_table(log);
  REQUIRE(lines.size() == 2);
  CHECK(Words(lines[0].begin() + 4, lines[0].end() - 3) == Words{"accuracy", "macro_f1", "matthews"});
  CHECK(Words(lines[1].begin() + 4, lines[1].end() - 3) == Words{"1", "1", "1"});
  CHECK(load_text(predictions / "predictions.tsv") ==
        "index\tprediction\n0\tspam\n1\tham\n2\ta \"b\"\n3\tspam\n");
  // 4 gates, 3 classes, 3 experts; of the dev set's texts 3, 2 and 2 in the order of the training file's
  // labels.
  const std::vector<Words> use = read_table(experts);
  REQUIRE(use.size() == 1 + 4 * 3 * 3);
  CHECK(use[0] == Words{"step", "gate", "class", "expert", "count", "share"});
  for (std::size_t i = 1; i < use.size(); i += 3) {
    CHECK((use[i][0] == "200" && use[i][3] == "0"));
    long count = 0;
    double share = 0;
    for (std::size_t e = 0; e < 3; ++e) {
      count += std::stol(use[i + e][4]);
      share += std::stod(use[i + e][5]);
    }
    CHECK((use[i][2] == "spam" || use[i][2] == "ham" || use[i][2] == R"("a ""b""")"));
    CHECK(count == (use[i][2] == "spam" ? 6 : 4));
    CHECK(share == Approx(1).epsilon(1e-5));
  }

  // Without a header columns have numbers.
  const std::string values = table("values", table_of("", "L\tT", {"1", "-2.5"}, 8));
  require_fine(
      glue(folder, small + Words{bert, "--train=" + values, "--dev=" + values, "--no-header", "--text=2",
                                 "--label=1", "--regression", "--steps=2", "--log=" + log}));
  const Words columns_of_log = read_table(log).at(0);
  CHECK(Words(columns_of_log.begin() + 4, columns_of_log.end() - 3) == Words{"pearson", "spearman"});
}

TEST_CASE("GPT-2 goes on with what it has learned", "[programs]") {
  const Folder folder;
  const std::string gpt2 = write_gpt2(folder), trained = (folder / "trained").string();
  write(folder / "texts", "the cat sat on the mat.\n\nthe cat sat on the mat.\n");
  const std::string texts = (folder / "texts").string();
  require_fine(pretrain(folder, {gpt2, "--batch=4", "--steps=150", "--report=150", "--learning-rate=0.02",
                                 "--dropout=0", "--ffn=meo", "--level=segment", "--segment-tokens=8",
                                 "--experts=3", "--top-k=2", "--save=" + trained, texts}));
  CHECK(meo::test::names_in(trained) ==
        Words{"config.json", "merges.txt", "model.safetensors", "vocab.json"});
  const auto says = [&](const Words& words) {
    const Outcome outcome = generate(folder, Words{trained} + words);
    require_fine(outcome);
    return outcome.output;
  };
  // It ends where the documents did.
  CHECK(says({"--prompt=the cat"}) == "the cat sat on the mat.\n\n");
  CHECK(says({"--prompt=the cat", "--tokens=7"}) == "the cat sat on\n");
  CHECK(says({"--prompt=the cat", "--temperature=5", "--top-words=1"}) == "the cat sat on the mat.\n\n");
  // So it does with the experts mixed for every word, or stored in fewer bits.
  CHECK(says({"--prompt=the cat", "--anew"}) == "the cat sat on the mat.\n\n");
  CHECK(says({"--prompt=the cat", "--storage=bf16"}) == "the cat sat on the mat.\n\n");
  const std::string drawn = says({"--prompt=the cat", "--temperature=5", "--seed=7"});
  CHECK(drawn != "the cat sat on the mat.\n\n");
  CHECK(drawn == says({"--prompt", "the cat", "--temperature", "5", "--seed", "7"}));
  CHECK(drawn != says({"--prompt=the cat", "--temperature=5", "--seed=8"}));
  // Up to the last of 64 positions, and the word behind it.
  const std::string full = says({"--prompt=the cat", "--temperature=50", "--tokens=1000", "--seed=1"});
  CHECK(full.size() <= 65 + 1);

  const auto check = [&](const Words& words, int code, const std::string& reason) {
    const Outcome outcome = generate(folder, words);
    CHECK(outcome.exit_code == code);
    CHECK(outcome.errors == "generate: " + reason + "\n");
  };
  check({trained, "--prompt="}, 1, "text: expected at least one token, got ''");
  check({write_bert(folder), "--prompt=the"}, 1,
        "meo: " + (folder / "bert").string() + ": model_type: expected gpt2, got bert");
  check({trained}, 2, "expected --prompt; --help says more");
  check({trained, "--prompt=a", "--top-k=3"}, 2, "unknown option '--top-k'; --help says more");
  check({trained, "--prompt=a", "--storage=8"}, 2,
        "--storage: expected bf16, half or int8, got '8'; --help says more");
  check({trained, "--prompt=a", "--temperature=-1"}, 2,
        "--temperature: expected a number of at least 0.000000, got '-1'; --help says more");
}

#if __has_include(<sys/wait.h>)
namespace {

/// Kills the program at some moment once there is a checkpoint, and after a minute or two in any case.
void run_and_kill(const Folder& folder, const std::string& program, const Words& words,
                  const Path& checkpoint) {
  const std::string command = meo::test::command_of(program, words) + " >'" + (folder / "stdout").string() +
                              "' & i=0; while test $i -lt 6000 && kill -0 $! && ! test -e '" +
                              checkpoint.string() + "'; do sleep 0.01; i=$((i + 1)); done; kill -9 $!";
  REQUIRE(std::system(command.c_str()) == 0);
}

}  // namespace

TEST_CASE("A run that was killed goes on as if it had never stopped", "[programs]") {
  const Folder folder;
  const std::string bert = write_bert(folder), texts = write_texts(folder);
  const TaskFile& task = tasks[5];
  const std::string data = write_task(folder, task);
  for (const bool is_glue : {false, true}) {
    CAPTURE(is_glue);
    const Words options =
        Words{bert, "--batch=4", "--report=1", "--steps=60", "--ffn=meo", "--level=token", "--experts=3"} +
        (is_glue ? Words{"--task=mnli", "--data=" + data} : Words{"--validation=" + texts, texts});
    const auto outputs = [&](const std::string& name) {
      Words words{"--log=" + (folder / (name + ".csv")).string(),
                  "--checkpoint=" + (folder / (name + ".safetensors")).string(),
                  "--save=" + (folder / name).string()};
      if (is_glue) words.push_back("--experts-log=" + (folder / (name + "-experts.csv")).string());
      return words;
    };
    const auto run = [&](const Words& words) {
      return is_glue ? glue(folder, words) : pretrain(folder, words);
    };
    const Path checkpoint = folder / "killed.safetensors";
    std::filesystem::remove(checkpoint);
    run_and_kill(folder, is_glue ? MEO_GLUE : MEO_PRETRAIN, options + outputs("killed"), checkpoint);
    const auto killed = load_bytes(checkpoint);
    require_fine(run(options + outputs("killed") + Words{"--resume=" + checkpoint.string()}));
    require_fine(run(options + outputs("through")));
    CHECK(load_bytes(checkpoint) == load_bytes(folder / "through.safetensors"));
    CHECK(load_bytes(folder / "killed/model.safetensors") ==
          load_bytes(folder / "through/model.safetensors"));
    CHECK(timeless(folder / "killed.csv") == timeless(folder / "through.csv"));
    if (is_glue) CHECK(load_text(folder / "killed-experts.csv") == load_text(folder / "through-experts.csv"));
    CHECK(read_table(folder / "killed.csv").size() == 61);

    // Not with other options.
    const auto check = [&](const std::string& option, const std::string& what, const std::string& expected,
                           const std::string& got) {
      const Outcome outcome = run(options + Words{option, "--resume=" + checkpoint.string()});
      CHECK(outcome.exit_code == 1);
      CHECK(outcome.errors == std::string(is_glue ? "glue" : "pretrain") + ": meo: " + checkpoint.string() +
                                  ": " + what + ": expected " + expected +
                                  ", with which it was trained, got " + got + "\n");
    };
    check("--steps=61", "steps-in-all", "60", "61");
    check("--batch=5", "batch", "4", "5");
    check("--learning-rate=0.5", "learning-rate", is_glue ? "2e-05" : "1e-04", "0.5");
    check("--warm-up=0.5", "warm-up", "0.1", "0.5");
    check("--weight-decay=0", "weight-decay", "0.01", "0");
    check("--clip=2", "clip", "1", "2");
    check("--no-gate-noise", "gate-noise", "yes", "no");
    check("--freeze", "freeze", "no", "yes");
    check("--seed=2", "seed", "1", "2");
    if (is_glue) continue;
    check("--tokens=12", "tokens", "24", "12");
    const Outcome outcome = run(options + Words{texts, "--resume=" + checkpoint.string()});
    CHECK(outcome.errors.find(": data: expected ") != std::string::npos);
  }
}
#endif

TEST_CASE("What cannot be written is known before the first step", "[programs]") {
  const Folder folder;
  const std::string bert = write_bert(folder), texts = write_texts(folder),
                    nowhere = (folder / "no/file").string();
  const std::string data = write_task(folder, tasks[1]);
  write(folder / "file", "x");
  const std::string file = (folder / "file").string();
  const auto check = [&](bool is_glue, const std::string& option) {
    CAPTURE(option);
    const Outcome outcome = is_glue
                                ? glue(folder, {bert, "--task=sst-2", "--data=" + data, "--ffn=moe", option})
                                : pretrain(folder, {bert, texts, option});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors != "");
    CHECK_FALSE(outcome.says("step "));
  };
  for (const bool is_glue : {false, true}) {
    for (const std::string option : {"--log=", "--checkpoint="}) check(is_glue, option + nowhere);
    check(is_glue, "--save=" + file);
  }
  check(true, "--experts-log=" + nowhere);
  check(true, "--predictions=" + file);
  CHECK(load_text(file) == "x");
  // Nor is a log begun anew before all can be written.
  glue(folder,
       {bert, "--task=sst-2", "--data=" + data, "--ffn=moe", "--experts-log=" + file, "--log=" + nowhere});
  CHECK(load_text(file) == "x");
}

TEST_CASE("pretrain and glue refuse wrong options, and what does not fit", "[programs]") {
  const Folder folder;
  const std::string bert = write_bert(folder), gpt2 = write_gpt2(folder), texts = write_texts(folder);
  const std::string data = write_task(folder, tasks[1]);
  const auto wrong = [&](bool is_glue, const Words& words, const std::string& reason) {
    CAPTURE(words);
    const Outcome outcome = is_glue ? glue(folder, words) : pretrain(folder, words);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.errors == std::string(is_glue ? "glue: " : "pretrain: ") + reason + "; --help says more\n");
    CHECK_FALSE(outcome.says("step "));
  };
  const Words sst{bert, "--task=sst-2", "--data=" + data};
  wrong(false, {bert}, "expected a folder and at least one file");
  wrong(false, {bert, texts, "--colour=red"}, "unknown option '--colour'");
  wrong(false, {bert, texts, "--steps=0"}, "--steps: expected a number of at least 1, got '0'");
  wrong(false, {bert, texts, "--tokens=25"},
        "--tokens: expected at most 24, as the model has positions, got 25");
  wrong(false, {bert, texts, "--dropout=1"},
        "--dropout: expected a number of at least 0.000000 and below 1.000000, got '1'");
  wrong(false, {bert, texts, "--experts=4"}, "--experts needs --ffn");
  wrong(false, {bert, texts, "--log=" + texts + "2", "--checkpoint=" + texts + "2"},
        "expected a file of its own for each output, got '" + texts + "2' twice");
  wrong(true, {}, "expected a folder");
  wrong(true, {bert, "--task=sst-2"}, "--task and --data need each other");
  wrong(true, {bert}, "expected --task and --data, or --train, --dev, --text and --label");
  wrong(true, sst + Words{"--text=a"}, "expected --task and --data, or --train, --dev, --text and --label");
  wrong(true, {bert, "--train=a", "--dev=b", "--text=c"}, "expected --label");
  wrong(true, {bert, "--task=sst", "--data=" + data},
        "--task: expected one of cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli, got 'sst'");
  wrong(true, sst + Words{"--experts-log=x"}, "--experts-log needs a model with mixtures");
  wrong(true, sst + Words{"--ffn=meo", "--level=task"}, "--description and task level need each other");

  const auto unfit = [&](bool is_glue, const Words& words, const std::string& reason) {
    CAPTURE(words);
    const Outcome outcome = is_glue ? glue(folder, words) : pretrain(folder, words);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors == std::string(is_glue ? "glue: " : "pretrain: ") + reason + "\n");
    CHECK_FALSE(outcome.says("step "));
  };
  unfit(false, {gpt2, texts, "--ffn=meo", "--level=token"},
        "meo: " + gpt2 +
            ": level: expected segment, or token for MoE, as the next word is predicted, got token, whose "
            "gates see the words that follow");
  unfit(true, {gpt2, "--task=sst-2", "--data=" + data},
        "meo: " + gpt2 + ": model_type: expected bert, got gpt2");
  unfit(false, {bert, texts, "--freeze"}, "freeze: expected a model with mixtures to train, got a dense one");

  // Faults of tables, with file, line and column.
  const auto fault = [&](const std::string& name, const std::string& text, const std::string& reason) {
    write(Path(data) / name, text);
    unfit(true, sst, "meo: " + (Path(data) / name).string() + ": " + reason);
  };
  fault("dev.tsv", "sentence\tlabel\nx\t1\nx\t2\n",
        "line 3, column 2 ('label'): expected one of 0, 1, got '2'");
  fault("dev.tsv", "sentence\tlabel\nx\t1\nx", "line 3, column 2 ('label'): expected a value, got 1 columns");
  fault("dev.tsv", "sentence\tlabels\nx\t1\n", "line 1, expected a column 'label', got 'sentence', 'labels'");
  fault("dev.tsv", "sentence\tlabel\n", "expected at least one row, got none");
  fault("train.tsv", "", "expected at least one line, got none");

  for (const bool is_glue : {false, true}) {
    const Outcome outcome = is_glue ? glue(folder, {"--help"}) : pretrain(folder, {"--help"});
    require_fine(outcome);
    CHECK(outcome.output.starts_with(is_glue ? "usage: glue DIR" : "usage: pretrain DIR"));
    CHECK(outcome.says("--learning-rate=R"));
  }
}
