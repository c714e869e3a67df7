// What is deferred or checked takes memory for a piece of it, and reading into memory of the caller takes
// none. A program of its own: it counts what operator new is asked for.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <meo/io/safetensors.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/heap.hpp"

using meo::Index;
using meo::test::heap::bytes_of;

TEST_CASE("the memory that a tensor is written, checked and read with", "[io][reader][writer]") {
  constexpr Index size = 1 << 20;
  const meo::test::Folder folder;
  const auto path = folder / "f.safetensors";
  meo::io::SafetensorsWriter writer;
  writer.add_deferred<float>("t", {size}, [](Index first, std::span<float> values) {
    for (float& value : values) value = static_cast<float>(first++);
  });
  // A piece as numbers and as bytes, and the little that a header and names take.
  constexpr std::size_t piece = meo::io::SafetensorsWriter::deferred_elements * sizeof(float);
  CHECK(bytes_of([&] { writer.write(path); }) < 2 * piece + 20000);

  const meo::io::SafetensorsReader file(path);
  for (const bool require_finite : {false, true}) {
    CHECK(bytes_of([&] { file.check<float>("t", {size}, require_finite); }) < meo::io::read_bytes + 1000);
  }
  std::vector<float> values(1000);
  CHECK(bytes_of([&] { file.read_into<float>("t", 500'000, values); }) == 0);
  CHECK(values.back() == 500'999);
}
