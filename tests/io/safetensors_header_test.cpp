#include <string>
#include <vector>

#include <meo/io/safetensors_reader.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

namespace {
namespace safetensors_header_test {

using meo::Index;
using meo::io::DType;
using meo::io::detail::parse_header;
using meo::test::error_of;

// What is wrong with a header before so many bytes of data.
std::string fault(const std::string& header, std::uint64_t data_size = 0) {
  return error_of([&] { parse_header("f", header, data_size); });
}

TEST_CASE("a header says name, type, shape and place of each tensor", "[io][header]") {
  const auto header = parse_header("f",
                                   R"({"b":{"shape":[2,0,5],"data_offsets":[8,8],"dtype":"U8"},
                                       "__metadata__":{"k":"v","":"é"},
                                       "a":{"dtype":"F32","data_offsets":[0,8],"shape":[1,2]},
                                       "":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}  )",
                                   16);
  CHECK(header.metadata == std::map<std::string, std::string>{{"k", "v"}, {"", "é"}});
  REQUIRE(header.tensors.size() == 3);
  const auto& a = header.tensors.at("a");
  CHECK(a.dtype == DType::F32);
  CHECK(a.dtype_name == "F32");
  CHECK(a.shape == std::vector<Index>{1, 2});
  CHECK(a.size == 2);
  CHECK(a.begin == 0);
  CHECK(a.end == 8);
  CHECK(header.tensors.at("b").size == 0);
  CHECK(header.tensors.at("").shape.empty());
  CHECK(header.tensors.at("").size == 1);

  CHECK(parse_header("f", "{}", 0).tensors.empty());
  CHECK(parse_header("f", R"({"__metadata__":{}})", 0).metadata.empty());

  const std::string tensor = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  for (const std::string& text :
       {R"({"__metadata__":null,)" + tensor + "}", "{" + tensor + R"(,"__metadata__":null})"}) {
    const auto without = parse_header("f", text, 1);
    CHECK(without.metadata.empty());
    REQUIRE(without.tensors.size() == 1);
    CHECK(without.tensors.at("a").size == 1);
  }
}

TEST_CASE("a type of a newer version of the format does not make the file unreadable", "[io][header]") {
  const auto header = parse_header("f",
                                   R"({"new":{"dtype":"F4","shape":[7],"data_offsets":[0,4]},
                                       "old":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}})",
                                   5);
  CHECK(header.tensors.at("new").dtype == DType::unknown);
  CHECK(header.tensors.at("new").dtype_name == "F4");
  CHECK(header.tensors.at("old").dtype == DType::U8);
}

TEST_CASE("headers that are no JSON", "[io][header]") {
  CHECK(fault("") == "meo: f: the header does not begin with '{'");
  CHECK(fault("[]") == "meo: f: the header does not begin with '{'");
  CHECK(fault(" {}") == "meo: f: the header does not begin with '{'");
  CHECK(fault("\xef\xbb\xbf{}") == "meo: f: the header does not begin with '{'");
  // Parsers of C strings take what is before the zero byte.
  CHECK(fault(std::string("{}\0", 3)) == "meo: f: the header is no JSON: it has a zero byte");
  CHECK(fault(std::string("{}\0{{{", 6)) == "meo: f: the header is no JSON: it has a zero byte");

  const std::string no_json = "meo: f: the header is no JSON: parse error at line 1, column ";
  for (const char* header : {"{",
                             "{}x",
                             "{}{}",
                             "{,}",
                             "{1:2}",
                             "{a:1}",
                             R"({"a")",
                             R"({"a":)",
                             R"({"a":{"dtype")",
                             "{}]",
                             R"({"a":{"dtype":"F32",}})",
                             R"({"a":{"shape":[1,]}})",
                             "{/**/}",
                             R"({"__metadata__":{"k":'v'}})",
                             R"({"__metadata__":{"k":tru}})",
                             "{\"a\x80\":{}}",
                             R"({"\ud800":{}})",
                             "{\"a\t\":{}}",
                             R"({"a":{"shape":[01]}})",
                             R"({"a":{"shape":[+1]}})",
                             R"({"a":{"shape":[NaN]}})"}) {
    CAPTURE(header);
    CHECK(fault(header).substr(0, no_json.size()) == no_json);
  }
  CHECK(fault(R"({"a":{"shape":[1e999]}})") ==
        "meo: f: the header is no JSON: number overflow parsing '1e999'");
}

