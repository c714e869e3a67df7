#pragma once

/// What the metadata of a file say of a layer or a block of it.

#include <charconv>
#include <locale>
#include <sstream>
#include <string>
#include <system_error>

#include <meo/io/safetensors.hpp>
#include <meo/types.hpp>

namespace run_checkpoint {

using meo::Index;
using meo::Level;

/// The metadata of a checkpoint, with errors that name the file and the key.
class Metadata {
 public:
  explicit Metadata(const meo::io::SafetensorsReader& reader) : reader_(reader) {}

  std::string text(const std::string& key, const std::string& otherwise) const {
    return reader_.metadata().contains(key) ? reader_.metadata(key) : otherwise;
  }
  bool flag(const std::string& key) const {
    const std::string value = text(key, "False");
    if (value != "True" && value != "False") fail(key, "True or False", value);
    return value == "True";
  }
  Index count(const std::string& key) const {
    const std::string& value = reader_.metadata(key);
    Index count = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
    if (error != std::errc() || end != value.data() + value.size()) fail(key, "a number", value);
    if (count < 1) fail(key, "a number of at least 1", value);
    return count;
  }
  Index count(const std::string& key, Index otherwise) const {
    return reader_.metadata().contains(key) ? count(key) : otherwise;
  }
  double real(const std::string& key, double otherwise) const {
    if (!reader_.metadata().contains(key)) return otherwise;
    const std::string& value = reader_.metadata(key);
    double number = 0;
    std::istringstream text(value);  // not from_chars, which libc++ has for whole numbers only
    text.imbue(std::locale::classic());
    if (!(text >> std::noskipws >> number) || !text.eof()) fail(key, "a number", value);
    return number;
  }
  Level level() const {
    const std::string& value = reader_.metadata("level");
    for (const Level level : {Level::token, Level::sequence, Level::task}) {
      if (value == to_string(level)) return level;
    }
    fail("level", "token, sequence or task", value);
  }

  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& value) const {
    throw meo::io::Error(reader_.file(),
                         "metadata " + key + ": expected " + expected + ", got '" + value + "'");
  }

 private:
  const meo::io::SafetensorsReader& reader_;
};

}  // namespace run_checkpoint
