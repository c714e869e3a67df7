#include <filesystem>
#include <string>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/io/tensor_files.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

namespace {
namespace tensor_files_test {

using meo::io::SafetensorsReader;
using meo::io::SafetensorsWriter;
using meo::io::TensorFiles;
using meo::test::Bytes;
using meo::test::error_of;
using meo::test::Folder;

using Names = std::vector<std::string>;

void write(const std::filesystem::path& path, const Names& names) {
  SafetensorsWriter writer;
  for (const std::string& name : names)
    writer.add(name, std::vector<meo::Index>{1}, std::vector<float>{static_cast<float>(name.size())});
  writer.write(path);
}

TEST_CASE("tensors of a file are seen under its prefix, without it", "[tensor_files]") {
  SafetensorsWriter writer;
  for (const char* const name : {"a.one", "a.two", "b.one"})
    writer.add(name, std::vector<meo::Index>{1}, std::vector<float>{1});
  const Bytes bytes = writer.bytes();
  const SafetensorsReader file(bytes, "f");
  const TensorFiles all(file), some(file, "a.");
  CHECK(all.names() == Names{"a.one", "a.two", "b.one"});
  CHECK(some.names() == Names{"one", "two"});
  CHECK(some.name() == "f");
  CHECK(some.prefix() == "a.");
  CHECK(some.contains("two"));
  CHECK_FALSE(some.contains("a.two"));
  CHECK(some.file_of("two").contains("a.two"));
  CHECK(error_of([&] { some.file_of("three"); }) == "meo: f: tensor \"a.three\": is not in the file");
}

TEST_CASE("tensors of a folder are in one file or in those of its index", "[tensor_files]") {
  const Folder folder;
  const std::string index = (folder / "model.safetensors.index.json").string();
  const auto fault = [&](const std::string& text) {
    meo::test::save(index, meo::test::to_bytes(text));
    return error_of([&] { TensorFiles::of_folder(folder); });
  };
  CHECK(error_of([&] { TensorFiles::of_folder(folder); }) ==
        "meo: " + (folder / "model.safetensors").string() + ": cannot be read: No such file or directory");
  write(folder / "model.safetensors", {"single"});
  CHECK(TensorFiles::of_folder(folder).names() == Names{"single"});
  CHECK(TensorFiles::of_folder(folder).name() == (folder / "model.safetensors").string());

  write(folder / "1", {"x", "left_out"});
  write(folder / "2", {"yy", "zzz"});
  // Of both the one file counts, as for those who publish them.
  CHECK(fault(R"({"weight_map": {"x": "1"}})") == "no error");
  CHECK(TensorFiles::of_folder(folder).names() == Names{"single"});
  std::filesystem::remove(folder / "model.safetensors");
  CHECK(fault(R"({"metadata": {}, "weight_map": {"x": "1", "yy": "2", "zzz": "2"}})") == "no error");
  const TensorFiles files = TensorFiles::of_folder(folder);
  CHECK(files.name() == index);
  CHECK(files.names() == Names{"x", "yy", "zzz"});
  for (const std::string& name : files.names())
    CHECK(files.file_of(name).read<float>(name) == std::vector<float>{static_cast<float>(name.size())});
  CHECK(error_of([&] { files.file_of("left_out"); }) ==
        "meo: " + index + ": tensor \"left_out\": is not in the file");

  CHECK(fault("[]") == "meo: " + index + ": expected a JSON object");
  CHECK(fault(R"({"weight_map": {"x": "1")") == "meo: " + index + ": expected a JSON object");
  for (const char* const text : {"{}", R"({"weight_map": ["x"]})"}) {
    CHECK(fault(text) ==
          "meo: " + index + ": weight_map: expected an object of tensors' names and their files");
  }
  for (const char* const file : {"7", R"("../1")", R"("/1")", "null"}) {
    CHECK(fault(R"({"weight_map": {"x": )" + std::string(file) + "}}") ==
          "meo: " + index + ": tensor \"x\": expected the name of a file beside the index");
  }
  CHECK(fault(R"({"weight_map": {"x": "3"}})") ==
        "meo: " + (folder / "3").string() + ": cannot be read: No such file or directory");
  CHECK(fault(R"({"weight_map": {"x": "2"}})") ==
        "meo: " + (folder / "2").string() + ": tensor \"x\": is not in the file");
}

}  // namespace tensor_files_test
}  // namespace
