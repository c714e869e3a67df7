#pragma once

/// Reads tensors from a safetensors file.
///
/// Floats become the scalar that is asked for, widened exactly or rounded as static_cast does. Integers
/// become any integer type that holds them, or floats; floats never become integers. Every failure is an
/// Error and leaves what was to be filled as it was.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/finite.hpp>
#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_header.hpp>
#include <meo/types.hpp>

#if defined(MEO_DEFINES_IO)
#include <meo/io/header_parser.hpp>
#endif

namespace meo::inline MEO_ABI::io {

/// Bytes of a tensor that are read and converted at a time: beyond a stream's buffer, within the L1 cache.
inline constexpr std::size_t read_bytes = 16384;

namespace detail {

/// The bytes of a file that stays open, or of somebody's memory. Several threads may read, also through
/// copies.
class ByteSource {
 public:
  explicit ByteSource(const std::filesystem::path& path);
  explicit ByteSource(std::span<const std::byte> memory) : memory_(memory), size_(memory.size()) {}

  std::uint64_t size() const { return size_; }

  /// False if the bytes are not there, because the file has become shorter or its medium fails.
  bool read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  struct File {
    std::ifstream stream;
    std::mutex mutex;
  };
  std::shared_ptr<File> file_;
  std::span<const std::byte> memory_;
  std::uint64_t size_ = 0;
};

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE ByteSource::ByteSource(const std::filesystem::path& path) : file_(std::make_shared<File>()) {
  std::error_code error;
  size_ = std::filesystem::file_size(path, error);
  if (error) throw Error(in_utf8(path), text_of({"cannot be read: ", error.message()}));
  file_->stream.open(path, std::ios::binary);
  if (!file_->stream) throw Error(in_utf8(path), "cannot be opened");
}

MEO_IO_INLINE bool ByteSource::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (file_ == nullptr) {
    const auto bytes = memory_.subspan(static_cast<std::size_t>(offset), out.size());
    std::copy(bytes.begin(), bytes.end(), out.begin());
    return true;
  }
  const std::lock_guard lock(file_->mutex);
  file_->stream.clear();
  file_->stream.seekg(static_cast<std::streamoff>(offset));
  file_->stream.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
  return file_->stream.good();
}

#endif

}  // namespace detail

/// A safetensors file, open for reading. The header is read and checked at once, tensors when they are asked
/// for. The file stays open as long as a copy of the reader lives. Const, and so safe to use from several
/// threads.
class SafetensorsReader {
 public:
  /// Reads the header of a file, and keeps the file open.
  explicit SafetensorsReader(const std::filesystem::path& path);

  /// Reads from memory that outlives the reader and its copies; name stands for the file in messages.
  SafetensorsReader(std::span<const std::byte> bytes, std::string name)
      : SafetensorsReader(detail::ByteSource(bytes), std::move(name)) {}
  SafetensorsReader(std::vector<std::byte>&& bytes, std::string name) = delete;