TEST_CASE("headers of the wrong types", "[io][header]") {
  const std::string a = "meo: f: tensor \"a\": ";
  CHECK(fault(R"({"a":null})") == a + "expected an object, got null");
  CHECK(fault(R"({"a":true})") == a + "expected an object, got a boolean");
  CHECK(fault(R"({"a":1})") == a + "expected an object, got 1");
  CHECK(fault(R"({"a":-1})") == a + "expected an object, got -1");
  CHECK(fault(R"({"a":1.5})") == a + "expected an object, got 1.5");
  CHECK(fault(R"({"a":"x"})") == a + "expected an object, got a string");
  CHECK(fault(R"({"a":[]})") == a + "expected an object, got an array");

  CHECK(fault(R"({"a":{"dtype":null}})") == a + "dtype: expected a string, got null");
  CHECK(fault(R"({"a":{"dtype":false}})") == a + "dtype: expected a string, got a boolean");
  CHECK(fault(R"({"a":{"dtype":32}})") == a + "dtype: expected a string, got 32");
  CHECK(fault(R"({"a":{"dtype":["F32"]}})") == a + "dtype: expected a string, got an array");
  CHECK(fault(R"({"a":{"dtype":{}}})") == a + "dtype: expected a string, got an object");

  CHECK(fault(R"({"a":{"shape":null}})") == a + "shape: expected an array, got null");
  CHECK(fault(R"({"a":{"shape":2}})") == a + "shape: expected an array, got 2");
  CHECK(fault(R"({"a":{"shape":"[2]"}})") == a + "shape: expected an array, got a string");
  CHECK(fault(R"({"a":{"shape":{}}})") == a + "shape: expected an array, got an object");
  const std::string shape = a + "shape: expected integers from 0 to 9223372036854775807, got ";
  CHECK(fault(R"({"a":{"shape":[-1]}})") == shape + "-1");
  CHECK(fault(R"({"a":{"shape":[-0]}})") == shape + "0");
  CHECK(fault(R"({"a":{"shape":[1.0]}})") == shape + "1.0");
  CHECK(fault(R"({"a":{"shape":[1e3]}})") == shape + "1e3");
  CHECK(fault(R"({"a":{"shape":["1"]}})") == shape + "a string");
  CHECK(fault(R"({"a":{"shape":[null]}})") == shape + "null");
  CHECK(fault(R"({"a":{"shape":[[1]]}})") == shape + "an array");
  CHECK(fault(R"({"a":{"shape":[{}]}})") == shape + "an object");
  CHECK(fault(R"({"a":{"shape":[9223372036854775808]}})") == shape + "9223372036854775808");
  CHECK(fault(R"({"a":{"shape":[18446744073709551616]}})") == shape + "18446744073709551616");

  CHECK(fault(R"({"a":{"data_offsets":0}})") == a + "data_offsets: expected an array, got 0");
  CHECK(fault(R"({"a":{"data_offsets":{}}})") == a + "data_offsets: expected an array, got an object");
  const std::string offsets = a + "data_offsets: expected integers from 0 to 2^64 - 1, got ";
  CHECK(fault(R"({"a":{"data_offsets":[-8,0]}})") == offsets + "-8");
  CHECK(fault(R"({"a":{"data_offsets":[0,8.0]}})") == offsets + "8.0");
  CHECK(fault(R"({"a":{"data_offsets":["0",8]}})") == offsets + "a string");
  CHECK(fault(R"({"a":{"data_offsets":[[0,8]]}})") == offsets + "an array");
  CHECK(fault(R"({"a":{"data_offsets":[0,18446744073709551616]}})") == offsets + "18446744073709551616");
  CHECK(fault(R"({"a":{"data_offsets":[]}})") == a + "data_offsets: expected 2 integers, got []");
  CHECK(fault(R"({"a":{"data_offsets":[8]}})") == a + "data_offsets: expected 2 integers, got [8]");
  CHECK(fault(R"({"a":{"data_offsets":[0,4,8]}})") == a + "data_offsets: expected 2 integers, got [0, 4, 8]");

  CHECK(fault(R"({"__metadata__":null})") == "no error");
  CHECK(fault(R"({"__metadata__":null,"a":null})") == a + "expected an object, got null");
  CHECK(fault(R"({"__metadata__":{},"a":null})") == a + "expected an object, got null");
  CHECK(fault(R"({"a":{"data_offsets":null}})") == a + "data_offsets: expected an array, got null");
  CHECK(fault(R"({"a":{"data_offsets":[0,null]}})") ==
        a + "data_offsets: expected integers from 0 to 2^64 - 1, got null");
  CHECK(fault(R"({"__metadata__":"k"})") == "meo: f: __metadata__: expected an object, got a string");
  CHECK(fault(R"({"__metadata__":["k"]})") == "meo: f: __metadata__: expected an object, got an array");
  const std::string metadata = "meo: f: __metadata__: \"k\": expected a string, got ";
  CHECK(fault(R"({"__metadata__":{"k":null}})") == metadata + "null");
  CHECK(fault(R"({"__metadata__":{"k":1}})") == metadata + "1");
  CHECK(fault(R"({"__metadata__":{"k":true}})") == metadata + "a boolean");
  CHECK(fault(R"({"__metadata__":{"k":["v"]}})") == metadata + "an array");
  CHECK(fault(R"({"__metadata__":{"k":{"l":"v"}}})") == metadata + "an object");
}

