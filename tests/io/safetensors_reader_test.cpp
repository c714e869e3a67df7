#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <latch>
#include <limits>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/safetensors_reader.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/golden_files.hpp"

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#endif

namespace {
namespace safetensors_reader_test {

using meo::Index;
using meo::io::SafetensorsReader;
using meo::test::Bytes;
using meo::test::error_of;
using meo::test::file_of;
using meo::test::Folder;
using meo::test::little_endian;
using meo::test::operator+;

static_assert(std::is_nothrow_move_constructible_v<SafetensorsReader>);
static_assert(std::is_copy_constructible_v<SafetensorsReader>);
// A reader does not keep memory alive: a temporary would be gone before the first read.
static_assert(!std::is_constructible_v<SafetensorsReader, std::vector<std::byte>, std::string>);

// The only tensor of a file.
template <class S>
std::vector<S> read(const Bytes& file) {
  return SafetensorsReader(file, "f").read<S>("t");
}

template <class S>
std::string fault(const Bytes& file) {
  return error_of([&] { read<S>(file); });
}

Bytes bytes_of(std::initializer_list<std::uint64_t> numbers, std::size_t size) {
  Bytes bytes;
  for (const std::uint64_t number : numbers) bytes = bytes + little_endian(number, size);
  return bytes;
}

// Two tensors and metadata in little space.
Bytes small_file() {
  return file_of(R"({"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                 R"("n":{"dtype":"I16","shape":[],"data_offsets":[8,10]}})",
                 bytes_of({0x3f800000, 0xc0000000}, 4) + little_endian(7, 2));
}

TEST_CASE("a reader lists what a file holds", "[io][reader]") {
  const Bytes bytes = small_file();
  const SafetensorsReader file(bytes, "f");
  CHECK(file.file() == "f");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"k", "v"}});
  CHECK(file.metadata("k") == "v");
  CHECK(file.names() == std::vector<std::string>{"n", "w"});
  CHECK(file.contains("w"));
  CHECK_FALSE(file.contains("W"));
  CHECK_FALSE(file.contains("__metadata__"));
  CHECK(file.info("w").dtype == meo::io::DType::F32);
  CHECK(file.info("w").shape == std::vector<Index>{1, 2});
  CHECK(file.read<float>("w") == std::vector<float>{1, -2});
  CHECK(file.read<int>("n") == std::vector<int>{7});
  CHECK(file.read_matrix<double>("w", 1, 2) == (meo::Matrix<double>(1, 2) << 1, -2).finished());
}

TEMPLATE_TEST_CASE("floats of every width, with all that is special about them", "[io][reader]", float,
                   double, long double) {
  using Limits32 = std::numeric_limits<float>;
  using Limits64 = std::numeric_limits<double>;
  constexpr TestType infinity = std::numeric_limits<TestType>::infinity();
  const auto check = [](const Bytes& file, std::vector<TestType> expected) {
    expected.push_back(std::numeric_limits<TestType>::quiet_NaN());
    const auto values = read<TestType>(file);
    REQUIRE(values.size() == expected.size());
    for (std::size_t i = 0; i + 1 < values.size(); ++i) {
      CHECK(values[i] == expected[i]);
      CHECK(std::signbit(values[i]) == std::signbit(expected[i]));
    }
    CHECK(std::isnan(values.back()));
  };

  check(file_of("F64", "[8]",
                bytes_of({0, 0x8000000000000000, 0x3ff8000000000000, 0xc000000000000000, 1,
                          0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000001},
                         8)),
        {0, TestType(-0.0), TestType(1.5), -2, static_cast<TestType>(Limits64::denorm_min()), infinity,
         -infinity});
  check(file_of("F32", "[8]",
                bytes_of({0, 0x80000000, 0x3fc00000, 0xc0000000, 1, 0x7f800000, 0xff800000, 0x7fc00001}, 4)),
        {0, TestType(-0.0), TestType(1.5), -2, Limits32::denorm_min(), infinity, -infinity});
  check(file_of("F16", "[8]", bytes_of({0, 0x8000, 0x3e00, 0xc000, 1, 0x7c00, 0xfc00, 0x7e01}, 2)),
        {0, TestType(-0.0), TestType(1.5), -2, TestType(0x1p-24), infinity, -infinity});
  check(file_of("BF16", "[8]", bytes_of({0, 0x8000, 0x3fc0, 0xc000, 1, 0x7f80, 0xff80, 0x7fc1}, 2)),
        {0, TestType(-0.0), TestType(1.5), -2, TestType(0x1p-133), infinity, -infinity});
}

