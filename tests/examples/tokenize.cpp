// The example tokenize: what it writes for BERT and for GPT-2, and what it refuses.

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/program.hpp"

namespace {

using meo::test::Folder;
using meo::test::load_text;
using meo::test::Outcome;
using nlohmann::json;
using Path = std::filesystem::path;

const Path data = MEO_TEST_DATA_DIR "/tokenizer";

Outcome run(const Folder& folder, const std::vector<std::string>& arguments) {
  return meo::test::run_program(MEO_TOKENIZE, folder, arguments);
}

// Runs the tokenizers on files that are in a folder.
class Tokenize {
 public:
  Tokenize() {
    write("vocab.txt", "[UNK]\n[CLS]\n[SEP]\nun\n##a\n\u00e9\ne\n");
    write("vocab.json", R"({"u": 0, "n": 1, "un": 2, "\u0120un": 3, "<|endoftext|>": 4})");
    write("merges.txt", "#version: 0.2\nu n\n\u0120 un\n");
  }

  const Folder& folder() const { return folder_; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const std::string& text) const {
    meo::test::save(folder_ / name, meo::test::to_bytes(text));
  }

  Outcome bert(const std::string& in) const { return run_on(in, {"--vocab", path("vocab.txt")}); }
  Outcome gpt2(const std::string& in) const {
    return run_on(in, {"--vocab", path("vocab.json"), "--merges", path("merges.txt")});
  }
  std::string written() const { return load_text(folder_ / "out.json"); }

 private:
  Outcome run_on(const std::string& in, std::vector<std::string> arguments) const {
    write("in.json", in);
    std::filesystem::remove(folder_ / "out.json");
    arguments.insert(arguments.end(), {path("in.json"), path("out.json")});
    return run(folder_, arguments);
  }

  Folder folder_;
};

}  // namespace

TEST_CASE("tokenize gives what BertTokenizer gave for 100 cases", "[tokenize][golden]") {
  const Folder folder;
  const Path out = folder / "out.json";
  const Outcome outcome =
      run(folder, {"--vocab", (data / "vocab.txt").string(), (data / "cases.json").string(), out.string()});
  CHECK(outcome.errors == "");
  CHECK(outcome.output == "");
  REQUIRE(outcome.exit_code == 0);
  const json results = json::parse(load_text(out)), cases = json::parse(load_text(data / "cases.json"));
  REQUIRE(cases.size() == 100);
  REQUIRE(results.size() == 100);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    CHECK(results[i] ==
          json{{"input_ids", cases[i]["input_ids"]}, {"token_type_ids", cases[i]["token_type_ids"]}});
  }
}

TEST_CASE("tokenize writes a list of ids for BERT", "[tokenize]") {
  const Tokenize tokenize;
  CHECK(tokenize.bert("[]").exit_code == 0);
  CHECK(tokenize.written() == "[]\n");
  CHECK(tokenize
            .bert(R"([{"text": "Una \u00c9", "pair": null, "cased": false, "max_length": 9},
                      {"text": "\u00e9", "pair": "un x un", "cased": true, "max_length": 6, "more": []}])")
            .exit_code == 0);
  CHECK(tokenize.written() == R"([{"input_ids":[1,3,4,6,2],"token_type_ids":[0,0,0,0,0]},)"
                              R"({"input_ids":[1,5,2,3,0,2],"token_type_ids":[0,0,0,1,1,1]}])"
                              "\n");
}

TEST_CASE("tokenize writes a list of ids for GPT-2", "[tokenize]") {
  const Tokenize tokenize;
  CHECK(tokenize
            .gpt2(R"([{"text": "un unn"}, {"text": "un unn", "pair": null, "max_length": 2, "cased": true},
                      {"text": "u<|endoftext|>", "pair": "n", "max_length": 2}, {"text": "x"}])")
            .exit_code == 0);
  CHECK(tokenize.written() ==
        R"([{"input_ids":[2,3,1]},{"input_ids":[2,3]},{"input_ids":[0,1]},{"input_ids":[4]}])"
        "\n");
}