TEST_CASE("headers with keys that are missing, unknown or there twice", "[io][header]") {
  const std::string a = "meo: f: tensor \"a\": ";
  CHECK(fault(R"({"a":{}})") == a + R"(the key "dtype" is missing)");
  CHECK(fault(R"({"a":{"dtype":"F32","data_offsets":[0,0]}})") == a + R"(the key "shape" is missing)");
  CHECK(fault(R"({"a":{"dtype":"F32","shape":[0]}})") == a + R"(the key "data_offsets" is missing)");
  // Whatever their values are, and in whatever depth.
  for (const char* value :
       {"null", "true", "0", "-1.5", R"("x")", "[0]", "{}", R"({"dtype":"F32"})", "[[{}],null]"}) {
    CAPTURE(value);
    const std::string stride = R"("stride":)" + std::string(value);
    const std::string known = R"("dtype":"F32","shape":[0],"data_offsets":[0,0])";
    CHECK(fault(R"({"a":{)" + stride + "," + known + "}}") == a + R"(unknown key "stride")");
    CHECK(fault(R"({"a":{)" + known + "," + stride + "}}") == a + R"(unknown key "stride")");
  }
  CHECK(fault(R"({"a":{"dtype":"F32","dtype":"F32"}})") == a + R"(the key "dtype" comes twice)");
  CHECK(fault(R"({"a":{"shape":[],"shape":[]}})") == a + R"(the key "shape" comes twice)");
  CHECK(fault(R"({"a":{"data_offsets":[0,0],"data_offsets":[0,0]}})") ==
        a + R"(the key "data_offsets" comes twice)");
  const std::string tensor = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  CHECK(fault("{" + tensor + "}") == "no error");
  CHECK(fault("{" + tensor + "," + tensor + "}") == a + "the name comes twice");
  CHECK(fault("{" + tensor + R"(,"\u0061":{}})") == a + "the name comes twice");
  CHECK(fault(R"({"__metadata__":{"k":"v","k":"v"}})") == R"(meo: f: __metadata__: the key "k" comes twice)");
  for (const std::string first : {"{}", "null"}) {
    for (const std::string second : {"{}", "null"}) {
      CHECK(fault(R"({"__metadata__":)" + first + R"(,"__metadata__":)" + second + "}") ==
            "meo: f: __metadata__: the name comes twice");
    }
  }
}

TEST_CASE("headers whose offsets lie", "[io][header]") {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  const std::string a = "meo: f: tensor \"a\": data_offsets: ";
  const std::string within = a + "expected a range within the 8 bytes of data, got ";
  CHECK(fault(one("F32", "[2]", "[0,8]"), 8) == "no error");
  CHECK(fault(one("F32", "[2]", "[8,0]"), 8) == within + "[8, 0]");
  CHECK(fault(one("F32", "[2]", "[4,12]"), 8) == within + "[4, 12]");
  CHECK(fault(one("F32", "[0]", "[9,9]"), 8) == within + "[9, 9]");
  CHECK(fault(one("F8", "[16]", "[0,16]"), 8) == within + "[0, 16]");
  CHECK(fault(one("F32", "[2]", "[18446744073709551612,18446744073709551615]"), 8) ==
        within + "[18446744073709551612, 18446744073709551615]");

  CHECK(fault(one("F32", "[3]", "[0,8]"), 8) == a + "expected 3 elements of 4 bytes for F32 [3], got [0, 8]");
  CHECK(fault(one("F32", "[1]", "[0,8]"), 8) == a + "expected 1 elements of 4 bytes for F32 [1], got [0, 8]");
  CHECK(fault(one("F64", "[]", "[0,7]"), 7) == a + "expected 1 elements of 8 bytes for F64 [], got [0, 7]");
  CHECK(fault(one("F64", "[]", "[0,9]"), 9) == a + "expected 1 elements of 8 bytes for F64 [], got [0, 9]");
  CHECK(fault(one("F32", "[2,0]", "[0,8]"), 8) ==
        a + "expected 0 elements of 4 bytes for F32 [2, 0], got [0, 8]");
  // 2^62 elements of 4 bytes are 0 bytes modulo 2^64.
  CHECK(fault(one("F32", "[4611686018427387904]", "[0,0]")) ==
        a + "expected 4611686018427387904 elements of 4 bytes for F32 [4611686018427387904], got [0, 0]");

  // 2^32 · 2^32 is 0 modulo 2^64.
  CHECK(fault(one("U8", "[4294967296,4294967296]", "[0,0]")) ==
        "meo: f: tensor \"a\": shape [4294967296, 4294967296] has more elements than can be counted");
  CHECK(fault(one("U8", "[4294967296,4294967296,0]", "[0,0]")) ==
        "meo: f: tensor \"a\": shape [4294967296, 4294967296, 0] has more elements than can be counted");
  CHECK(fault(one("U8", "[0,4294967296,4294967296]", "[0,0]")) == "no error");
}