  /// The file's name as messages have it, and all metadata.
  const std::string& file() const { return file_; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// The value of a metadata key that has to be there.
  const std::string& metadata(const std::string& key) const;

  /// Names of all tensors in alphabetical order.
  std::vector<std::string> names() const;

  /// Whether there is such a tensor.
  bool contains(std::string_view name) const { return header_.tensors.contains(name); }

  /// Type and shape of a tensor that has to be there.
  const TensorInfo& info(std::string_view name) const;

  /// Throws unless the tensor is there, is of a type that can be read, and has this shape; then the file has
  /// as many elements.
  void check_shape(std::string_view name, const std::vector<Index>& expected) const;

  /// Throws unless the tensor is there, is of a type that can be read, and all its elements are finite and
  /// within what S holds; names the first that is not. Also with -ffast-math.
  template <FloatLike S = double>
  void check_finite(std::string_view name) const {
    check_finite<S>(name, 0, readable(name).size);
  }

  /// The same of `count` elements from `begin` on, in row-major order.
  template <FloatLike S = double>
  void check_finite(std::string_view name, Index begin, Index count) const {
    check_range(name, begin, count);
    const auto check = [&](Index first, std::span<const std::byte> bytes) {
      check_finite(name, first, bytes, detail::largest_finite<S>());
    };
    for_each_chunk(name, begin, count, std::ref(check));
  }

  /// Throws where read_matrix and its like would, without keeping what they would give: unless the tensor is
  /// there, has this shape, and all its elements can be read and are such as S holds. require_finite: as
  /// check_finite, too. Reads the tensor once.
  template <Element S>
  void check(std::string_view name, const std::vector<Index>& shape, bool require_finite = false) const;

  /// The same of `count` elements from `begin` on, of a tensor of any shape, which alone it reads.
  template <Element S>
  void check_elements(std::string_view name, Index begin, Index count, bool require_finite = false) const;

  /// All elements in row-major order. This and the other readers throw if the tensor is not there, has
  /// another shape or size than asked for, or holds what S cannot.
  template <Element S>
  std::vector<S> read(std::string_view name) const {
    return read<S>(name, 0, info(name).size);
  }

  /// `count` elements from `begin` on, in row-major order.
  template <Element S>
  std::vector<S> read(std::string_view name, Index begin, Index count) const;

  /// The same into memory of the caller, as many as that has. Takes no memory itself; an error leaves behind
  /// what came before it.
  template <Element S>
  void read_into(std::string_view name, Index begin, std::span<S> out) const;

  /// Into memory of the caller, which has to be as large as the tensor.
  template <Element S>
  void read(std::string_view name, std::span<S> out) const;

  /// A tensor of that shape, or of that size in one dimension.
  template <Element S>
  Matrix<S> read_matrix(std::string_view name, Index rows, Index cols) const;
  template <Element S>
  Vector<S> read_vector(std::string_view name, Index size) const;

 private:
  SafetensorsReader(detail::ByteSource source, std::string file);

  [[noreturn]] void fail(std::string_view name, std::initializer_list<meo::detail::MessagePart> reason) const;

  /// What is known of a tensor whose type is known. To be asked before memory is taken: of other types a file
  /// need not have the bytes that a shape speaks of.
  const TensorInfo& readable(std::string_view name) const;

  /// Throws unless the tensor can be read and has these elements.
  void check_range(std::string_view name, Index begin, Index count) const;

  /// bytes: those of the elements from `first` on.
  void check_finite(std::string_view name, Index first, std::span<const std::byte> bytes,
                    double largest) const;

  /// out: elements of the tensor, whose type is known, the first of them number `first`.
  template <Element S>
  void fill(std::string_view name, std::span<S> out, Index first = 0) const;

  /// Converts `count` elements from `first` on, piece by piece, to where place(number of the first, how many)
  /// says.
  template <Element S, class Place>
  void convert_each(std::string_view name, Index first, Index count, const Place& place,
                    bool require_finite = false) const;

  /// Calls visit(number of the first element, the bytes of some) until there have been `count` elements from
  /// `first` on.
  void for_each_chunk(std::string_view name, Index first, Index count,
                      const std::function<void(Index, std::span<const std::byte>)>& visit) const;

  detail::ByteSource source_;
  std::string file_;
  detail::SafetensorsHeader header_;
  std::uint64_t data_begin_ = 0;
};

template <Element S>
void SafetensorsReader::check(std::string_view name, const std::vector<Index>& shape,
                              bool require_finite) const {
  check_shape(name, shape);
  check_elements<S>(name, 0, info(name).size, require_finite);
}

template <Element S>
void SafetensorsReader::check_elements(std::string_view name, Index begin, Index count,
                                       bool require_finite) const {
  check_range(name, begin, count);
  std::vector<S> values;
  convert_each<S>(
      name, begin, count,
      [&](Index, std::size_t piece) {
        values.resize(piece);
        return std::span<S>(values);
      },
      require_finite);
}

template <Element S>
std::vector<S> SafetensorsReader::read(std::string_view name, Index begin, Index count) const {
  check_range(name, begin, count);
  std::vector<S> values(static_cast<std::size_t>(count));
  fill<S>(name, values, begin);
  return values;
}

template <Element S>
void SafetensorsReader::read_into(std::string_view name, Index begin, std::span<S> out) const {
  check_range(name, begin, static_cast<Index>(out.size()));
  fill<S>(name, out, begin);
}

template <Element S>
void SafetensorsReader::read(std::string_view name, std::span<S> out) const {
  if (std::cmp_not_equal(out.size(), info(name).size)) {
    fail(name, {"expected ", out.size(), " elements, got ", info(name).size});
  }
  // By way of a vector: an error in the middle must not leave half a tensor behind.
  const std::vector<S> values = read<S>(name);
  std::copy(values.begin(), values.end(), out.begin());
}

template <Element S>
Matrix<S> SafetensorsReader::read_matrix(std::string_view name, Index rows, Index cols) const {
  check_shape(name, {rows, cols});
  Matrix<S> matrix(rows, cols);
  fill<S>(name, {matrix.data(), static_cast<std::size_t>(matrix.size())});
  return matrix;
}

template <Element S>
Vector<S> SafetensorsReader::read_vector(std::string_view name, Index size) const {
  check_shape(name, {size});
  Vector<S> vector(size);
  fill<S>(name, {vector.data(), static_cast<std::size_t>(vector.size())});
  return vector;
}

template <Element S>
void SafetensorsReader::fill(std::string_view name, std::span<S> out, Index first) const {
  convert_each<S>(name, first, static_cast<Index>(out.size()), [&](Index begin, std::size_t count) {
    return out.subspan(static_cast<std::size_t>(begin - first), count);
  });
}

template <Element S, class Place>
void SafetensorsReader::convert_each(std::string_view name, Index first, Index count, const Place& place,
                                     bool require_finite) const {
  const TensorInfo& tensor = info(name);
  const auto read = detail::reader_of<S>(tensor.dtype);
  if (read == nullptr) fail(name, {"expected integers, got ", tensor.dtype_name});
  const auto convert = [&](Index begin, std::span<const std::byte> bytes) {
    if constexpr (!Integer<S>) {
      if (require_finite) check_finite(name, begin, bytes, detail::largest_finite<S>());
    }
    const std::size_t element_size = size_of(tensor.dtype);
    const std::span<S> values = place(begin, bytes.size() / element_size);
    const std::size_t good = read(bytes.data(), values);
    if (good == values.size()) return;
    const DType range = tensor.dtype == DType::BOOL ? DType::BOOL : dtype_of<S>;
    fail(name, {"element ", static_cast<std::size_t>(begin) + good, ": expected ", detail::range_of(range),
                ", got ", detail::integer_text(tensor.dtype, bytes.data() + good * element_size)});
  };
  for_each_chunk(name, first, count, std::ref(convert));
}

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE SafetensorsReader::SafetensorsReader(const std::filesystem::path& path)
    : SafetensorsReader(detail::ByteSource(path), detail::in_utf8(path)) {}

MEO_IO_INLINE const std::string& SafetensorsReader::metadata(const std::string& key) const {
  const auto entry = header_.metadata.find(key);
  if (entry == header_.metadata.end()) {
    throw Error(file_, detail::text_of({"expected the metadata to have ", detail::in_quotes(key)}));
  }
  return entry->second;
}

MEO_IO_INLINE std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : header_.tensors) names.push_back(name);
  return names;
}