TEST_CASE("a double becomes the nearest float", "[io][reader]") {
  const double values[] = {0.1, -1e300, 1e-300, 1 + 0x1p-24, 1 + 3 * 0x1p-24};
  Bytes data;
  for (const double value : values) data = data + little_endian(std::bit_cast<std::uint64_t>(value));
  CHECK(read<float>(file_of("F64", "[5]", data)) ==
        std::vector<float>{0.1f, -std::numeric_limits<float>::infinity(), 0, 1, 1 + 2 * 0x1p-23f});
  CHECK(read<Eigen::half>(file_of("F64", "[5]", data))[4] == Eigen::half(1));
}

TEMPLATE_TEST_CASE("integers of every width", "[io][reader]", std::int64_t, std::int32_t, std::int16_t,
                   std::int8_t, std::uint64_t, std::uint32_t, std::uint16_t, std::uint8_t) {
  using Limits = std::numeric_limits<TestType>;
  const std::string type = (Limits::is_signed ? "I" : "U") + std::to_string(8 * sizeof(TestType));
  const Bytes file = file_of(
      type, "[3]",
      bytes_of({static_cast<std::uint64_t>(Limits::min()), 100, static_cast<std::uint64_t>(Limits::max())},
               sizeof(TestType)));
  CHECK(read<TestType>(file) == std::vector<TestType>{Limits::min(), 100, Limits::max()});
  CHECK(read<double>(file) ==
        std::vector<double>{static_cast<double>(Limits::min()), 100, static_cast<double>(Limits::max())});
  CHECK(read<long double>(file)[2] == static_cast<long double>(Limits::max()));

  // Into every integer type, or not, if one of the values does not fit.
  const auto into = [&]<class S>(S) {
    const bool fits = std::in_range<S>(Limits::min()) && std::in_range<S>(Limits::max());
    if (fits) {
      CHECK(read<S>(file) ==
            std::vector<S>{static_cast<S>(Limits::min()), 100, static_cast<S>(Limits::max())});
    } else {
      const bool first = !std::in_range<S>(Limits::min());
      CHECK(fault<S>(file) == "meo: f: tensor \"t\": element " + std::string(first ? "0" : "2") +
                                  ": expected " + std::to_string(std::numeric_limits<S>::min()) + " to " +
                                  std::to_string(std::numeric_limits<S>::max()) + ", got " +
                                  std::to_string(first ? Limits::min() : Limits::max()));
    }
  };
  into(std::int64_t{});
  into(std::int32_t{});
  into(std::int16_t{});
  into(std::int8_t{});
  into(std::uint64_t{});
  into(std::uint32_t{});
  into(std::uint16_t{});
  into(std::uint8_t{});
}

TEST_CASE("a BOOL is 0 or 1", "[io][reader]") {
  CHECK(read<int>(file_of("BOOL", "[2]", bytes_of({0, 1}, 1))) == std::vector<int>{0, 1});
  CHECK(read<float>(file_of("BOOL", "[2]", bytes_of({1, 0}, 1))) == std::vector<float>{1, 0});
  const Bytes odd = file_of("BOOL", "[3]", bytes_of({0, 1, 2}, 1));
  CHECK(fault<int>(odd) == "meo: f: tensor \"t\": element 2: expected 0 to 1, got 2");
  CHECK(fault<float>(odd) == "meo: f: tensor \"t\": element 2: expected 0 to 1, got 2");
}

TEST_CASE("what a scalar cannot hold is not read", "[io][reader]") {
  CHECK(fault<int>(file_of("F64", "[1]", little_endian(0))) ==
        "meo: f: tensor \"t\": expected integers, got F64");
  CHECK(fault<int>(file_of("F32", "[1]", little_endian(0, 4))) ==
        "meo: f: tensor \"t\": expected integers, got F32");
  CHECK(fault<int>(file_of("F16", "[0]", {})) == "meo: f: tensor \"t\": expected integers, got F16");
  CHECK(fault<int>(file_of("BF16", "[0]", {})) == "meo: f: tensor \"t\": expected integers, got BF16");
  CHECK(fault<float>(file_of("F8_E4M3", "[1]", little_endian(0, 1))) ==
        "meo: f: tensor \"t\": elements of type \"F8_E4M3\" cannot be read");
}

