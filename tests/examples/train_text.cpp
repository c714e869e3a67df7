// The example train_text: what its options do and what it refuses, and that a resumed run is as one that was
// never interrupted.

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <meo/io/safetensors.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/program.hpp"

namespace {

using meo::io::SafetensorsReader;
using meo::test::Folder;
using meo::test::load_bytes;
using meo::test::load_text;
using meo::test::Outcome;
using Path = std::filesystem::path;
using Words = std::vector<std::string>;

Outcome run(const Folder& folder, const Words& words) {
  return meo::test::run_program(MEO_TRAIN_TEXT, folder, words);
}

Words operator+(Words left, const Words& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

const Words small_model{"--experts=3", "--top-k=2",  "--width=8", "--hidden=12",
                        "--blocks=2",  "--window=8", "--batch=4", "--seed=5"};
const Words small = Words{"--domains"} + small_model;

/// A run's files in a folder.
struct Run {
  Path log, experts_log, checkpoint;

  Run(const Folder& folder, const std::string& name)
      : log(folder / (name + ".csv")),
        experts_log(folder / (name + ".experts.csv")),
        checkpoint(folder / (name + ".safetensors")) {}

  Words options() const {
    return {"--log=" + log.string(), "--experts-log=" + experts_log.string(),
            "--checkpoint=" + checkpoint.string()};
  }
  Words resume() const { return options() + Words{"--resume=" + checkpoint.string()}; }
  long steps() const { return std::stol(SafetensorsReader(checkpoint).metadata("steps")); }
};

void require_fine(const Outcome& outcome) {
  CHECK(outcome.errors == "");
  REQUIRE(outcome.exit_code == 0);
}

std::vector<Words> read_csv(const Path& path) {
  std::vector<Words> lines;
  std::istringstream text(load_text(path));
  for (std::string line; std::getline(text, line);) {
    std::istringstream cells(line);
    lines.emplace_back();
    for (std::string cell; std::getline(cells, cell, ',');) lines.back().push_back(cell);
  }
  return lines;
}

/// A log without what depends on the time a run takes.
std::vector<Words> timeless(const Path& log) {
  std::vector<Words> lines = read_csv(log);
  for (Words& line : lines) {
    REQUIRE(line.size() == 7);
    line[4] = line[5] = "";
  }
  return lines;
}

void check_same(const Run& run, const Run& expected) {
  CHECK(load_bytes(run.checkpoint) == load_bytes(expected.checkpoint));
  CHECK(timeless(run.log) == timeless(expected.log));
  CHECK(load_text(run.experts_log) == load_text(expected.experts_log));
}

void append(const Path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::app) << text;
}

TEST_CASE("train_text --help", "[train_text]") {
  const Folder folder;
  for (const Words& words : {Words{"--help"}, Words{"--help", "one-file"}}) {
    const Outcome outcome = run(folder, words);
    CHECK(outcome.exit_code == 0);
    CHECK(outcome.errors == "");
    CHECK(outcome.output.starts_with("usage: train_text [options] FILE...\n"));
  }
}

TEST_CASE("train_text refuses wrong options", "[train_text]") {
  const Folder folder;
  const auto check = [&](const Words& words, const std::string& reason) {
    const Outcome outcome = run(folder, words);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.errors == "train_text: " + reason + "; --help lists the options\n");
    CHECK(outcome.output == "");
  };
  check({}, "expected files, or --domains alone");
  check({"--domains", "a", "b"}, "expected files, or --domains alone");
  check({"a"}, "expected at least two files");
  check({"--domains", "--colour=red"}, "unknown option '--colour=red'");
  check({"--domains", "--layer=wide"}, "--layer needs dense|moe|meo, not 'wide'");
  check({"--domains", "--level=task"}, "--level needs token|sequence, not 'task'");
  for (const std::string option : {"--experts", "--top-k", "--width", "--hidden", "--blocks",
                                   "--reduce-factor", "--window", "--batch", "--steps", "--report"}) {
    for (const std::string value : {"0", "-1", "2x", "", "9223372036854775808"}) {
      check({"--domains", option + "=" + value},
            option + " needs a whole number from 1 to 9223372036854775807, not '" + value + "'");
    }
  }
  for (const std::string value : {"-1", "18446744073709551616", "x", ""}) {
    check({"--domains", "--seed=" + value},
          "--seed needs a whole number from 0 to 18446744073709551615, not '" + value + "'");
  }
  for (const std::string value : {"0", "-1", "x", "1x", "inf", "nan", ""}) {
    check({"--domains", "--learning-rate=" + value},
          "--learning-rate needs a positive number, not '" + value + "'");
  }
  for (const std::string option : {"--log", "--experts-log", "--checkpoint", "--resume"}) {
    check({"--domains", option}, option + " needs a file");
  }

