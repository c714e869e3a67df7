#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/safetensors.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/golden_files.hpp"

namespace {
namespace safetensors_writer_test {

using meo::Index;
using meo::io::DType;
using meo::io::SafetensorsReader;
using meo::io::SafetensorsWriter;
using meo::test::Bytes;
using meo::test::error_of;
using meo::test::file_of;
using meo::test::Folder;
using meo::test::load_bytes;
using meo::test::names_in;

// What values are after a round trip through a file.
template <class To, class From>
std::vector<To> through(const std::vector<From>& values, DType dtype) {
  SafetensorsWriter writer;
  writer.add("t", {static_cast<Index>(values.size())}, values, dtype);
  const Bytes bytes = writer.bytes();
  const SafetensorsReader file(bytes, "f");
  CHECK(file.info("t").dtype == dtype);
  return file.read<To>("t");
}

template <class S>
std::string fault(const std::vector<Index>& shape, const std::vector<S>& values, DType dtype) {
  SafetensorsWriter writer;
  return error_of([&] { writer.add("t", shape, values, dtype); });
}

TEST_CASE("a file is the format's, byte for byte", "[io][writer]") {
  CHECK(SafetensorsWriter().bytes() == file_of("{}      "));

  SafetensorsWriter writer;
  writer.set_metadata("kind", "old");
  writer.set_metadata("kind", "MEO");
  // Written in the order of their width, so that each is aligned.
  writer.add("a", {3}, std::array<std::int8_t, 3>{1, 2, -1});
  writer.add("b", {1, 1}, std::array{1.0f});
  const std::string json =
      R"({"__metadata__":{"kind":"MEO"},"a":{"data_offsets":[4,7],"dtype":"I8","shape":[3]},)"
      R"("b":{"data_offsets":[0,4],"dtype":"F32","shape":[1,1]}})";
  const std::string padding((8 - json.size() % 8) % 8, ' ');
  CHECK(writer.bytes() ==
        file_of(json + padding, meo::test::to_bytes(std::string("\0\0\x80\x3f\x01\x02\xff", 7))));
}

TEST_CASE("matrices are written row by row, vectors with one dimension", "[io][writer]") {
  const meo::Matrix<double> rows = (meo::Matrix<double>(2, 3) << 1, 2, 3, 4, 5, 6).finished();
  const Eigen::MatrixXd columns = rows;
  SafetensorsWriter writer;
  writer.add("rows", rows);
  writer.add("columns", columns, DType::F32);
  writer.add("block", rows.rightCols(2));
  writer.add("transpose", rows.transpose());
  writer.add("vector", meo::Vector<float>(rows.col(1).cast<float>()));
  writer.add("row", rows.row(1));
  writer.add("shaped", {3, 1, 2}, columns);
  writer.add("none", meo::Matrix<float>(0, 4));
  const Bytes bytes = writer.bytes();
  const SafetensorsReader file(bytes, "f");
  CHECK(file.read_matrix<double>("rows", 2, 3) == rows);
  CHECK(file.read_matrix<double>("columns", 2, 3) == rows);
  CHECK(file.info("columns").dtype == DType::F32);
  CHECK(file.read_matrix<double>("block", 2, 2) == rows.rightCols(2));
  CHECK(file.read_matrix<double>("transpose", 3, 2) == rows.transpose());
  CHECK(file.read_vector<double>("vector", 2) == rows.col(1));
  CHECK(file.info("vector").dtype == DType::F32);
  CHECK(file.read_vector<double>("row", 3) == rows.row(1).transpose());
  file.check_shape("shaped", {3, 1, 2});
  CHECK(file.read<double>("shaped") == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(file.read_matrix<float>("none", 0, 4).size() == 0);
}

TEMPLATE_TEST_CASE("floats come back", "[io][writer]", float, double, long double) {
  using Limits = std::numeric_limits<float>;
  const std::vector<TestType> values{0,
                                     TestType(-0.0),
                                     1,
                                     TestType(-1.5),
                                     Limits::max(),
                                     Limits::min(),
                                     -Limits::denorm_min(),
                                     TestType(1) / 3,
                                     std::numeric_limits<TestType>::infinity(),
                                     -std::numeric_limits<TestType>::infinity(),
                                     std::numeric_limits<TestType>::quiet_NaN()};
  const auto check = [&](DType dtype, auto rounded) {
    const auto back = through<TestType>(values, dtype);
    REQUIRE(back.size() == values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      CAPTURE(i, to_string(dtype));
      const TestType expected = static_cast<TestType>(rounded(values[i]));
      CHECK((back[i] == expected || (std::isnan(back[i]) && std::isnan(expected))));
      CHECK(std::signbit(back[i]) == std::signbit(expected));
    }
  };
  check(DType::F64, [](TestType value) { return static_cast<double>(value); });
  check(DType::F32, [](TestType value) { return static_cast<float>(value); });
  // Eigen rounds from float, which for these values is the same.
  check(DType::F16,
        [](TestType value) { return static_cast<float>(Eigen::half(static_cast<float>(value))); });
  check(DType::BF16,
        [](TestType value) { return static_cast<float>(Eigen::bfloat16(static_cast<float>(value))); });
}

TEST_CASE("16-bit scalars come back", "[io][writer]") {
  std::vector<Eigen::half> halves;
  std::vector<Eigen::bfloat16> bfloats;
  for (unsigned i = 0; i < 0x10000; ++i) {
    const auto pattern = static_cast<std::uint16_t>(i);
    const Eigen::half half = Eigen::numext::bit_cast<Eigen::half>(pattern);
    if (!(Eigen::numext::isnan)(half)) halves.push_back(half);
    const Eigen::bfloat16 bfloat = Eigen::numext::bit_cast<Eigen::bfloat16>(pattern);
    if (!(Eigen::numext::isnan)(bfloat)) bfloats.push_back(bfloat);
  }
  SafetensorsWriter writer;
  writer.add("half", {static_cast<Index>(halves.size())}, halves);
  writer.add("bfloat", {static_cast<Index>(bfloats.size())}, bfloats);
  const Bytes bytes = writer.bytes();
  const SafetensorsReader file(bytes, "f");
  CHECK(file.info("half").dtype == DType::F16);
  CHECK(file.info("bfloat").dtype == DType::BF16);
  CHECK(file.read<Eigen::half>("half") == halves);
  CHECK(file.read<Eigen::bfloat16>("bfloat") == bfloats);
}

TEST_CASE("integers come back", "[io][writer]") {
  using I64 = std::numeric_limits<std::int64_t>;
  const std::vector<std::int64_t> wide{I64::min(), -1, 0, I64::max()};
  CHECK(through<std::int64_t>(wide, DType::I64) == wide);
  const std::vector<std::uint64_t> unsigned_wide{0, std::numeric_limits<std::uint64_t>::max()};
  CHECK(through<std::uint64_t>(unsigned_wide, DType::U64) == unsigned_wide);
  const std::vector<int> small{-128, 127, 0, 1};
  for (const DType dtype :
       {DType::I64, DType::I32, DType::I16, DType::I8, DType::F64, DType::F32, DType::F16}) {
    CHECK(through<float>(small, dtype) == std::vector<float>{-128, 127, 0, 1});
  }
  const std::vector<int> bits{0, 1, 1};
  for (const DType dtype : {DType::U64, DType::U32, DType::U16, DType::U8, DType::BOOL}) {
    CHECK(through<std::int8_t>(bits, dtype) == std::vector<std::int8_t>{0, 1, 1});
  }
}

TEST_CASE("what cannot be written", "[io][writer]") {
  const std::string t = "meo: tensor \"t\": ";
  const std::vector<float> six(6);
  CHECK(fault({2, 3}, six, DType::F32) == "no error");
  CHECK(fault({2, 2}, six, DType::F32) == t + "expected the elements of shape [2, 2], got 6");
  CHECK(fault({}, six, DType::F32) == t + "expected the elements of shape [], got 6");
  CHECK(fault({-2, -3}, six, DType::F32) == t + "expected the elements of shape [-2, -3], got 6");
  CHECK(fault({Index{1} << 62, 4}, std::vector<float>{}, DType::F32) ==
        t + "expected the elements of shape [4611686018427387904, 4], got 0");
  CHECK(fault({6}, six, DType::unknown) == t + "elements of unknown type cannot be written");
  CHECK(fault({6}, six, DType::I32) == t + "expected integers for I32, got floats");
  CHECK(fault({0}, std::vector<double>{}, DType::BOOL) == t + "expected integers for BOOL, got floats");
  CHECK(fault({2}, std::vector{1, 128}, DType::I8) == t + "element 1: expected -128 to 127, got 128");
  CHECK(fault({1}, std::vector{-1}, DType::U64) ==
        t + "element 0: expected 0 to 18446744073709551615, got -1");
  CHECK(fault({1}, std::vector{2}, DType::BOOL) == t + "element 0: expected 0 to 1, got 2");

  SafetensorsWriter writer;
  writer.add("t", {6}, six);
  const Bytes before = writer.bytes();
  CHECK(error_of([&] { writer.add("t", {6}, six); }) == t + "the name has been added before");
  CHECK(error_of([&] { writer.add("__metadata__", {6}, six); }) ==
        "meo: tensor \"__metadata__\": the name is reserved");
  CHECK(error_of([&] { writer.add("\xff", {6}, six); }) ==
        "meo: tensor \"\xef\xbf\xbd\": expected a name in UTF-8");
  CHECK(error_of([&] { writer.set_metadata("\xff", ""); }) ==
        "meo: metadata \"\xef\xbf\xbd\": expected UTF-8");
  CHECK(error_of([&] { writer.set_metadata("k", "\xff"); }) == "meo: metadata \"k\": expected UTF-8");
  CHECK(error_of([&] {
          writer.add("u", {2}, std::vector{1, 128}, DType::I8);
        }) == "meo: tensor \"u\": element 1: expected -128 to 127, got 128");
  CHECK(writer.bytes() == before);
}

TEST_CASE("what is deferred is written as a copy is, in pieces from first to last", "[io][writer]") {
  constexpr Index piece = SafetensorsWriter::deferred_elements;
  for (const Index size : {Index{0}, Index{1}, piece - 1, piece, piece + 1, 3 * piece + 5}) {
    CAPTURE(size);
    std::vector<double> values;
    for (Index i = 0; i < size; ++i) values.push_back(1.0 / static_cast<double>(i + 1));
    std::vector<std::pair<Index, Index>> asked;
    const auto read = [&](Index first, std::span<double> out) {
      const auto count = static_cast<Index>(out.size());
      asked.emplace_back(first, count);
      std::copy_n(values.begin() + first, count, out.begin());
    };
    for (const DType dtype : {DType::F64, DType::F32, DType::BF16}) {
      SafetensorsWriter copying, deferring;
      for (SafetensorsWriter* writer : {&copying, &deferring}) {
        writer->add("before", {3}, std::array{1, 2, 3});
        if (writer == &copying) writer->add("t", {1, size}, values, dtype);
        else writer->add_deferred<double>("t", {1, size}, read, dtype);
        writer->add("z", {1}, std::array<std::int8_t, 1>{4});
      }
      CHECK(asked.empty());  // not before it is written
      CHECK((deferring.bytes() == copying.bytes()));
      std::vector<std::pair<Index, Index>> expected;
      for (Index first = 0; first < size; first += piece) {
        expected.emplace_back(first, std::min(piece, size - first));
      }
      CHECK(asked == expected);

      const Folder folder;
      const auto path = folder / "f.safetensors";
      deferring.write(path);
      CHECK((load_bytes(path) == copying.bytes()));
      asked.clear();
    }
  }
}

TEST_CASE("a file is written in parts, by writers that each have a part of it", "[io][writer]") {
  constexpr Index piece = SafetensorsWriter::deferred_elements, size = 2 * piece + 5, cut = piece + 1;
  std::vector<double> values;
  for (Index i = 0; i < size; ++i) values.push_back(1.0 / static_cast<double>(i + 1));
  const std::array<int, 3> before{1, 2, 3};
  SafetensorsWriter whole;
  whole.add("before", {3}, before);
  whole.add("t", {size}, values);

  const Folder folder;
  const auto path = folder / "f.safetensors";
  meo::test::save(path, whole.head());
  std::vector<std::pair<Index, Index>> asked;
  for (const bool is_first : {false, true}) {
    SafetensorsWriter part;
    part.add("before", {3}, before);
    part.add_deferred<double>("t", {size}, [&](Index first, std::span<double> out) {
      asked.emplace_back(first, static_cast<Index>(out.size()));
      std::copy_n(values.begin() + first, out.size(), out.begin());
    });
    meo::io::PlacedOutput file(path);
    part.write_elements(file, [&](const std::string& name, const SafetensorsWriter::VisitElements& visit) {
      if (name == "t") return is_first ? visit(0, cut) : visit(cut, size - cut);
      visit(is_first ? 0 : 2, 1);
      if (is_first) visit(1, 1);
    });
    for (const auto& [first, count] :
         std::vector<std::pair<Index, Index>>{{-1, 1}, {2, 2}, {4, 0}, {0, -1}}) {
      CHECK_THAT(error_of([&, first = first, count = count] {
                   part.write_elements(file, [&](const std::string& name, const auto& visit) {
                     if (name == "before") visit(first, count);
                   });
                 }),
                 Catch::Contains("tensor \"before\": expected a range within its 3 elements, got " +
                                 std::to_string(count) + " from " + std::to_string(first)));
    }
    file.close();
  }
  CHECK((load_bytes(path) == whole.bytes()));
  CHECK(asked ==
        std::vector<std::pair<Index, Index>>{{cut, piece}, {cut + piece, 4}, {0, piece}, {piece, 1}});
}

TEST_CASE("what is deferred is read each time that it is written", "[io][writer]") {
  float value = 1;
  SafetensorsWriter writer;
  writer.add_deferred<float>("t", {}, [&](Index, std::span<float> out) { out[0] = value; });
  const auto written = [](const SafetensorsWriter& from) {
    const Bytes bytes = from.bytes();
    const SafetensorsReader file(bytes, "f");
    CHECK(file.info("t").dtype == DType::F32);
    return file.read<float>("t")[0];
  };
  CHECK(written(writer) == 1);
  const SafetensorsWriter copy = writer;
  value = 2;
  CHECK(written(writer) == 2);
  CHECK(written(copy) == 2);
}

TEST_CASE("what cannot be deferred", "[io][writer]") {
  const auto nothing = []<class S>(Index, std::span<S>) {};
  SafetensorsWriter writer;
  writer.add("old", {1}, std::array{1});
  const Bytes before = writer.bytes();
  const auto fault_of = [&](const std::string& name, const std::vector<Index>& shape, DType dtype) {
    return error_of([&] { writer.add_deferred<float>(name, shape, nothing, dtype); });
  };
  const std::string t = "meo: tensor \"t\": ";
  CHECK(fault_of("\xff", {}, DType::F32) == "meo: tensor \"\xef\xbf\xbd\": expected a name in UTF-8");
  CHECK(fault_of("__metadata__", {}, DType::F32) == "meo: tensor \"__metadata__\": the name is reserved");
  CHECK(fault_of("old", {}, DType::F32) == "meo: tensor \"old\": the name has been added before");
  CHECK(fault_of("t", {}, DType::unknown) == t + "elements of unknown type cannot be written");
  CHECK(fault_of("t", {}, DType::I32) == t + "expected integers for I32, got floats");
  CHECK(fault_of("t", {0}, DType::BOOL) == t + "expected integers for BOOL, got floats");
  const std::string most = t + "expected a shape of at most 9223372036854775807 bytes, got ";
  CHECK(fault_of("t", {-1}, DType::F32) == most + "[-1]");
  CHECK(fault_of("t", {Index{1} << 62, 4}, DType::F32) == most + "[4611686018427387904, 4]");
  CHECK(fault_of("t", {Index{1} << 61}, DType::F32) == most + "[2305843009213693952]");
  CHECK(writer.bytes() == before);
  writer.add_deferred<float>("t", {1}, nothing);
  CHECK(fault_of("t", {1}, DType::F32) == t + "the name has been added before");
  CHECK(error_of([&] { writer.add("t", {1}, std::array{1}); }) == t + "the name has been added before");
}

TEST_CASE("a fault in what is deferred leaves an old file as it was", "[io][writer]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  meo::test::save(path, meo::test::to_bytes("old"));
  constexpr Index size = SafetensorsWriter::deferred_elements + 10;
  bool ends = false;
  struct End {};
  SafetensorsWriter writer;
  writer.add("a", {2}, std::array{1.0, 2.0});
  writer.add_deferred<int>(
      "t", {size},
      [&](Index first, std::span<int> out) {
        if (ends && first > 0) throw End();
        std::fill(out.begin(), out.end(), 127);
        if (first > 0) out[7] = 128;
      },
      DType::I8);
  const std::string reason = "tensor \"t\": element " +
                             std::to_string(SafetensorsWriter::deferred_elements + 7) +
                             ": expected -128 to 127, got 128";
  CHECK(error_of([&] { writer.write(path); }) == "meo: " + path.string() + ": " + reason);
  CHECK(error_of([&] { writer.bytes(); }) == "meo: " + reason);
  CHECK(meo::test::load_text(path) == "old");
  ends = true;
  CHECK_THROWS_AS(writer.write(path), End);
  CHECK_THROWS_AS(writer.bytes(), End);
  CHECK(meo::test::load_text(path) == "old");
  CHECK(names_in(folder) == std::vector<std::string>{"f.safetensors"});
}

TEST_CASE("names and metadata of any content come back", "[io][writer]") {
  const std::string odd("a\0\"\\\n\x7fé", 8);
  SafetensorsWriter writer;
  writer.set_metadata(odd, odd);
  writer.set_metadata("", "");
  writer.add(odd, {}, std::array{1.0f});
  writer.add("", {}, std::array{2.0f});
  const Bytes bytes = writer.bytes();
  const SafetensorsReader file(bytes, "f");
  CHECK(file.metadata() == std::map<std::string, std::string>{{odd, odd}, {"", ""}});
  CHECK(file.read<float>(odd) == std::vector<float>{1});
  CHECK(file.read<float>("") == std::vector<float>{2});
}

TEST_CASE("a header beyond the limit is not written", "[io][writer]") {
  const auto fault_of = [](std::size_t size) {
    return error_of([&] { meo::io::detail::file_head("f", std::string(size, ' ')); });
  };
  CHECK(fault_of(100'000'000) == "no error");
  CHECK(fault_of(100'000'001) == "meo: f: expected a header of at most 100000000 bytes, got 100000008");
}

TEST_CASE("a file on disk is what bytes() says, and replaces the old one", "[io][writer]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  SafetensorsWriter writer;
  writer.add("t", {2}, std::array{1, 2});
  writer.write(path);
  CHECK(load_bytes(path) == writer.bytes());
#if defined(__unix__)  // elsewhere a file that is open cannot be replaced
  const SafetensorsReader old(path);
#endif

  SafetensorsWriter second;
  second.set_metadata("k", "v");
  second.add("t", {1}, std::array{3.5});
  second.write(path);
  CHECK(load_bytes(path) == second.bytes());
  CHECK(names_in(folder) == std::vector<std::string>{"f.safetensors"});
#if defined(__unix__)
  // A reader that was open before still reads what it has opened.
  CHECK(old.read<int>("t") == std::vector<int>{1, 2});
#endif
}

TEST_CASE("the golden files come back from a copy", "[io][writer][golden]") {
  for (const auto& path : meo::test::golden_files()) {
    const SafetensorsReader file(path);
    SafetensorsWriter writer;
    for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
    for (const std::string& name : file.names()) {
      const auto& info = file.info(name);
      writer.add(name, info.shape, file.read<double>(name), info.dtype);
    }
    const Bytes bytes = writer.bytes();
    const SafetensorsReader copy(bytes, "copy");
    CHECK(copy.metadata() == file.metadata());
    REQUIRE(copy.names() == file.names());
    for (const std::string& name : file.names()) {
      CHECK(copy.info(name).dtype == file.info(name).dtype);
      CHECK(copy.info(name).shape == file.info(name).shape);
      CHECK(copy.read<double>(name) == file.read<double>(name));
    }
  }
}

}  // namespace safetensors_writer_test
}  // namespace