// The header of an unknown type may promise any number of elements, and the file is as small as before.
TEST_CASE("no memory is taken for elements of an unknown type", "[io][reader]") {
  for (const Index count : {Index{20'000'000'000}, Index{1} << 62}) {
    CAPTURE(count);
    const Bytes bytes = file_of("F4", "[" + std::to_string(count) + "]", {});
    const SafetensorsReader file(bytes, "f");
    CHECK(file.info("t").size == count);
    const std::string reason = "meo: f: tensor \"t\": elements of type \"F4\" cannot be read";
    CHECK(error_of([&] { file.read<float>("t"); }) == reason);
    CHECK(error_of([&] { file.read<std::uint8_t>("t"); }) == reason);
    CHECK(error_of([&] { file.read<float>("t", 1, count - 1); }) == reason);
    CHECK(error_of([&] { file.read_vector<float>("t", count); }) == reason);
    CHECK(error_of([&] { file.check_shape("t", {count}); }) == reason);
  }
  const Bytes bytes = file_of("F4", "[200000,100000]", {});
  CHECK(error_of([&] { SafetensorsReader(bytes, "f").read_matrix<float>("t", 200000, 100000); }) ==
        "meo: f: tensor \"t\": elements of type \"F4\" cannot be read");
}

TEST_CASE("elements that are not finite are found by their bits, the first of them", "[io][reader]") {
  const auto fault_of = [](const Bytes& file) {
    return error_of([&] { SafetensorsReader(file, "f").check_finite("t"); });
  };
  struct Type {
    const char* name;
    std::size_t size;
    std::uint64_t infinity, sign;
  };
  for (const Type& type :
       {Type{"F64", 8, 0x7ff0000000000000, 0x8000000000000000}, Type{"F32", 4, 0x7f800000, 0x80000000},
        Type{"F16", 2, 0x7c00, 0x8000}, Type{"BF16", 2, 0x7f80, 0x8000}}) {
    const std::string name = type.name;
    const std::size_t size = type.size;
    const std::uint64_t infinity = type.infinity, sign = type.sign;
    CAPTURE(name);
    // Both zeros, the smallest and the largest numbers.
    std::vector<std::uint64_t> finite{0, sign, 1, sign | 1, infinity - 1, sign | (infinity - 1)};
    finite.resize(16384 / size + 3);  // beyond the buffer between file and memory
    const auto file = [&](std::size_t place, std::uint64_t bits) {
      Bytes data;
      for (std::size_t i = 0; i < finite.size(); ++i) {
        // What comes after the first does not matter.
        const Bytes element = little_endian(i == place ? bits : i == place + 1 ? infinity : finite[i], size);
        data.insert(data.end(), element.begin(), element.end());
      }
      return file_of(name, "[" + std::to_string(finite.size()) + "]", data);
    };
    CHECK(fault_of(file(finite.size(), 0)) == "no error");
    for (const std::size_t place : {std::size_t{0}, 16384 / size - 1, 16384 / size, finite.size() - 1}) {
      const std::string start =
          "meo: f: tensor \"t\": element " + std::to_string(place) + ": expected a finite number, got ";
      CHECK(fault_of(file(place, infinity)) == start + "inf");
      CHECK(fault_of(file(place, sign | infinity)) == start + "-inf");
      for (const std::uint64_t nan : {infinity | 1, infinity | infinity >> 1, sign - 1}) {
        CHECK(fault_of(file(place, nan)) == start + "nan");
        CHECK(fault_of(file(place, sign | nan)) == start + "nan");
      }
    }
  }
  for (const char* integers : {"I64", "U64", "BOOL"})
    CHECK(fault_of(file_of(integers, "[0]", {})) == "no error");
  CHECK(fault_of(file_of("U64", "[1]", little_endian(~std::uint64_t{0}))) == "no error");
  CHECK(fault_of(file_of("I32", "[1]", little_endian(0x7f800000, 4))) == "no error");
  CHECK(fault_of(file_of("F8_E4M3", "[1]", little_endian(0, 1))) ==
        "meo: f: tensor \"t\": elements of type \"F8_E4M3\" cannot be read");
  CHECK(fault_of(file_of("{}")) == "meo: f: tensor \"t\": is not in the file");
}

TEST_CASE("numbers beyond a scalar's are not finite in it", "[io][reader]") {
  const auto fault_in = []<class S>(S, const Bytes& file) {
    return error_of([&] { SafetensorsReader(file, "f").check_finite<S>("t"); });
  };
  const auto doubles = [](double second) {
    return file_of("F64", "[2]", little_endian(0) + little_endian(std::bit_cast<std::uint64_t>(second)));
  };
  const std::string start = "meo: f: tensor \"t\": element 1: expected ";
  for (const double sign : {1.0, -1.0}) {
    const double huge = sign * 1e300;
    const std::string got = sign > 0 ? "1e+300" : "-1e+300";
    CHECK(fault_in(double{}, doubles(huge)) == "no error");
    CHECK(fault_in(0.0L, doubles(huge)) == "no error");
    CHECK(fault_in(float{}, doubles(huge)) == start + "-3.40282e+38 to 3.40282e+38, got " + got);
    CHECK(fault_in(Eigen::half{}, doubles(huge)) == start + "-65504 to 65504, got " + got);
    CHECK(fault_in(float{}, doubles(sign * std::numeric_limits<float>::max())) == "no error");
    CHECK(fault_in(Eigen::half{}, doubles(sign * 65504)) == "no error");
    CHECK(fault_in(Eigen::bfloat16{}, doubles(sign * 1e38)) == "no error");
  }
  // The reader would make an infinity of it.
  CHECK(fault_in(Eigen::half{}, file_of("I32", "[2]", little_endian(1, 4) + little_endian(70000, 4))) ==
        start + "-65504 to 65504, got 70000");
  CHECK(fault_in(float{}, file_of("U64", "[1]", little_endian(~std::uint64_t{0}))) == "no error");
}

TEST_CASE("tensors that are not there or have another shape", "[io][reader]") {
  const Bytes bytes = small_file();
  const SafetensorsReader file(bytes, "f");
  CHECK(error_of([&] { file.info("x"); }) == "meo: f: tensor \"x\": is not in the file");
  CHECK(error_of([&] { file.read<float>("x"); }) == "meo: f: tensor \"x\": is not in the file");
  CHECK(error_of([&] { file.read<float>("__metadata__"); }) ==
        "meo: f: tensor \"__metadata__\": is not in the file");
  CHECK(error_of([&] { file.metadata("l"); }) == "meo: f: expected the metadata to have \"l\"");
  CHECK(error_of([&] { file.read_matrix<float>("x", 1, 2); }) == "meo: f: tensor \"x\": is not in the file");
  CHECK(error_of([&] { file.read_matrix<float>("w", 2, 1); }) ==
        "meo: f: tensor \"w\": expected shape [2, 1], got [1, 2]");
  CHECK(error_of([&] { file.read_vector<float>("w", 2); }) ==
        "meo: f: tensor \"w\": expected shape [2], got [1, 2]");
  CHECK(error_of([&] { file.read_vector<int>("n", 1); }) ==
        "meo: f: tensor \"n\": expected shape [1], got []");
  CHECK(error_of([&] {
          file.check_shape("w", {1, 2, 1});
        }) == "meo: f: tensor \"w\": expected shape [1, 2, 1], got [1, 2]");
  CHECK(error_of([&] { file.check_shape("w", {1, 2}); }) == "no error");
}

TEST_CASE("a caller's memory is filled whole or not at all", "[io][reader]") {
  const Bytes bytes = small_file();
  const SafetensorsReader file(bytes, "f");
  std::array<double, 2> two{5, 5};
  file.read("w", std::span<double>(two));
  CHECK(two == std::array<double, 2>{1, -2});

  std::array<double, 3> three{5, 5, 5};
  CHECK(error_of([&] { file.read<double>("w", three); }) ==
        "meo: f: tensor \"w\": expected 3 elements, got 2");
  CHECK(three == std::array<double, 3>{5, 5, 5});

  const Bytes wide = file_of("I16", "[3]", bytes_of({1, 2, 300}, 2));
  std::array<std::int8_t, 3> narrow{5, 5, 5};
  CHECK(error_of([&] { SafetensorsReader(wide, "f").read<std::int8_t>("t", narrow); }) ==
        "meo: f: tensor \"t\": element 2: expected -128 to 127, got 300");
  CHECK(narrow == std::array<std::int8_t, 3>{5, 5, 5});
}

TEST_CASE("tensors larger than the buffer between file and memory", "[io][reader]") {
  // Around multiples of it, in each width.
  for (const std::size_t size : {1u, 2u, 4u, 8u}) {
    const std::size_t whole = meo::io::read_bytes / size;
    for (const std::size_t count : {whole - 1, whole, whole + 1, 3 * whole + 5}) {
      Bytes data;
      std::vector<std::uint64_t> expected;
      for (std::size_t i = 0; i < count; ++i) {
        expected.push_back(i * 2654435761 % 251);
        data = data.empty() ? little_endian(expected[i], size)
                            : std::move(data) + little_endian(expected[i], size);
      }
      const Bytes bytes = file_of("U" + std::to_string(8 * size), "[" + std::to_string(count) + "]", data);
      CHECK(read<std::uint64_t>(bytes) == expected);
      // A part that begins within one buffer and ends within a later one.
      const std::size_t begin = 3;
      CHECK(SafetensorsReader(bytes, "f")
                .read<std::uint64_t>("t", begin, static_cast<Index>(count - begin - 1)) ==
            std::vector<std::uint64_t>(expected.begin() + begin, expected.end() - 1));
    }
  }
}

TEST_CASE("a part of a tensor", "[io][reader]") {
  const Bytes bytes = file_of("I16", "[2,3]", bytes_of({0, 1, 2, 3, 4, 500}, 2));
  const SafetensorsReader file(bytes, "f");
  CHECK(file.read<int>("t", 1, 3) == std::vector<int>{1, 2, 3});
  CHECK(file.read<int>("t", 0, 6) == std::vector<int>{0, 1, 2, 3, 4, 500});
  CHECK(file.read<int>("t", 6, 0).empty());
  CHECK(file.read<std::int8_t>("t", 2, 3) == std::vector<std::int8_t>{2, 3, 4});
  CHECK(error_of([&] { file.read<std::int8_t>("t", 4, 2); }) ==
        "meo: f: tensor \"t\": element 5: expected -128 to 127, got 500");
  constexpr Index largest = std::numeric_limits<Index>::max();
  const std::pair<Index, Index> outside[] = {{-1, 2},      {0, -1},           {0, 7}, {6, 1}, {7, 0},
                                             {1, largest}, {largest, largest}};
  for (const auto& [begin, count] : outside) {
    CHECK(error_of([&, begin = begin, count = count] { file.read<int>("t", begin, count); }) ==
          "meo: f: tensor \"t\": expected a range within its 6 elements, got " + std::to_string(count) +
              " from " + std::to_string(begin));
  }
}

TEST_CASE("a part of a tensor goes into memory of the caller", "[io][reader]") {
  const Bytes bytes = file_of("I16", "[2,3]", bytes_of({0, 1, 2, 3, 4, 500}, 2));
  const SafetensorsReader file(bytes, "f");
  std::array<float, 5> out{9, 9, 9, 9, 9};
  file.read_into<float>("t", 3, std::span(out).subspan(1, 3));
  CHECK(out == std::array<float, 5>{9, 3, 4, 500, 9});
  file.read_into<float>("t", 6, std::span(out).first(0));
  CHECK(error_of([&] { file.read_into<float>("t", 2, out); }) ==
        "meo: f: tensor \"t\": expected a range within its 6 elements, got 5 from 2");
  CHECK(error_of([&] { file.read_into<float>("t", -1, out); }) ==
        "meo: f: tensor \"t\": expected a range within its 6 elements, got 5 from -1");
  CHECK(error_of([&] { file.read_into<float>("x", 0, out); }) == "meo: f: tensor \"x\": is not in the file");
  CHECK(out == std::array<float, 5>{9, 3, 4, 500, 9});
  std::array<std::int8_t, 2> narrow{9, 9};
  CHECK(error_of([&] { file.read_into<std::int8_t>("t", 4, narrow); }) ==
        "meo: f: tensor \"t\": element 5: expected -128 to 127, got 500");
  const Bytes floats = file_of("F32", "[1]", bytes_of({0}, 4));
  CHECK(error_of([&] {
          SafetensorsReader(floats, "f").read_into<std::int8_t>("t", 0, std::span(narrow).first(1));
        }) == "meo: f: tensor \"t\": expected integers, got F32");
}

TEST_CASE("a tensor is checked without being kept", "[io][reader]") {
  const auto fault_of = []<class S>(S, const Bytes& bytes, const std::vector<Index>& shape, bool finite) {
    return error_of([&] { SafetensorsReader(bytes, "f").check<S>("t", shape, finite); });
  };
  const std::string t = "meo: f: tensor \"t\": ";
  // Beyond the buffer between file and memory, the odd one last.
  const std::size_t count = meo::io::read_bytes + 3;
  const auto file = [&](const std::string& dtype, std::size_t size, std::uint64_t last) {
    Bytes data((count - 1) * size);
    const Bytes odd = little_endian(last, size);
    data.insert(data.end(), odd.begin(), odd.end());
    return file_of(dtype, "[1," + std::to_string(count) + "]", data);
  };
  const std::vector<Index> shape{1, static_cast<Index>(count)};
  const std::string last = t + "element " + std::to_string(count - 1) + ": expected ";
  for (const bool finite : {false, true}) {
    CHECK(fault_of(float{}, file("F32", 4, 0x3f800000), shape, finite) == "no error");
    CHECK(fault_of(int{}, file("U8", 1, 200), shape, finite) == "no error");
    CHECK(fault_of(float{}, file("BOOL", 1, 1), shape, finite) == "no error");
    CHECK(fault_of(float{}, file("F32", 4, 0), {static_cast<Index>(count)}, finite) ==
          t + "expected shape [" + std::to_string(count) + "], got [1, " + std::to_string(count) + "]");
    CHECK(fault_of(int{}, file("F32", 4, 0), shape, finite) == t + "expected integers, got F32");
    CHECK(fault_of(int{}, file_of("F16", "[0]", {}), {0}, finite) == t + "expected integers, got F16");
    CHECK(fault_of(std::int8_t{}, file("U8", 1, 200), shape, finite) == last + "-128 to 127, got 200");
    CHECK(fault_of(float{}, file("BOOL", 1, 2), shape, finite) == last + "0 to 1, got 2");
    CHECK(fault_of(float{}, file_of("F8_E4M3", "[1]", little_endian(0, 1)), {1}, finite) ==
          t + "elements of type \"F8_E4M3\" cannot be read");
    CHECK(fault_of(float{}, file_of("{}"), {1}, finite) == t + "is not in the file");
  }
  const auto huge = std::bit_cast<std::uint64_t>(1e300);
  CHECK(fault_of(float{}, file("F16", 2, 0x7e00), shape, false) == "no error");
  CHECK(fault_of(float{}, file("F16", 2, 0x7e00), shape, true) == last + "a finite number, got nan");
  CHECK(fault_of(float{}, file("F64", 8, huge), shape, false) == "no error");
  CHECK(fault_of(float{}, file("F64", 8, huge), shape, true) ==
        last + "-3.40282e+38 to 3.40282e+38, got 1e+300");
  CHECK(fault_of(double{}, file("F64", 8, huge), shape, true) == "no error");

  // All of it is read.
  const Folder folder;
  const auto path = folder / "f.safetensors";
  const Bytes bytes = file("F32", 4, 0);
  meo::test::save(path, bytes);
  const SafetensorsReader open(path);
  open.check<float>("t", shape);
  std::filesystem::resize_file(path, bytes.size() - 1);
  CHECK(error_of([&] { open.check<float>("t", shape); }) ==
        "meo: " + path.string() + ": tensor \"t\": its data cannot be read any more");
}

TEST_CASE("a part of a tensor is checked, and no more", "[io][reader]") {
  const Bytes bytes = file_of("F64", "[2,2]",
                              little_endian(0) + little_endian(std::bit_cast<std::uint64_t>(1e300)) +
                                  little_endian(0) + little_endian(0x7ff0000000000000));
  const SafetensorsReader file(bytes, "f");
  const std::string t = "meo: f: tensor \"t\": ";
  const auto fault_of = [&](Index begin, Index count, bool finite) {
    return error_of([&] { file.check_elements<float>("t", begin, count, finite); });
  };
  const auto unfit = [&](Index begin, Index count) {
    return error_of([&] { file.check_finite<float>("t", begin, count); });
  };
  CHECK(fault_of(0, 4, false) == "no error");
  CHECK(fault_of(0, 1, true) == "no error");
  CHECK(unfit(0, 1) == "no error");
  CHECK(fault_of(2, 1, true) == "no error");
  CHECK(unfit(2, 1) == "no error");
  for (const std::string& fault : {fault_of(0, 2, true), unfit(1, 3)})
    CHECK(fault == t + "element 1: expected -3.40282e+38 to 3.40282e+38, got 1e+300");
  for (const std::string& fault : {fault_of(2, 2, true), unfit(3, 1)})
    CHECK(fault == t + "element 3: expected a finite number, got inf");
  for (const std::string& fault : {fault_of(2, 3, false), unfit(2, 3)})
    CHECK(fault == t + "expected a range within its 4 elements, got 3 from 2");
}

TEST_CASE("files without data", "[io][reader]") {
  CHECK(read<float>(file_of("F32", "[0]", {})).empty());
  CHECK(read<float>(file_of("F32", "[3,0]", {})).empty());
  const Bytes empty = file_of("F32", "[0,4611686018427387904]", {});
  CHECK(SafetensorsReader(empty, "f").read_matrix<float>("t", 0, Index{1} << 62).rows() == 0);
  const Bytes none = file_of("{}");
  CHECK(SafetensorsReader(none, "f").names().empty());
}

TEST_CASE("a file cut short at any byte is refused, and so is one too long", "[io][reader]") {
  const Folder folder;
  const Bytes whole = small_file();
  CHECK(error_of([&] { SafetensorsReader(whole, "f"); }) == "no error");
  for (std::size_t size = 0; size <= whole.size() + 1; ++size) {
    if (size == whole.size()) continue;
    CAPTURE(size);
    Bytes bytes = whole;
    bytes.resize(size);
    const std::string header_size = std::to_string(whole.size() - 8 - 10);
    std::string reason;
    if (size < 8) {
      reason = "expected at least 8 bytes, got " + std::to_string(size);
    } else if (size < whole.size() - 10) {
      reason = "expected a header of at most " + std::to_string(size - 8) + " bytes, got " + header_size;
    } else if (size < whole.size()) {
      reason = "tensor \"n\": data_offsets: expected a range within the " +
               std::to_string(size + 10 - whole.size()) + " bytes of data, got [8, 10]";
    } else {
      reason = "bytes [10, 11] of the data belong to no tensor";
    }
    CHECK(error_of([&] { SafetensorsReader(bytes, "f"); }) == "meo: f: " + reason);

    const auto path = folder / "cut.safetensors";
    meo::test::save(path, bytes);
    CHECK(error_of([&] { SafetensorsReader{path}; }) == "meo: " + path.string() + ": " + reason);
  }
}

TEST_CASE("a file with any bit flipped is refused or read, and nothing else happens", "[io][reader]") {
  const Bytes whole = small_file();
  std::size_t refused = 0;
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes bytes = whole;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    try {
      const SafetensorsReader file(bytes, "f");
      for (const std::string& name : file.names()) file.read<double>(name);
    } catch (const meo::io::Error&) {
      ++refused;
    }
  }
  CHECK(refused > 4 * whole.size());
}

TEST_CASE("header lengths that lie", "[io][reader]") {
  const auto fault_of = [](std::uint64_t length, const Bytes& rest) {
    const Bytes bytes = little_endian(length) + rest;
    return error_of([&] { SafetensorsReader(bytes, "f"); });
  };
  CHECK(fault_of(0, {}) == "meo: f: the header does not begin with '{'");
  CHECK(fault_of(1, meo::test::to_bytes("{}")) ==
        "meo: f: the header is no JSON: parse error at line 1, column 2: syntax error while parsing object "
        "key - "
        "unexpected end of input; expected string literal");
  CHECK(fault_of(3, meo::test::to_bytes("{}")) == "meo: f: expected a header of at most 2 bytes, got 3");
  for (const std::uint64_t length : {~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63}) {
    CHECK(fault_of(length, meo::test::to_bytes("{}")) ==
          "meo: f: expected a header of at most 2 bytes, got " + std::to_string(length));
  }

  // A sparse file that does have so many bytes.
  const Folder folder;
  const auto path = folder / "huge.safetensors";
  meo::test::save(path, little_endian(100'000'001));
  std::filesystem::resize_file(path, 200'000'000);
  CHECK(error_of([&] { SafetensorsReader{path}; }) ==
        "meo: " + path.string() + ": expected a header of at most 100000000 bytes, got 100000001");
}

TEST_CASE("files that cannot be opened", "[io][reader]") {
  const Folder folder;
  const auto missing = folder / "missing.safetensors";
  CHECK(error_of([&] { SafetensorsReader{missing}; }) ==
        "meo: " + missing.string() + ": cannot be read: No such file or directory");
  const auto directory = folder / "directory";
  std::filesystem::create_directory(directory);
  CHECK(error_of([&] { SafetensorsReader{directory}; }) ==
        "meo: " + directory.string() + ": cannot be read: Is a directory");
}

TEST_CASE("paths of any characters are UTF-8 in messages", "[io][reader]") {
  const Folder folder;
  const auto path = folder / "" / std::filesystem::path(u8"\u03c0 \u65e5.safetensors");
  const std::string name = "\xcf\x80 \xe6\x97\xa5.safetensors";
  const auto missing = error_of([&] { SafetensorsReader{path}; });
  CHECK(missing.find(name + ": cannot be read: ") != std::string::npos);
  meo::test::save(path, small_file());
  const SafetensorsReader file(path);
  CHECK(file.read<int>("n") == std::vector<int>{7});
  CHECK(file.file().ends_with(name));
  // What is no text at all does not keep the reason from being said.
#if defined(_WIN32)
  const std::filesystem::path odd = L"a\xd800z";
  const std::string odd_name = "a?z";
#else
  const std::filesystem::path odd = "a\xffz";
  const std::string odd_name = "a\xffz";
#endif
  CHECK(error_of([&] { SafetensorsReader{folder / "" / odd}; }).find(odd_name + ": cannot be read: ") !=
        std::string::npos);
}

#if __has_include(<sys/resource.h>)
TEST_CASE("a file that the system does not open", "[io][reader]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  meo::test::save(path, small_file());
  // As if as many files were open as may be.
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit none{0, limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  const std::string error = error_of([&] { SafetensorsReader{path}; });
  setrlimit(RLIMIT_NOFILE, &limit);
  CHECK(error == "meo: " + path.string() + ": cannot be opened");
}
#endif

#if defined(__linux__)
TEST_CASE("a file that has fewer bytes than the system says", "[io][reader]") {
  // Linux gives its attributes the size of a page; this one is a digit and a line's end.
  const std::filesystem::path path = "/sys/kernel/fscaps";
  std::error_code error;
  if (const auto size = std::filesystem::file_size(path, error); error || size < 8) {
    WARN("there is no " + path.string() + " to read from");
    return;
  }
  CHECK(error_of([&] { SafetensorsReader{path}; }) == "meo: " + path.string() + ": cannot be read");
}
#endif

TEST_CASE("only what is asked for is read", "[io][reader]") {
  // A sparse file, whose first tensor fits into no memory.
  const Folder folder;
  const auto path = folder / "huge.safetensors";
  const std::string huge = "1099511627776", end = "1099511627784";
  const Bytes head =
      file_of(R"({"huge":{"dtype":"U8","shape":[)" + huge + R"(],"data_offsets":[0,)" + huge +
              R"(]},"small":{"dtype":"F32","shape":[2],"data_offsets":[)" + huge + ',' + end + "]}}");
  meo::test::save(path, head);
  std::error_code error;
  std::filesystem::resize_file(path, head.size() + std::stoull(huge), error);
  if (error) {
    WARN("there is no room for a sparse file of 1 TiB: " + error.message());
    return;
  }
  const Bytes small = bytes_of({0x3f800000, 0xc0000000}, 4);
  std::ofstream(path, std::ios::binary | std::ios::app)
      .write(reinterpret_cast<const char*>(small.data()), static_cast<std::streamsize>(small.size()));
  const SafetensorsReader file(path);
  CHECK(file.read<float>("small") == std::vector<float>{1, -2});
  CHECK(file.read<int>("huge", Index{1} << 39, 3) == std::vector<int>{0, 0, 0});
}

TEST_CASE("a file that becomes shorter while it is open", "[io][reader]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  meo::test::save(path, small_file());
  const SafetensorsReader file(path);
  std::array<int, 1> out{5};
  file.read<int>("n", out);
  CHECK(out[0] == 7);

  out[0] = 5;
  std::filesystem::resize_file(path, small_file().size() - 1);
  CHECK(error_of([&] { file.read<int>("n", out); }) ==
        "meo: " + path.string() + ": tensor \"n\": its data cannot be read any more");
  CHECK(out[0] == 5);
  // What is still there can be read, also after an error.
  CHECK(file.read<float>("w") == std::vector<float>{1, -2});
}

TEST_CASE("a reader is copied and moved", "[io][reader]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  meo::test::save(path, small_file());
  SafetensorsReader first(path);
  const SafetensorsReader copy = first;
  const SafetensorsReader moved = std::move(first);
  CHECK(copy.read<float>("w") == std::vector<float>{1, -2});
  CHECK(moved.read<float>("w") == std::vector<float>{1, -2});
  CHECK(moved.file() == path.string());
}

TEST_CASE("several threads read from one file", "[io][reader]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  constexpr std::uint64_t count = 20000;
  Bytes data;
  for (std::uint64_t i = 0; i < 2 * count; ++i) {
    const Bytes number = little_endian(i);
    data.insert(data.end(), number.begin(), number.end());
  }
  meo::test::save(path, file_of(R"({"a":{"dtype":"U64","shape":[20000],"data_offsets":[0,160000]},)"
                                R"("b":{"dtype":"U64","shape":[20000],"data_offsets":[160000,320000]}})",
                                data));
  const SafetensorsReader file(path);
  const std::vector<std::uint64_t> expected[] = {file.read<std::uint64_t>("a"),
                                                 file.read<std::uint64_t>("b")};
  CHECK(expected[0].back() == count - 1);
  CHECK(expected[1].back() == 2 * count - 1);
  std::array<std::size_t, 4> wrong{};
  std::latch start(wrong.size());
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      start.arrive_and_wait();
      const SafetensorsReader copy = file;
      for (int repeat = 0; repeat < 150; ++repeat) {
        wrong[t] += (t < 2 ? file : copy).read<std::uint64_t>(t % 2 == 0 ? "a" : "b") != expected[t % 2];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::array<std::size_t, 4>{});
}

// Beside a reader of the tests' own: the header as a JSON tree, the numbers by memcpy.
TEST_CASE("the golden files are read, every tensor to the last bit", "[io][reader][golden]") {
  const auto paths = meo::test::golden_files();
  CHECK(paths.size() == 100);
  std::size_t tensors = 0;
  for (const auto& path : paths) {
    CAPTURE(path.string());
    const SafetensorsReader file(path);
    const Bytes bytes = meo::test::load_bytes(path);
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i)
      length = length << 8 | std::to_integer<std::uint64_t>(bytes[static_cast<std::size_t>(i)]);
    const std::byte* const data = bytes.data() + 8 + length;
    const auto header = nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data() + 8),
                                              reinterpret_cast<const char*>(data));
    CHECK(file.metadata() == header.at("__metadata__").get<std::map<std::string, std::string>>());
    CHECK(file.names().size() == header.size() - 1);
    for (const std::string& name : file.names()) {
      ++tensors;
      CAPTURE(name);
      const auto& tensor = header.at(name);
      CHECK(file.info(name).shape == tensor.at("shape").get<std::vector<Index>>());
      CHECK(to_string(file.info(name).dtype) == tensor.at("dtype").get<std::string>());
      const auto same_bits = [&]<class S>(S) {
        const auto values = file.read<S>(name);
        const auto begin = tensor.at("data_offsets").at(0).get<std::size_t>();
        const auto end = tensor.at("data_offsets").at(1).get<std::size_t>();
        return values.size() * sizeof(S) == end - begin &&
               std::memcmp(values.data(), data + begin, end - begin) == 0;
      };
      CHECK((tensor.at("dtype") == "F64" ? same_bits(double{}) : same_bits(float{})));
      const auto values = file.read<long double>(name);
      CHECK(std::all_of(values.begin(), values.end(), [](long double v) { return std::isfinite(v); }));
    }
  }
  CHECK(tensors == 2692);
}

}  // namespace safetensors_reader_test
}  // namespace