TEST_CASE("headers whose tensors overlap or leave holes", "[io][header]") {
  const auto two = [](const std::string& first, const std::string& second) {
    const auto bytes = [](const std::string& name, const std::string& offsets) {
      return "\"" + name + R"(":{"dtype":"F9","shape":[1],"data_offsets":)" + offsets + "}";
    };
    return "{" + bytes("a", first) + "," + bytes("b", second) + "}";
  };
  CHECK(fault(two("[0,4]", "[4,8]"), 8) == "no error");
  CHECK(fault(two("[4,8]", "[0,4]"), 8) == "no error");
  CHECK(fault(two("[0,8]", "[8,8]"), 8) == "no error");
  CHECK(fault(two("[0,0]", "[0,8]"), 8) == "no error");
  CHECK(fault(two("[0,8]", "[0,0]"), 8) == "no error");

  CHECK(fault(two("[0,5]", "[4,8]"), 8) ==
        "meo: f: tensor \"b\": data_offsets: [4, 8] overlap [0, 5] of tensor \"a\"");
  CHECK(fault(two("[4,8]", "[0,5]"), 8) ==
        "meo: f: tensor \"a\": data_offsets: [4, 8] overlap [0, 5] of tensor \"b\"");
  CHECK(fault(two("[0,8]", "[0,8]"), 8) ==
        "meo: f: tensor \"b\": data_offsets: [0, 8] overlap [0, 8] of tensor \"a\"");
  CHECK(fault(two("[0,8]", "[2,4]"), 8) ==
        "meo: f: tensor \"b\": data_offsets: [2, 4] overlap [0, 8] of tensor \"a\"");
  CHECK(fault(two("[0,8]", "[4,4]"), 8) ==
        "meo: f: tensor \"b\": data_offsets: [4, 4] overlap [0, 8] of tensor \"a\"");

  CHECK(fault(two("[1,4]", "[4,8]"), 8) == "meo: f: bytes [0, 1] of the data belong to no tensor");
  CHECK(fault(two("[0,3]", "[4,8]"), 8) == "meo: f: bytes [3, 4] of the data belong to no tensor");
  CHECK(fault(two("[0,4]", "[4,7]"), 8) == "meo: f: bytes [7, 8] of the data belong to no tensor");
  CHECK(fault("{}", 1) == "meo: f: bytes [0, 1] of the data belong to no tensor");
}

TEST_CASE("deep nesting costs no stack", "[io][header]") {
  const std::string deep(2'000'000, '[');
  CHECK(fault("{\"a\":" + deep) == "meo: f: tensor \"a\": expected an object, got an array");
  CHECK(fault("{\"a\":{\"shape\":" + deep) ==
        "meo: f: tensor \"a\": shape: expected integers from 0 to 9223372036854775807, got an array");
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  CHECK(fault(objects) == "meo: f: tensor \"a\": unknown key \"a\"");
  CHECK(fault("{\"__metadata__\":" + objects) ==
        "meo: f: __metadata__: \"a\": expected a string, got an object");
}

TEST_CASE("names of any content can be printed", "[io][header]") {
  CHECK(fault(R"({"a\u0000\"\n":1})") == R"(meo: f: tensor "a\u0000\"\n": expected an object, got 1)");
  CHECK(fault(R"({"é":1})") == R"(meo: f: tensor "é": expected an object, got 1)");
  CHECK(std::string(meo::io::Error("f", "\xff", "is odd").what()) ==
        "meo: f: tensor \"\xef\xbf\xbd\": is odd");
  CHECK(std::string(meo::io::Error("", "a", "is odd").what()) == "meo: tensor \"a\": is odd");
}

}  // namespace safetensors_header_test
}  // namespace