MEO_IO_INLINE const TensorInfo& SafetensorsReader::info(std::string_view name) const {
  const auto tensor = header_.tensors.find(name);
  if (tensor == header_.tensors.end()) throw Error(file_, name, "is not in the file");
  return tensor->second;
}

MEO_IO_INLINE void SafetensorsReader::check_shape(std::string_view name,
                                                  const std::vector<Index>& expected) const {
  const std::vector<Index>& shape = readable(name).shape;
  if (shape != expected) {
    fail(name, {"expected shape ", detail::in_brackets(expected), ", got ", detail::in_brackets(shape)});
  }
}

MEO_IO_INLINE SafetensorsReader::SafetensorsReader(detail::ByteSource source, std::string file)
    : source_(std::move(source)), file_(std::move(file)) {
  constexpr std::uint64_t length_size = 8;
  if (source_.size() < length_size) {
    throw Error(file_, detail::text_of({"expected at least 8 bytes, got ", source_.size()}));
  }
  const auto read_at = [&](std::uint64_t offset, std::span<std::byte> out) {
    if (!source_.read(offset, out)) throw Error(file_, "cannot be read");
  };
  std::array<std::byte, length_size> length_bytes{};
  read_at(0, length_bytes);
  const auto length = detail::load<std::uint64_t>(length_bytes.data());
  const std::uint64_t limit = (std::min)(detail::max_header_size, source_.size() - length_size);
  if (length > limit) {
    throw Error(file_, detail::text_of({"expected a header of at most ", limit, " bytes, got ", length}));
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  read_at(length_size, std::as_writable_bytes(std::span(text)));
  data_begin_ = length_size + length;
  header_ = detail::parse_header(file_, text, source_.size() - data_begin_);
}

MEO_IO_INLINE void SafetensorsReader::fail(std::string_view name,
                                           std::initializer_list<meo::detail::MessagePart> reason) const {
  throw Error(file_, name, detail::text_of(reason));
}

MEO_IO_INLINE const TensorInfo& SafetensorsReader::readable(std::string_view name) const {
  const TensorInfo& tensor = info(name);
  if (tensor.dtype == DType::unknown) {
    fail(name, {"elements of type ", detail::in_quotes(tensor.dtype_name), " cannot be read"});
  }
  return tensor;
}

MEO_IO_INLINE void SafetensorsReader::check_range(std::string_view name, Index begin, Index count) const {
  const Index size = readable(name).size;
  if (begin < 0 || count < 0 || begin > size || count > size - begin) {
    fail(name, {"expected a range within its ", size, " elements, got ", count, " from ", begin});
  }
}

MEO_IO_INLINE void SafetensorsReader::check_finite(std::string_view name, Index first,
                                                   std::span<const std::byte> bytes, double largest) const {
  const auto unfit = detail::first_unfit(info(name).dtype, bytes, largest);
  if (!unfit) return;
  const auto& [place, number] = *unfit;
  const std::size_t element = static_cast<std::size_t>(first) + place;
  if (meo::detail::is_finite(number)) {
    fail(name, {"element ", element, ": expected ", -largest, " to ", largest, ", got ", number});
  }
  fail(name, {"element ", element, ": expected a finite number, got ", detail::text_of_not_finite(number)});
}

MEO_IO_INLINE void SafetensorsReader::for_each_chunk(
    std::string_view name, Index first, Index count,
    const std::function<void(Index, std::span<const std::byte>)>& visit) const {
  const TensorInfo& tensor = info(name);
  const std::size_t element_size = size_of(tensor.dtype);
  std::array<std::byte, read_bytes> buffer;
  for (const Index end = first + count; first < end;) {
    const std::size_t size = (std::min)(read_bytes / element_size, static_cast<std::size_t>(end - first));
    const auto bytes = std::span(buffer).first(size * element_size);
    if (!source_.read(data_begin_ + tensor.begin + static_cast<std::uint64_t>(first) * element_size, bytes)) {
      fail(name, {"its data cannot be read any more"});
    }
    visit(first, bytes);
    first += static_cast<Index>(size);
  }
}

#endif

#define MEO_INSTANCES(instance, Scalar)                                                                    \
  instance void SafetensorsReader::check<Scalar>(std::string_view, const std::vector<Index>&, bool) const; \
  instance void SafetensorsReader::check_elements<Scalar>(std::string_view, Index, Index, bool) const;     \
  instance std::vector<Scalar> SafetensorsReader::read<Scalar>(std::string_view, Index, Index) const;      \
  instance void SafetensorsReader::read_into(std::string_view, Index, std::span<Scalar>) const;            \
  instance void SafetensorsReader::read(std::string_view, std::span<Scalar>) const;                        \
  instance Matrix<Scalar> SafetensorsReader::read_matrix<Scalar>(std::string_view, Index, Index) const;    \
  instance Vector<Scalar> SafetensorsReader::read_vector<Scalar>(std::string_view, Index) const;
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::io
