#pragma once

/// Writes tensors to a safetensors file.
///
/// Floats are rounded to the type of the tensor, to nearest even. Integers are written as any integer type
/// that holds them, or as floats; floats are never written as integers. Every failure is an Error and leaves
/// the writer and an old file as they were.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/io/json_string.hpp>
#include <meo/io/output_file.hpp>
#include <meo/io/safetensors_header.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

namespace detail {

/// An object of JSON; the members' values are in JSON already.
inline std::string json_object(const std::map<std::string, std::string>& members) {
  std::string text;
  for (const auto& [key, value] : members) text += (text.empty() ? "" : ",") + in_quotes(key) + ":" + value;
  return "{" + text + "}";
}

/// What comes before the data: the header's length, and the header with spaces up to a multiple of 8 bytes,
/// which align the data.
inline std::vector<std::byte> file_head(std::string_view file, std::string header) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > max_header_size) {
    throw Error(file, "expected a header of at most " + std::to_string(max_header_size) + " bytes, got " +
                          std::to_string(header.size()));
  }
  std::vector<std::byte> bytes(sizeof(std::uint64_t) + header.size());
  store(static_cast<std::uint64_t>(header.size()), bytes.data());
  const auto text = std::as_bytes(std::span(header));
  std::copy(text.begin(), text.end(), bytes.begin() + sizeof(std::uint64_t));
  return bytes;
}

}  // namespace detail

/// Collects tensors and writes them as one file. Holds a copy of everything added, in the bytes of the file.
class SafetensorsWriter {
 public:
  /// Replaces the value that the key has had.
  void set_metadata(const std::string& key, const std::string& value) {
    if (!detail::is_utf8(key) || !detail::is_utf8(value)) {
      throw Error("", "metadata " + detail::in_quotes(key) + ": expected UTF-8");
    }
    metadata_[key] = value;
  }

  /// values: in row-major order, as many as the shape has, each of which the type holds; floats are rounded
  /// to it.
  template <std::ranges::contiguous_range Values>
  requires Element<std::ranges::range_value_t<Values>>
  void add(const std::string& name, const std::vector<Index>& shape, const Values& values,
           DType dtype = dtype_of<std::ranges::range_value_t<Values>>) {
    add_values(name, shape, std::span(std::ranges::data(values), std::ranges::size(values)), dtype);
  }

  template <class Derived>
  void add(const std::string& name, const std::vector<Index>& shape, const Eigen::MatrixBase<Derived>& matrix,
           DType dtype = dtype_of<typename Derived::Scalar>) {
    const Matrix<typename Derived::Scalar> values = matrix;
    add_values(name, shape, std::span(values.data(), static_cast<std::size_t>(values.size())), dtype);
  }

  /// In the shape of the matrix, one dimension for vectors.
  template <class Derived>
  void add(const std::string& name, const Eigen::MatrixBase<Derived>& matrix,
           DType dtype = dtype_of<typename Derived::Scalar>) {
    std::vector<Index> shape{matrix.rows(), matrix.cols()};
    if constexpr (Derived::IsVectorAtCompileTime) shape = {matrix.size()};
    add(name, shape, matrix, dtype);
  }

  /// The whole file.
  std::vector<std::byte> bytes() const {
    const std::vector<const Entry*> entries = in_order();
    std::vector<std::byte> bytes = header("", entries);
    for (const Entry* entry : entries) {
      bytes.insert(bytes.end(), entry->second.bytes.begin(), entry->second.bytes.end());
    }
    return bytes;
  }

  /// Writes a file beside it, path.partial-N (which stays if the program is killed), to the disk and then
  /// gives it the path's name: a failure leaves what was there, or says that it has been replaced. A symbolic
  /// link is followed, and the file that it leads to replaced, or created. The new file gets the permissions
  /// of the old one, be that read-only; owner and further hard links it does not get.
  void write(const std::filesystem::path& path) const {
    const std::vector<const Entry*> entries = in_order();
    const std::vector<std::byte> head = header(detail::in_utf8(path), entries);
    detail::OutputFile file(path);
    file.write(head);
    for (const Entry* entry : entries) file.write(entry->second.bytes);
    file.commit();
  }

 private:
  struct Tensor {
    DType dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;
  };
  using Entry = std::pair<const std::string, Tensor>;

  template <class S>
  void add_values(const std::string& name, const std::vector<Index>& shape, std::span<const S> values,
                  DType dtype) {
    const auto fail = [&](const std::string& reason) { throw Error("", name, reason); };
    if (!detail::is_utf8(name)) fail("expected a name in UTF-8");
    if (name == detail::metadata_key) fail("the name is reserved");
    if (tensors_.contains(name)) fail("the name has been added before");
    if (dtype == DType::unknown) fail("elements of unknown type cannot be written");
    const auto size = detail::element_count(shape);
    if (!size || std::cmp_not_equal(*size, values.size())) {
      fail("expected the elements of shape " + detail::in_brackets(shape) + ", got " +
           std::to_string(values.size()));
    }

    Tensor tensor{dtype, shape, std::vector<std::byte>(values.size() * size_of(dtype))};
    detail::with_format(dtype, [&]<class Format>(Format) {
      if constexpr (!Integer<S> && detail::HoldsIntegers<Format>) {
        fail("expected integers for " + std::string(to_string(dtype)) + ", got floats");
      } else {
        typename Format::Raw raw{};
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (!detail::write_number<Format>(values[i], raw)) {
            fail(detail::no_value<typename Format::Raw>(dtype, i, values[i]));
          }
          detail::store(raw, tensor.bytes.data() + i * sizeof(raw));
        }
      }
    });
    tensors_.emplace(name, std::move(tensor));
  }

  /// Wide elements first, so that each lies aligned.
  std::vector<const Entry*> in_order() const {
    std::vector<const Entry*> entries;
    for (const Entry& entry : tensors_) entries.push_back(&entry);
    std::stable_sort(entries.begin(), entries.end(), [](const Entry* left, const Entry* right) {
      return size_of(left->second.dtype) > size_of(right->second.dtype);
    });
    return entries;
  }

  std::vector<std::byte> header(std::string_view file, const std::vector<const Entry*>& entries) const {
    std::map<std::string, std::string> members;
    if (!metadata_.empty()) {
      std::map<std::string, std::string> metadata;
      for (const auto& [key, value] : metadata_) metadata[key] = detail::in_quotes(value);
      members[std::string(detail::metadata_key)] = detail::json_object(metadata);
    }
    std::uint64_t offset = 0;
    for (const Entry* entry : entries) {
      const auto& [name, tensor] = *entry;
      const std::uint64_t end = offset + tensor.bytes.size();
      members[name] =
          detail::json_object({{"data_offsets", detail::in_brackets<std::uint64_t>({offset, end}, ",")},
                               {"dtype", detail::in_quotes(to_string(tensor.dtype))},
                               {"shape", detail::in_brackets(tensor.shape, ",")}});
      offset = end;
    }
    return detail::file_head(file, detail::json_object(members));
  }

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace meo::io