  // Files that one would write over another.
  const std::string text = (folder / "text").string(), same = (folder / "./text").string();
  for (const bool exists : {false, true}) {
    if (exists) append(text, "text");
    check({"--domains", "--log=" + text, "--experts-log=" + same},
          "--experts-log and --log are one file, '" + same + "'");
    check({"--domains", "--log=" + text, "--checkpoint=" + same},
          "--checkpoint and --log are one file, '" + same + "'");
    for (const std::string option : {"--log", "--experts-log", "--checkpoint"}) {
      check({text, text, option + "=" + same},
            option + " and what is learned from are one file, '" + same + "'");
    }
  }
  CHECK(load_text(text) == "text");
}

TEST_CASE("train_text refuses what it cannot read", "[train_text]") {
  const Folder folder;
  const auto check = [&](const Words& words, const std::string& reason) {
    const Outcome outcome = run(folder, Words{"--steps=1"} + small_model + words);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors == "train_text: " + reason + "\n");
  };
  const std::string missing = (folder / "missing").string(), brief = (folder / "brief").string();
  append(brief, "brief");
  check({missing, missing}, "cannot read '" + missing + "': No such file or directory");
  check({brief, brief}, "'" + brief + "': expected at least 20 windows of 8 bytes, got 5 bytes");
  check({"--domains", "--window=1"}, "domains: expected windows of at least 2 bytes, got 1");
  check({"--domains", "--top-k=4"}, "meo: top_k: expected 1 to num_experts = 3, got 4");
  check({"--domains", "--resume=" + missing},
        "meo: " + missing + ": cannot be read: No such file or directory");
}

TEST_CASE("train_text learns from files with any seed", "[train_text]") {
  const Folder folder;
  Words files;
  for (const char letter : {'a', 'b'}) {
    files.push_back((folder / std::string(1, letter)).string());
    append(files.back(), std::string(400, letter));
  }
  for (const std::string seed : {"0", "18446744073709551615"}) {
    const Outcome outcome =
        run(folder, small_model +
                        Words{"--seed=" + seed, "--steps=20", "--report=10", "--learning-rate=0.01"} + files);
    require_fine(outcome);
    CHECK(outcome.says("step     10  loss "));
    CHECK(outcome.says("step     20  loss "));
    CHECK(outcome.says("  accuracy 1.0000  "));
  }
}

TEST_CASE("train_text logs how every gate uses its experts", "[train_text]") {
  const Folder folder;
  const Run run_of(folder, "run");
  const Outcome outcome = run(folder, small + run_of.options() + Words{"--steps=6", "--report=3"});
  require_fine(outcome);
  const std::vector<Words> lines = read_csv(run_of.experts_log);
  const std::string header = "step,gate,expert,rows,count,share,mean_weight,importance,load,entropy\n";
  CHECK(load_text(run_of.experts_log).starts_with(header));
  CHECK(outcome.says("every gate over the steps of the last line:\n" + header));
  std::size_t line = 1;
  for (const std::string step : {"3", "6"}) {
    for (const std::string gate : {"0.up", "0.down", "1.up", "1.down"}) {
      long count = 0;
      for (const std::string expert : {"0", "1", "2"}) {
        REQUIRE(line < lines.size());
        CHECK(Words(lines[line].begin(), lines[line].begin() + 4) ==
              Words{step, gate, expert, "12"});  // rows: 3 steps of 4 windows
        count += std::stol(lines[line++][4]);
        CHECK(outcome.says('\n' + step + ',' + gate + ',' + expert + ',') == (step == "6"));
      }
      CHECK(count == 24);  // each of which selects 2 experts
    }
  }
  CHECK(line == lines.size());
  // No gate is another's copy.
  const auto loads_of = [&](std::size_t first) { return lines[first][8] + lines[first + 1][8]; };
  CHECK(loads_of(1) != loads_of(4));
  CHECK(loads_of(1) != loads_of(7));
}

