#pragma once

/// What reads the header of a safetensors file; the rules are in safetensors_header.hpp.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/abi.hpp>
#include <meo/compiled.hpp>
#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_header.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io::detail {

MEO_IO_INLINE std::optional<Index> element_count(const std::vector<Index>& shape) {
  Index count = 1;
  for (const Index dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (dimension > 0 && count > (std::numeric_limits<Index>::max)() / dimension) return std::nullopt;
    count *= dimension;
  }
  return count;
}

/// Fills a header from the events of a JSON parser. A tree would already have forgotten that a name came
/// twice; and whatever does not belong here, as deep nesting, is refused where it begins.
class HeaderParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderParser(const std::string& file, SafetensorsHeader& header) : file_(file), header_(header) {}

  bool null() override {
    if (place_ != Place::names || name_ != metadata_key) refuse({"null"});
    return true;
  }

  bool boolean(bool) override { refuse({"a boolean"}); }
  bool number_integer(number_integer_t value) override { refuse({value}); }
  bool number_float(number_float_t, const string_t& text) override { refuse({text}); }
  bool binary(binary_t&) override { refuse({"binary data"}); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape && std::in_range<Index>(value)) {
      tensor_.shape.push_back(static_cast<Index>(value));
    } else if (place_ == Place::data_offsets) {
      data_offsets_.push_back(value);
    } else {
      refuse({value});
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      header_.metadata[key_] = std::move(value);
    } else if (place_ == Place::tensor && key_ == "dtype") {
      tensor_.dtype = dtype_from_name(value);
      tensor_.dtype_name = std::move(value);
    } else {
      refuse({"a string"});
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::names;
    } else if (place_ == Place::names) {
      place_ = name_ == metadata_key ? Place::metadata : Place::tensor;
      tensor_ = {};
      data_offsets_.clear();
      has_key_ = {};
    } else {
      refuse({"an object"});
    }
    return true;
  }

  bool key(string_t& key) override {
    if (place_ == Place::names) {
      name_ = key;
      const bool seen =
          key == metadata_key ? std::exchange(has_metadata_, true) : header_.tensors.contains(key);
      if (seen) fail({"the name comes twice"});
    } else {
      key_ = key;
      if (place_ == Place::metadata ? header_.metadata.contains(key) : std::exchange(has_key(key), true)) {
        fail({"the key ", in_quotes(key), " comes twice"});
      }
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) {
      for (const std::string_view key : tensor_keys) {
        if (!has_key(key)) fail({"the key ", in_quotes(key), " is missing"});
      }
      header_.tensors[name_] = std::move(tensor_);
    }
    place_ = place_ == Place::names ? Place::outside : Place::names;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::tensor && key_ == "shape") {
      place_ = Place::shape;
    } else if (place_ == Place::tensor && key_ == "data_offsets") {
      place_ = Place::data_offsets;
    } else {
      refuse({"an array"});
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::shape) {
      const auto size = element_count(tensor_.shape);
      if (!size) fail({"shape ", in_brackets(tensor_.shape), " has more elements than can be counted"});
      tensor_.size = *size;
    } else {
      if (data_offsets_.size() != 2) {
        fail({"data_offsets: expected 2 integers, got ", in_brackets(data_offsets_)});
      }
      tensor_.begin = data_offsets_[0];
      tensor_.end = data_offsets_[1];
    }
    place_ = Place::tensor;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) override {
    const std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error at …"
    throw Error(file_, "the header is no JSON: " + std::string(what.substr(what.find(' ') + 1)));
  }

 private:
  enum class Place { outside, names, metadata, tensor, shape, data_offsets };

  std::string expected() const {
    switch (place_) {
      case Place::outside:
      case Place::names:
        break;
      case Place::metadata:
        return text_of({in_quotes(key_), ": expected a string"});
      case Place::tensor:
        return text_of({key_, key_ == "dtype" ? ": expected a string" : ": expected an array"});
      case Place::shape:
        return text_of({"shape: expected integers from 0 to ", (std::numeric_limits<Index>::max)()});
      case Place::data_offsets:
        return "data_offsets: expected integers from 0 to 2^64 - 1";
    }
    return "expected an object";
  }

  using Parts = std::initializer_list<meo::detail::MessagePart>;

  [[noreturn]] void refuse(Parts what) const { fail({expected(), ", got ", text_of(what)}); }

  [[noreturn]] void fail(Parts reason) const {
    const std::string text = text_of(reason);
    if (name_ == metadata_key) throw Error(file_, text_of({name_, ": ", text}));
    throw Error(file_, name_, text);
  }

  /// Whether the tensor has had this key of its own.
  bool& has_key(std::string_view key) {
    const auto known = std::find(tensor_keys.begin(), tensor_keys.end(), key);
    if (known == tensor_keys.end()) fail({"unknown key ", in_quotes(key)});
    return has_key_[static_cast<std::size_t>(known - tensor_keys.begin())];
  }

  static constexpr std::array<std::string_view, 3> tensor_keys{"dtype", "shape", "data_offsets"};

  const std::string& file_;
  SafetensorsHeader& header_;
  Place place_ = Place::outside;
  std::string name_;               // key of the outer object
  std::string key_;                // key of the inner object
  std::array<bool, 3> has_key_{};  // of tensor_keys, which have come
  bool has_metadata_ = false;
  TensorInfo tensor_;
  std::vector<std::uint64_t> data_offsets_;
};

