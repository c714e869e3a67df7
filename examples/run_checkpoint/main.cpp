/// Runs a layer or a feed-forward block from a safetensors checkpoint, or a block of a model of a public
/// family, on an input. `--help` says which metadata and tensors it reads and what it writes. One learns how
/// a program finds kinds and sizes in files; load_checkpoint has how a layer is loaded.

#include <exception>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string>
#include <system_error>

#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>

#include "arguments.hpp"
#include "run_authors.hpp"
#include "run_family.hpp"

namespace {

using run_checkpoint::Arguments;
using run_checkpoint::UsageError;

/// Whether both names are there and are of the same file, be it through a link.
bool are_same(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code not_there;
  return std::filesystem::equivalent(a, b, not_there);
}

/// Throws if the results would be written over what they are of, or cannot be written.
void check_output(const Arguments& arguments) {
  const std::filesystem::path model = arguments.file, output = *arguments.output;
  bool is_of_model = are_same(model, output);
  if (std::filesystem::is_directory(model)) {
    for (const auto& entry : std::filesystem::directory_iterator(model))
      is_of_model = is_of_model || are_same(entry.path(), output);
  }
  if (is_of_model) throw UsageError("--output would replace the file that it runs, '" + arguments.file + "'");
  if (arguments.input && are_same(*arguments.input, output))
    throw UsageError("--output would replace the file of --input, '" + *arguments.input + "'");
  meo::io::require_writable(output);
}

void run(const Arguments& arguments) {
  if (arguments.output) check_output(arguments);
  if (std::filesystem::is_directory(arguments.file))
    return run_checkpoint::run_family(meo::io::FamilyModel(std::filesystem::path(arguments.file)), arguments);
  const meo::io::SafetensorsReader reader{std::filesystem::path(arguments.file)};
  if (reader.metadata().contains("family"))
    return run_checkpoint::run_family(meo::io::FamilyModel(reader), arguments);
  run_checkpoint::run_authors(reader, arguments);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = run_checkpoint::parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << run_checkpoint::help_text;
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