TEST_CASE("tokenize takes bytes that are not UTF-8 for U+FFFD", "[tokenize]") {
  const Tokenize tokenize;
  const std::string in =
      "[{\"text\": \"u\xff\xe2\x82n\", \"pair\": null, \"cased\": true, \"max_length\": 9}]";
  CHECK(tokenize.bert(in).exit_code == 0);
  CHECK(tokenize.written() == "[{\"input_ids\":[1,3,2],\"token_type_ids\":[0,0,0]}]\n");
  CHECK(tokenize.gpt2(in).exit_code == 0);
  CHECK(tokenize.written() == "[{\"input_ids\":[0,4,4,4,4,4,4,1]}]\n");
}

TEST_CASE("tokenize --help", "[tokenize]") {
  const Folder folder;
  const Outcome outcome = run(folder, {"--help"});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.errors == "");
  for (const char* word : {"usage: tokenize", "--vocab", "--merges", "text", "pair", "max_length", "cased",
                           "input_ids", "token_type_ids", "Exit code"}) {
    CHECK(outcome.says(word));
  }
}

TEST_CASE("tokenize refuses wrong options", "[tokenize]") {
  const Tokenize tokenize;
  tokenize.write("in.json", "[]");
  const auto check = [&](const std::vector<std::string>& arguments, const std::string& reason) {
    const Outcome outcome = run(tokenize.folder(), arguments);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.errors == "tokenize: " + reason + "; --help says more\n");
    CHECK(outcome.output == "");
  };
  check({}, "expected --vocab");
  check({"a", "b", "--merges", "m"}, "expected --vocab");
  check({"--vocab", "v"}, "expected two files, IN and OUT, got 0");
  check({"--vocab", "v", "a"}, "expected two files, IN and OUT, got 1");
  check({"--vocab", "v", "a", "b", "c"}, "expected two files, IN and OUT, got 3");
  check({"a", "b", "--vocab"}, "--vocab needs a value");
  check({"a", "b", "--merges"}, "--merges needs a value");
  check({"--vocab", "v", "a", "b", "--colour"}, "unknown option '--colour'");

  const std::string vocabulary = tokenize.path("vocab.json"), merges = tokenize.path("merges.txt"),
                    in = tokenize.path("in.json");
  for (const std::string& file : {vocabulary, merges, in}) {
    const std::string before = load_text(file);
    check({"--vocab", vocabulary, "--merges", merges, in, file},
          "OUT would replace what is read, '" + file + "'");
    CHECK(load_text(file) == before);
  }
}

