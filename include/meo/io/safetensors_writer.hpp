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
#include <functional>
#include <limits>
#include <map>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <meo/compiled.hpp>
#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>
#include <meo/io/safetensors_header.hpp>
#include <meo/types.hpp>

#if defined(MEO_DEFINES_IO)
#include <nlohmann/json.hpp>
#endif

namespace meo::inline MEO_ABI::io {

namespace detail {

/// JSON is written in UTF-8 only.
MEO_IO_INLINE bool is_utf8(const std::string& text);

/// What comes before the data: the header's length, and the header with spaces up to a multiple of 8 bytes,
/// which align the data.
MEO_IO_INLINE std::vector<std::byte> file_head(std::string_view file, std::string header);

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE bool is_utf8(const std::string& text) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

MEO_IO_INLINE std::vector<std::byte> file_head(std::string_view file, std::string header) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > max_header_size) {
    throw Error(file,
                text_of({"expected a header of at most ", max_header_size, " bytes, got ", header.size()}));
  }
  std::vector<std::byte> bytes(sizeof(std::uint64_t) + header.size());
  store(static_cast<std::uint64_t>(header.size()), bytes.data());
  const auto text = std::as_bytes(std::span(header));
  std::copy(text.begin(), text.end(), bytes.begin() + sizeof(std::uint64_t));
  return bytes;
}

#endif

}  // namespace detail

/// Collects tensors and writes them as one file. Holds a copy of everything added, in the bytes of the file,
/// but for what is deferred.
class SafetensorsWriter {
 public:
  /// The most elements that are read at a time of what is deferred.
  static constexpr Index deferred_elements = 4096;

  /// Replaces the value that the key has had.
  void set_metadata(const std::string& key, const std::string& value);

  /// values: in row-major order, as many as the shape has, each of which the type holds; floats are rounded
  /// to it.
  template <std::ranges::contiguous_range Values>
  requires Element<std::ranges::range_value_t<Values>>
  void add(const std::string& name, const std::vector<Index>& shape, const Values& values,
           DType dtype = dtype_of<std::ranges::range_value_t<Values>>) {
    add_values(name, shape, std::span(std::ranges::data(values), std::ranges::size(values)), dtype);
  }

  /// A matrix's values in row-major order, in that shape.
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

  /// A tensor whose values are read when the file is written, at each write() and bytes() anew: read(first,
  /// values) has to fill all of `values` with the elements from number `first` on, in row-major order. It is
  /// asked for pieces of at most deferred_elements in ascending order, from the first to the last of the
  /// tensor. What it refers to has to live, and to stay as it is, until the last of them.
  ///
  /// Values that the type does not hold are an Error of write() and bytes(); what read throws, they throw.
  template <Element S>
  void add_deferred(const std::string& name, const std::vector<Index>& shape,
                    std::function<void(Index first, std::span<S> values)> read, DType dtype = dtype_of<S>);

  /// The whole file.
  std::vector<std::byte> bytes() const;

  /// Writes a file beside it, path.partial-N (which stays if the program is killed), to the disk and then
  /// gives it the path's name: a failure leaves what was there, or says that it has been replaced. A symbolic
  /// link is followed, and the file that it leads to replaced, or created. The new file gets the permissions
  /// of the old one, be that read-only; owner and further hard links it does not get. Windows replaces no
  /// file that somebody has open, be it a SafetensorsReader.
  void write(const std::filesystem::path& path) const;

  /// What comes before the data in the file; for those who write it in parts, as the next does.
  std::vector<std::byte> head() const { return header("", in_order()); }

  /// Calls visit(first, count) for elements, from number `first` in row-major order on.
  using VisitElements = std::function<void(Index first, Index count)>;

  /// Writes a part of what comes after the head to where it lies in the file, and nothing else: for several
  /// processes that write one file, each with a writer to which it has added the same tensors. elements(name,
  /// visit): has to visit those elements of the tensor that are to be written. What is deferred is read for
  /// these alone.
  void write_elements(
      PlacedOutput& file,
      const std::function<void(const std::string& name, const VisitElements& visit)>& elements) const;

 private:
  using Sink = std::function<void(std::span<const std::byte>)>;