TEST_CASE("train_text looks whether it can write before it trains, and then has changed nothing",
          "[train_text]") {
  const Folder folder;
  const Run run_of(folder, "run");
  std::filesystem::create_directory(folder / "directory");
  const Path nowhere = folder / "no/file", directory = folder / "directory";
  const Words options = run_of.options() + Words{"--steps=2"};
  const auto check = [&](const Words& words, const std::string& reason) {
    CAPTURE(reason);
    const Outcome outcome = run(folder, small + options + words);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors == "train_text: " + reason + "\n");
    CHECK(outcome.output == "");
  };
  const auto check_all = [&] {
    const std::string in_nowhere =
        "meo: " + nowhere.string() + ": no file can be created beside it: No such file or directory";
    check({"--checkpoint=" + nowhere.string()}, in_nowhere);
    check({"--checkpoint=" + directory.string()}, "meo: " + directory.string() + ": expected a regular file");
    for (const std::string option : {"--log=", "--experts-log="}) {
      check({option + nowhere.string()}, in_nowhere);
      check({option + directory.string()}, "cannot write '" + directory.string() + "'");
    }
  };
  check_all();
  CHECK(meo::test::names_in(folder) == Words{"directory", "stderr", "stdout"});

  // Nor does a new run that cannot write begin the logs of an old one anew.
  require_fine(run(folder, small + options));
  const auto checkpoint = load_bytes(run_of.checkpoint), log = load_bytes(run_of.log),
             experts_log = load_bytes(run_of.experts_log);
  check_all();
  CHECK(load_bytes(run_of.checkpoint) == checkpoint);
  CHECK(load_bytes(run_of.log) == log);
  CHECK(load_bytes(run_of.experts_log) == experts_log);
#if defined(__linux__)
  check({"--experts-log=/dev/full"}, "cannot write '/dev/full'");
  // A log need not be a file.
  CHECK(run(folder, small + options + Words{"--log=/dev/stderr"}).errors.starts_with("step,loss,"));
#endif
}

TEST_CASE("train_text resumes as if it had never stopped", "[train_text]") {
  const Folder folder;
  const Words layer = GENERATE(Words{"--layer=dense"}, Words{"--layer=moe", "--level=token"},
                               Words{"--layer=meo", "--level=token", "--reduce-factor=2"});
  CAPTURE(layer.front());
  const Run through(folder, "through"), resumed(folder, "resumed");
  const Words words = small + layer + Words{"--report=5"};
  require_fine(run(folder, words + through.options() + Words{"--steps=20"}));
  require_fine(run(folder, words + resumed.options() + Words{"--steps=10"}));
  CHECK(load_bytes(resumed.checkpoint) != load_bytes(through.checkpoint));
  CHECK(resumed.steps() == 10);

  // What an interrupted run can have left behind its last checkpoint: lines, and the beginning of one.
  const std::string log_tail = GENERATE(as<std::string>{}, "", "1", "15,1,1,1,1,1,1\n", "15,1,1,1,1,1,1\n2");
  CAPTURE(log_tail);
  append(resumed.log, log_tail);
  append(resumed.experts_log, log_tail);
  require_fine(run(folder, words + resumed.resume() + Words{"--steps=20"}));
  check_same(resumed, through);

  // What is done is not done again, and loses no line.
  const Outcome outcome = run(folder, words + resumed.resume() + Words{"--steps=20"});
  require_fine(outcome);
  CHECK(outcome.output == "nothing to do: '" + resumed.checkpoint.string() + "' has 20 steps\n");
  check_same(resumed, through);
}

#if __has_include(<sys/wait.h>)
TEST_CASE("train_text goes on from where it was killed", "[train_text]") {
  const Folder folder;
  const Run through(folder, "through"), killed(folder, "killed");
  const Words words = small + Words{"--report=1"};
  // Killed at some moment once it has written a checkpoint, and after a minute or two in any case.
  const std::string command =
      meo::test::command_of(MEO_TRAIN_TEXT, words + killed.options() + Words{"--steps=1000000"}) + " >'" +
      (folder / "stdout").string() + "' & i=0; while test $i -lt 6000 && kill -0 $! && ! test -e '" +
      killed.checkpoint.string() + "'; do sleep 0.01; i=$((i + 1)); done; kill -9 $!";
  REQUIRE(std::system(command.c_str()) == 0);
  const std::string steps = "--steps=" + std::to_string(killed.steps() + 2);
  require_fine(run(folder, words + killed.resume() + Words{steps}));
  require_fine(run(folder, words + through.options() + Words{steps}));
  check_same(killed, through);
}
#endif