TEST_CASE("tokenize refuses files that do not fit", "[tokenize]") {
  const Tokenize tokenize;
  const auto fault = [&](const Outcome& outcome) {
    CHECK(outcome.exit_code == 1);
    CHECK_FALSE(std::filesystem::exists(tokenize.path("out.json")));
    return outcome.errors;
  };
  const std::string start = "tokenize: meo: ", in = tokenize.path("in.json");
  CHECK(fault(tokenize.bert("")) ==
        start + in +
            ": expected JSON: parse error at line 1, column 1: syntax error while parsing value - "
            "unexpected end of input; expected '[', '{', or a literal\n");
  CHECK(fault(tokenize.bert("[{]"))
            .starts_with(start + in + ": expected JSON: parse error at line 1, column 3"));
  CHECK(fault(tokenize.bert("{}")) == start + in + ": expected a list, got object\n");
  CHECK(fault(tokenize.gpt2("[{\"text\": \"\"}, 3]")) ==
        start + in + ": object 1: expected an object, got 3\n");

  const json item = {{"text", "un"}, {"pair", nullptr}, {"cased", false}, {"max_length", 9}};
  const auto item_fault = [&](const std::string& name, const json& value) {
    json changed = item;
    if (value.is_discarded()) changed.erase(name);
    else changed[name] = value;
    const std::string of_bert = fault(tokenize.bert(json{item, changed}.dump()));
    const std::string place = start + in + ": object 1: ";
    REQUIRE(of_bert.starts_with(place));
    return of_bert.substr(place.size());
  };
  for (const std::string name : {"text", "pair", "cased", "max_length"})
    CHECK(item_fault(name, json(json::value_t::discarded)) == name + ": expected a value, got none\n");
  CHECK(item_fault("text", nullptr) == "text: expected a string, got null\n");
  CHECK(item_fault("pair", false) == "pair: expected a string or null, got boolean\n");
  CHECK(item_fault("cased", 0) == "cased: expected true or false, got 0\n");
  for (const json& wrong : {json(-1), json(2.5)}) {
    CHECK(item_fault("max_length", wrong) ==
          "max_length: expected a whole number of at least 0, got " + wrong.dump() + "\n");
  }
  CHECK(item_fault("max_length", "9") == "max_length: expected a whole number of at least 0, got string\n");
  CHECK(item_fault("max_length", 2) == "max_length: expected at least 3, got 2\n");
  CHECK(fault(tokenize.gpt2(R"([{"pair": null}])")) ==
        start + in + ": object 0: text: expected a value, got none\n");

  const auto vocabulary_fault = [&](const std::string& name, const std::string& text) {
    tokenize.write(name, text);
    return fault(name == "vocab.txt" ? tokenize.bert("[]") : tokenize.gpt2("[]"));
  };
  const auto at = [&](const std::string& name) { return start + tokenize.path(name) + ": "; };
  CHECK(vocabulary_fault("vocab.txt", "[UNK]\n[SEP]\n") ==
        at("vocab.txt") + "expected the vocabulary to have '[CLS]'\n");
  CHECK(vocabulary_fault("merges.txt", "u n\nun\n") ==
        at("merges.txt") + "line 2: expected two tokens and a space between them, got 'un'\n");
  tokenize.write("merges.txt", "");
  CHECK(vocabulary_fault("vocab.json", R"({"u": 0})") ==
        at("vocab.json") + "expected the vocabulary to have '\u0100'\n");
  CHECK(vocabulary_fault("vocab.json", "[UNK]").starts_with(at("vocab.json") + "expected JSON: "));
}

TEST_CASE("tokenize names files that are missing", "[tokenize]") {
  const Tokenize tokenize;
  tokenize.write("in.json", "[]");
  const std::string missing = tokenize.path("missing"), vocabulary = tokenize.path("vocab.txt"),
                    json_vocabulary = tokenize.path("vocab.json"), merges = tokenize.path("merges.txt"),
                    in = tokenize.path("in.json"), out = tokenize.path("out.json");
  const std::vector<std::vector<std::string>> calls = {
      {"--vocab", missing, in, out},
      {"--vocab", vocabulary, missing, out},
      {"--vocab", missing, "--merges", merges, in, out},
      {"--vocab", json_vocabulary, "--merges", missing, in, out}};
  for (const std::vector<std::string>& arguments : calls) {
    const Outcome outcome = run(tokenize.folder(), arguments);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors == "tokenize: meo: " + missing + ": cannot be read: No such file or directory\n");
    CHECK_FALSE(std::filesystem::exists(out));
  }
}

TEST_CASE("tokenize looks whether it can write before it reads", "[tokenize]") {
  const Tokenize tokenize;
  tokenize.write("in.json", "no JSON");
  const std::string in = tokenize.path("in.json"), vocabulary = tokenize.path("vocab.txt");
  const auto fault = [&](const std::string& out) {
    const Outcome outcome = run(tokenize.folder(), {"--vocab", vocabulary, in, out});
    CHECK(outcome.exit_code == 1);
    return outcome.errors;
  };
  const std::string no_folder = tokenize.path("missing/out.json"), folder = Path(tokenize.folder()).string();
  CHECK(fault(no_folder) ==
        "tokenize: meo: " + no_folder + ": no file can be created beside it: No such file or directory\n");
  CHECK(fault(folder) == "tokenize: meo: " + folder + ": expected a regular file\n");

  // What was there stays if nothing can be written for this input.
  tokenize.write("out.json", "old");
  CHECK(fault(tokenize.path("out.json")).starts_with("tokenize: meo: " + in + ": expected JSON: "));
  CHECK(tokenize.written() == "old");
}
