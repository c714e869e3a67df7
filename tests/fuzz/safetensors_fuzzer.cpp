// A safetensors file of any content is read, or refused with an io::Error; nothing else may happen.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <meo/io/safetensors_reader.hpp>

namespace {

template <class Action>
void refuse_at_most(Action action) {
  try {
    action();
  } catch (const meo::io::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  refuse_at_most([&] {
    const meo::io::SafetensorsReader file(std::as_bytes(std::span(data, size)), "fuzz");
    for (const std::string& name : file.names()) {
      refuse_at_most([&] { file.read<double>(name); });
      refuse_at_most([&] { file.read<std::int64_t>(name); });
    }
  });
  return 0;
}