TEST_CASE("train_text begins logs that are not there when it resumes", "[train_text]") {
  const Folder folder;
  const Run run_of(folder, "run");
  require_fine(run(folder, small + run_of.options() + Words{"--steps=2"}));
  std::filesystem::remove(run_of.log);
  append(folder / "empty", "");
  std::filesystem::rename(folder / "empty", run_of.experts_log);
  require_fine(run(folder, small + run_of.resume() + Words{"--steps=3"}));
  const std::vector<Words> log = read_csv(run_of.log), experts_log = read_csv(run_of.experts_log);
  REQUIRE(log.size() == 2);
  CHECK(log[0].size() == 7);
  CHECK(log[0][0] == "step");
  CHECK(log[1][0] == "3");
  REQUIRE(experts_log.size() == 1 + 4 * 3);
  CHECK(experts_log[0][0] == "step");
  CHECK(experts_log[1][0] == "3");

  // A run that does not resume begins anew, whatever is there.
  append(folder / "other", "step,loss\n1,2\n");
  std::filesystem::rename(folder / "other", run_of.log);
  require_fine(run(folder, small + run_of.options() + Words{"--steps=1"}));
  CHECK(read_csv(run_of.log).size() == 2);
  CHECK(read_csv(run_of.log)[0] == log[0]);
  CHECK(read_csv(run_of.experts_log).size() == 1 + 4 * 3);
}

TEST_CASE("train_text does not resume a run of other options", "[train_text]") {
  const Folder folder;
  const Run run_of(folder, "run");
  require_fine(run(folder, small + run_of.options() + Words{"--steps=2"}));
  const auto before = load_bytes(run_of.checkpoint), log = load_bytes(run_of.log),
             experts_log = load_bytes(run_of.experts_log);
  const auto check = [&](const Words& words, const std::string& reason) {
    CAPTURE(reason);
    const Outcome outcome = run(folder, words + run_of.resume() + Words{"--steps=4"});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.errors == "train_text: " + reason + "\n");
    CHECK(outcome.output == "");
    CHECK(load_bytes(run_of.checkpoint) == before);
    CHECK(load_bytes(run_of.log) == log);
    CHECK(load_bytes(run_of.experts_log) == experts_log);
  };
  const std::string start = "meo: " + run_of.checkpoint.string() + ": ";
  const auto check_option = [&](const std::string& option, const std::string& expected,
                                const std::string& got) {
    check(small + Words{"--" + option + "=" + got},
          start + option + ": expected " + expected + ", with which it was trained, got " + got);
  };
  check_option("layer", "meo", "moe");
  check_option("level", "sequence", "token");
  check_option("experts", "3", "4");
  check_option("top-k", "2", "1");
  check_option("width", "8", "16");
  check_option("hidden", "12", "8");
  check_option("blocks", "2", "1");
  check_option("reduce-factor", "8", "4");
  check_option("window", "8", "16");
  check_option("batch", "4", "5");
  check_option("learning-rate", "0.001", "0.0010000001");
  check_option("seed", "5", "18446744073709551615");

  Words files;
  for (const std::string name : {"a", "b"}) {
    files.push_back((folder / name).string());
    append(files.back(), std::string(name == "a" ? 200 : 300, 'x'));
  }
  check(small_model + files,
        start + "data: expected domains, with which it was trained, got files of 200, 300 bytes");
}

TEST_CASE("train_text does not go on with a log of another kind", "[train_text]") {
  const Folder folder;
  const Run run_of(folder, "run");
  require_fine(run(folder, small + run_of.options() + Words{"--steps=2", "--report=1"}));
  append(run_of.log, "3,1,1,1,1,1,1\n");  // would go
  const std::string other = "step,loss\n1,2\n";
  std::filesystem::remove(run_of.experts_log);
  append(run_of.experts_log, other);
  const auto log = load_bytes(run_of.log);
  const Outcome outcome = run(folder, small + run_of.resume() + Words{"--steps=4"});
  CHECK(outcome.exit_code == 1);
  CHECK(outcome.errors ==
        "train_text: '" + run_of.experts_log.string() +
            "': expected the header "
            "'step,gate,expert,rows,count,share,mean_weight,importance,load,entropy', got 'step,loss'\n");
  CHECK(load_text(run_of.experts_log) == other);
  CHECK(load_bytes(run_of.log) == log);
}

}  // namespace
