#pragma once

/// The header of a safetensors file, read strictly.
///
/// Source: the safetensors format, https://github.com/huggingface/safetensors#format. A file is the length of
/// the header (8 bytes, little-endian), the header in JSON, and the data:
///
///     {"__metadata__": {"key": "value", …}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0,
///     24]}, …}
///
/// Offsets count from the start of the data. Every byte of the data belongs to exactly one tensor. Metadata
/// may be null, as the format's own reader has it, which is as if there were none.
///
/// That reader passes over keys of a tensor that the format does not have; here they are refused. One that
/// says how the bytes are to be read, a scale or an order, must not be lost without a word, and notes have
/// their place in the metadata.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

/// What the header says of a tensor.
struct TensorInfo {
  DType dtype = DType::unknown;  ///< unknown: of a type that cannot be read
  std::string dtype_name;        ///< as in the file; tells unknown types apart
  std::vector<Index> shape;      ///< row-major; without any dimension the tensor has one element
  Index size = 1;                ///< number of elements, the product of the dimensions
  std::uint64_t begin = 0;       ///< its first byte in the data
  std::uint64_t end = 0;         ///< the one after its last
};

namespace detail {

inline constexpr std::uint64_t max_header_size = 100'000'000;  // the limit of the format's own reader
inline constexpr std::string_view metadata_key = "__metadata__";

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::map<std::string, TensorInfo, std::less<>> tensors;
};

template <class Number>
std::string in_brackets(const std::vector<Number>& numbers) {
  std::string text = "[";
  for (const Number number : numbers) text += text_of({text.size() > 1 ? ", " : "", number});
  return text += ']';
}

/// The product of the dimensions, if they are not negative and it is an Index. Formed from left to right as
/// in the format's own reader: a zero does not save a product that has overflowed before it.
MEO_IO_INLINE std::optional<Index> element_count(const std::vector<Index>& shape);

/// text: the header without its length; data_size: bytes that follow it in the file. Throws Error.
MEO_IO_INLINE SafetensorsHeader parse_header(const std::string& file, std::string_view text,
                                             std::uint64_t data_size);

}  // namespace detail

}  // namespace meo::io
