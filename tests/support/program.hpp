#pragma once

/// Programs, run as a user does.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "io/files.hpp"

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#endif

namespace meo::test {

/// What a program left.
struct Outcome {
  int exit_code;  // -1 for one that was killed
  std::string output, errors;

  bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

/// The program and its arguments as a shell reads them.
inline std::string command_of(const std::string& program, const std::vector<std::string>& arguments) {
  std::string command = "'" + program + "'";
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  return command;
}

/// Its output is kept in the folder.
inline Outcome run_program(const std::string& program, const Folder& folder,
                           const std::vector<std::string>& arguments) {
  const std::filesystem::path output = folder / "stdout", errors = folder / "stderr";
  const std::string command =
      command_of(program, arguments) + " >'" + output.string() + "' 2>'" + errors.string() + "'";
  int status = std::system(command.c_str());
#if __has_include(<sys/wait.h>)
  status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
#endif
  return {status, load_text(output), load_text(errors)};
}

}  // namespace meo::test