/// Every tensor lies inside the data and has the bytes that its type and shape take (if the type is known);
/// together they cover the data without a hole or an overlap.
MEO_IO_INLINE void check_data(const std::string& file, const SafetensorsHeader& header,
                              std::uint64_t data_size) {
  using Entry = std::pair<const std::string, TensorInfo>;
  const auto offsets = [](const TensorInfo& tensor) {
    return in_brackets<std::uint64_t>({tensor.begin, tensor.end});
  };

  std::vector<const Entry*> in_order;
  for (const Entry& entry : header.tensors) {
    const auto& [name, tensor] = entry;
    if (tensor.begin > tensor.end || tensor.end > data_size) {
      throw Error(file, name,
                  text_of({"data_offsets: expected a range within the ", data_size, " bytes of data, got ",
                           offsets(tensor)}));
    }
    // Division, because the product of size and bytes may overflow.
    const std::uint64_t bytes = tensor.end - tensor.begin;
    const std::uint64_t element = size_of(tensor.dtype);
    if (element != 0 &&
        (bytes % element != 0 || bytes / element != static_cast<std::uint64_t>(tensor.size))) {
      throw Error(file, name,
                  text_of({"data_offsets: expected ", tensor.size, " elements of ", element, " bytes for ",
                           tensor.dtype_name, " ", in_brackets(tensor.shape), ", got ", offsets(tensor)}));
    }
    in_order.push_back(&entry);
  }

  std::sort(in_order.begin(), in_order.end(), [](const Entry* left, const Entry* right) {
    return std::pair(left->second.begin, left->second.end) <
           std::pair(right->second.begin, right->second.end);
  });
  const auto check_hole = [&](std::uint64_t begin, std::uint64_t end) {
    if (begin < end) {
      throw Error(file, text_of({"bytes ", in_brackets<std::uint64_t>({begin, end}),
                                 " of the data belong to no tensor"}));
    }
  };
  const Entry* previous = nullptr;
  for (const Entry* entry : in_order) {
    const std::uint64_t covered = previous == nullptr ? 0 : previous->second.end;
    check_hole(covered, entry->second.begin);
    if (entry->second.begin < covered) {
      throw Error(file, entry->first,
                  text_of({"data_offsets: ", offsets(entry->second), " overlap ", offsets(previous->second),
                           " of tensor ", in_quotes(previous->first)}));
    }
    previous = entry;
  }
  check_hole(previous == nullptr ? 0 : previous->second.end, data_size);
}

MEO_IO_INLINE SafetensorsHeader parse_header(const std::string& file, std::string_view text,
                                             std::uint64_t data_size) {
  if (!text.starts_with('{')) throw Error(file, "the header does not begin with '{'");
  // nlohmann::json takes a zero byte for the end of its input.
  if (text.find('\0') != text.npos) throw Error(file, "the header is no JSON: it has a zero byte");
  SafetensorsHeader header;
  HeaderParser parser(file, header);
  nlohmann::json::sax_parse(text, &parser);
  check_data(file, header, data_size);
  return header;
}

}  // namespace meo::io::detail
