/// Runs a layer or a feed-forward block from a safetensors checkpoint, or a block of a model of a public
/// family, on an input. `--help` says which metadata and tensors it reads and what it writes.

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

/// Throws if the results would be written over what they are of, or cannot be written.
void check_output(const Arguments& arguments) {
  const std::filesystem::path file = arguments.file, output = *arguments.output;
  std::error_code not_there;
  const bool is_of_folder = std::filesystem::exists(output, not_there) &&
                            std::filesystem::equivalent(file, output.parent_path() / ".", not_there);
  if (std::filesystem::equivalent(file, output, not_there) || is_of_folder)
    throw UsageError("--output would replace the file that it runs, '" + arguments.file + "'");
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
