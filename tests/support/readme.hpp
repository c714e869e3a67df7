#pragma once

/// What tests read of a README, and of their own source, which has its snippets.

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace meo::test {

/// name: of a file, as seen from the tests' folder.
inline std::string read_text(const std::string& name) {
  std::ifstream file(MEO_TEST_DATA_DIR "/" + name);
  if (!file) throw std::runtime_error(name + ": cannot be opened");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The lines of a text, without indentation and empty lines.
inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    line.erase(0, line.find_first_not_of(' '));
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

inline std::vector<std::string> cpp_blocks(const std::string& readme) {
  const std::string open = "```cpp\n";
  std::vector<std::string> blocks;
  for (auto begin = readme.find(open); begin != std::string::npos; begin = readme.find(open, begin)) {
    begin += open.size();
    blocks.push_back(readme.substr(begin, readme.find("```", begin) - begin));
  }
  return blocks;
}

}  // namespace meo::test