  struct Tensor {
    DType dtype;
    std::vector<Index> shape;
    std::uint64_t size;  // in bytes
    Index elements() const { return static_cast<Index>(size / size_of(dtype)); }
    std::function<void(std::string_view file, Index first, Index count, const Sink&)> write;
  };
  using Entry = std::pair<const std::string, Tensor>;

  /// Throws unless there can be a tensor of that name and type.
  void check_new(const std::string& name, DType dtype) const;

  template <class S>
  void add_values(const std::string& name, const std::vector<Index>& shape, std::span<const S> values,
                  DType dtype);

  /// What turns values, of which the first is element `first`, into bytes of the tensor. Throws if the type
  /// does not hold them, at once if it holds only integers and S is none.
  template <class S>
  static auto encoder(const std::string& name, DType dtype);

  /// Wide elements first, so that each lies aligned.
  std::vector<const Entry*> in_order() const;

  std::vector<std::byte> header(std::string_view file, const std::vector<const Entry*>& entries) const;

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

template <Element S>
void SafetensorsWriter::add_deferred(const std::string& name, const std::vector<Index>& shape,
                                     std::function<void(Index first, std::span<S> values)> read,
                                     DType dtype) {
  check_new(name, dtype);
  const auto size = detail::element_count(shape);
  constexpr Index most = (std::numeric_limits<Index>::max)();
  if (!size || *size > most / static_cast<Index>(size_of(dtype))) {
    throw Error(
        "", name,
        detail::text_of({"expected a shape of at most ", most, " bytes, got ", detail::in_brackets(shape)}));
  }
  const auto encode = encoder<S>(name, dtype);
  const auto write = [=](std::string_view file, Index first, Index count, const Sink& sink) {
    std::vector<S> values;
    std::vector<std::byte> bytes;
    for (const Index end = first + count; first < end; first += deferred_elements) {
      values.resize(static_cast<std::size_t>((std::min)(deferred_elements, end - first)));
      bytes.resize(values.size() * size_of(dtype));
      read(first, values);
      encode(file, first, values, bytes.data());
      sink(bytes);
    }
  };
  tensors_.emplace(name, Tensor{dtype, shape, static_cast<std::uint64_t>(*size) * size_of(dtype), write});
}

template <class S>
void SafetensorsWriter::add_values(const std::string& name, const std::vector<Index>& shape,
                                   std::span<const S> values, DType dtype) {
  check_new(name, dtype);
  const auto size = detail::element_count(shape);
  if (!size || std::cmp_not_equal(*size, values.size())) {
    throw Error("", name,
                detail::text_of({"expected the elements of shape ", detail::in_brackets(shape), ", got ",
                                 values.size()}));
  }
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  encoder<S>(name, dtype)("", 0, values, bytes.data());
  const std::uint64_t bytes_size = bytes.size();
  tensors_.emplace(name, Tensor{dtype, shape, bytes_size,
                                [bytes = std::move(bytes), dtype](std::string_view, Index first, Index count,
                                                                  const Sink& sink) {
                                  const std::size_t width = size_of(dtype);
                                  sink(std::span(bytes).subspan(static_cast<std::size_t>(first) * width,
                                                                static_cast<std::size_t>(count) * width));
                                }});
}

template <class S>
auto SafetensorsWriter::encoder(const std::string& name, DType dtype) {
  const auto write = detail::writer_of<S>(dtype);
  if (write == nullptr)
    throw Error("", name, detail::text_of({"expected integers for ", to_string(dtype), ", got floats"}));
  return [=](std::string_view file, Index first, std::span<const S> values, std::byte* bytes) {
    const std::size_t good = write(values, bytes);
    if constexpr (Integer<S>) {
      if (good < values.size()) {
        throw Error(file, name,
                    detail::text_of({"element ", static_cast<std::size_t>(first) + good, ": expected ",
                                     detail::range_of(dtype), ", got ", std::to_string(values[good])}));
      }
    }
  };
}

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE void SafetensorsWriter::set_metadata(const std::string& key, const std::string& value) {
  if (!detail::is_utf8(key) || !detail::is_utf8(value)) {
    throw Error("", detail::text_of({"metadata ", detail::in_quotes(key), ": expected UTF-8"}));
  }
  metadata_[key] = value;
}

MEO_IO_INLINE std::vector<std::byte> SafetensorsWriter::bytes() const {
  const std::vector<const Entry*> entries = in_order();
  std::vector<std::byte> bytes = header("", entries);
  for (const Entry* entry : entries) {
    entry->second.write("", 0, entry->second.elements(), [&](std::span<const std::byte> piece) {
      bytes.resize(bytes.size() + piece.size());
      std::copy(piece.begin(), piece.end(), bytes.end() - static_cast<std::ptrdiff_t>(piece.size()));
    });
  }
  return bytes;
}

MEO_IO_INLINE void SafetensorsWriter::write(const std::filesystem::path& path) const {
  const std::vector<const Entry*> entries = in_order();
  const std::string name = detail::in_utf8(path);
  const std::vector<std::byte> head = header(name, entries);
  detail::OutputFile file(path);
  file.write(head);
  for (const Entry* entry : entries) {
    entry->second.write(name, 0, entry->second.elements(),
                        [&](std::span<const std::byte> piece) { file.write(piece); });
  }
  file.commit();
}

MEO_IO_INLINE void SafetensorsWriter::write_elements(
    PlacedOutput& file,
    const std::function<void(const std::string& name, const VisitElements& visit)>& elements) const {
  const std::vector<const Entry*> entries = in_order();
  std::uint64_t begin = header(file.file(), entries).size();
  for (const Entry* entry : entries) {
    elements(entry->first, [&, &of = *entry](Index first, Index count) {
      const Index size = of.second.elements();
      if (first < 0 || count < 0 || first > size || count > size - first) {
        throw Error(file.file(), of.first,
                    detail::text_of(
                        {"expected a range within its ", size, " elements, got ", count, " from ", first}));
      }
      std::uint64_t place = begin + static_cast<std::uint64_t>(first) * size_of(of.second.dtype);
      of.second.write(file.file(), first, count, [&](std::span<const std::byte> piece) {
        file.write(place, piece);
        place += piece.size();
      });
    });
    begin += entry->second.size;
  }
}

MEO_IO_INLINE void SafetensorsWriter::check_new(const std::string& name, DType dtype) const {
  const auto fail = [&](const std::string& reason) { throw Error("", name, reason); };
  if (!detail::is_utf8(name)) fail("expected a name in UTF-8");
  if (name == detail::metadata_key) fail("the name is reserved");
  if (tensors_.contains(name)) fail("the name has been added before");
  if (dtype == DType::unknown) fail("elements of unknown type cannot be written");
}

MEO_IO_INLINE auto SafetensorsWriter::in_order() const -> std::vector<const Entry*> {
  std::vector<const Entry*> entries;
  for (const std::size_t width : {8u, 4u, 2u, 1u}) {
    for (const Entry& entry : tensors_) {
      if (size_of(entry.second.dtype) == width) entries.push_back(&entry);
    }
  }
  return entries;
}

MEO_IO_INLINE std::vector<std::byte> SafetensorsWriter::header(
    std::string_view file, const std::vector<const Entry*>& entries) const {
  nlohmann::json json = nlohmann::json::object();
  if (!metadata_.empty()) json[std::string(detail::metadata_key)] = metadata_;
  std::uint64_t offset = 0;
  for (const Entry* entry : entries) {
    const auto& [name, tensor] = *entry;
    json[name] = {{"dtype", to_string(tensor.dtype)},
                  {"shape", tensor.shape},
                  {"data_offsets", {offset, offset + tensor.size}}};
    offset += tensor.size;
  }
  return detail::file_head(file, json.dump());
}

#endif

#define MEO_INSTANCES(instance, Scalar)                                                                \
  instance void SafetensorsWriter::add_deferred(const std::string&, const std::vector<Index>&,         \
                                                std::function<void(Index, std::span<Scalar>)>, DType); \
  instance void SafetensorsWriter::add_values(const std::string&, const std::vector<Index>&,           \
                                              std::span<const Scalar>, DType);
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::io
