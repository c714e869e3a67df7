#pragma once

/// Files that are replaced whole or not at all.
///
/// What is written goes to a file beside the old one, from there to the disk, and then gets the old one's
/// name: who opens that finds the old content or all of the new, also after a crash.

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <meo/abi.hpp>
#include <meo/compiled.hpp>
#include <meo/io/error.hpp>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <share.h>

#include <sys/stat.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace meo::inline MEO_ABI::io {

namespace detail {

// What the systems name differently. Each gives a negative number, and sets errno, if it fails.

/// Descriptor of a new file, open for writing; fails if there is anything of that name, be it a link.
inline int create_file(const std::filesystem::path& path) {
#if defined(_WIN32)
  int descriptor = -1;
  _wsopen_s(&descriptor, path.c_str(), _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY | _O_NOINHERIT, _SH_DENYNO,
            _S_IREAD | _S_IWRITE);
  return descriptor;
#else
  return ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
#endif
}

/// Descriptor of a file that is there, open for writing; its bytes stay.
inline int open_to_write(const std::filesystem::path& path) {
#if defined(_WIN32)
  int descriptor = -1;
  _wsopen_s(&descriptor, path.c_str(), _O_WRONLY | _O_BINARY | _O_NOINHERIT, _SH_DENYNO,
            _S_IREAD | _S_IWRITE);
  return descriptor;
#else
  return ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
#endif
}

/// What is written next goes to so many bytes from the beginning.
inline int seek(int descriptor, std::uint64_t place) {
#if defined(_WIN32)
  return _lseeki64(descriptor, static_cast<std::int64_t>(place), SEEK_SET) < 0 ? -1 : 0;
#else
  const auto offset = static_cast<::off_t>(place);
  if (offset < 0 || static_cast<std::uint64_t>(offset) != place) {
    errno = EFBIG;
    return -1;
  }
  return ::lseek(descriptor, offset, SEEK_SET) < 0 ? -1 : 0;
#endif
}

/// Returns how many of the bytes it has written.
inline std::ptrdiff_t write_some(int descriptor, std::span<const std::byte> bytes) {
  const std::size_t count = (std::min)(bytes.size(), std::size_t{1} << 30);  // systems refuse 2 GiB and more
#if defined(_WIN32)
  return _write(descriptor, bytes.data(), static_cast<unsigned>(count));
#else
  return ::write(descriptor, bytes.data(), count);
#endif
}

inline int write_to_disk(int descriptor) {
#if defined(_WIN32)
  return _commit(descriptor);
#else
  return ::fsync(descriptor);
#endif
}

inline int close_file(int descriptor) {
#if defined(_WIN32)
  return _close(descriptor);
#else
  return ::close(descriptor);
#endif
}

/// Writes to the disk which files have which names in a folder. Does nothing where that cannot be asked for:
/// on Windows, for a folder that may not be read, on file systems without it.
inline int write_names_to_disk([[maybe_unused]] const std::filesystem::path& folder) {
#if defined(_WIN32)
  return 0;
#else
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return 0;
  const int result = write_to_disk(descriptor);
  const int error = errno;
  close_file(descriptor);
  errno = error;
  return result == 0 || error == EINVAL ? 0 : -1;
#endif
}

/// A new file for the place of another, which it takes when it is complete. Gone with the object if that
/// never comes; a program that is killed on the way leaves it.
class OutputFile {
 public:
  /// Throws Error unless there is a regular file at the path, or nothing, and a file can be created beside
  /// it. Links are followed to where they lead, be there a file or not.
  explicit OutputFile(const std::filesystem::path& path);

  ~OutputFile();

  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Throws Error if not all can be written.
  void write(std::span<const std::byte> bytes);

  /// The new file, which others may write to as well until it is committed.
  const std::filesystem::path& partial() const { return partial_; }

  /// Takes the place of the old file, with its permissions. Throws Error, and has then replaced it only if it
  /// says so.
  void commit();

 private:
  OutputFile(std::string file, std::filesystem::path target);

  static std::error_code last_error() { return {errno, std::generic_category()}; }

  [[noreturn]] void fail(const char* what, std::error_code why) const;

  std::string file_;
  std::filesystem::path target_, partial_;
  int descriptor_ = -1;
};

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE OutputFile::OutputFile(const std::filesystem::path& path) : OutputFile(in_utf8(path), path) {
  std::error_code error;
  const auto old = std::filesystem::status(target_, error);
  if (is_regular_file(old) && old.permissions() != std::filesystem::status(partial_, error).permissions()) {
    std::filesystem::permissions(partial_, old.permissions(), error);
    if (error) fail("cannot be given the permissions of the old file", error);
  }
}

MEO_IO_INLINE OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close_file(descriptor_);
  std::error_code ignored;
  if (!partial_.empty()) std::filesystem::remove(partial_, ignored);
}

MEO_IO_INLINE void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::ptrdiff_t written = write_some(descriptor_, bytes);
    if (written >= 0) bytes = bytes.subspan(static_cast<std::size_t>(written));
    else if (errno != EINTR) fail("cannot be written", last_error());
  }
}

MEO_IO_INLINE void OutputFile::commit() {
  if (write_to_disk(descriptor_) < 0) fail("cannot be written to the disk", last_error());
  if (close_file(std::exchange(descriptor_, -1)) < 0) fail("cannot be written", last_error());
  std::error_code error;
  std::filesystem::rename(partial_, target_, error);
  if (error) fail("cannot be replaced", error);
  partial_.clear();
  if (write_names_to_disk(target_.parent_path()) < 0) {
    fail("has been replaced, but its name cannot be written to the disk", last_error());
  }
}

MEO_IO_INLINE OutputFile::OutputFile(std::string file, std::filesystem::path target)
    : file_(std::move(file)) {
  std::error_code error;
  const auto status = std::filesystem::status(target, error);
  if (status.type() == std::filesystem::file_type::none) fail("cannot be written", error);
  if (exists(status) && !is_regular_file(status)) throw Error(file_, "expected a regular file");
  // Now no link leads in a circle.
  while (is_symlink(std::filesystem::symlink_status(target, error))) {
    target = target.parent_path() / std::filesystem::read_symlink(target, error);
    if (error) fail("cannot be written", error);
  }
  if (target.filename().empty()) throw Error(file_, "expected the name of a file");
  target_ = std::move(target);

  // A name of its own, so that whoever writes the same file at the same time, or left such a file behind,
  // does not matter.
  auto number = static_cast<unsigned>(std::chrono::steady_clock::now().time_since_epoch().count());
  do {
    partial_ = target_;
    partial_ += text_of({".partial-", number++});
    descriptor_ = create_file(partial_);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) fail("no file can be created beside it", last_error());
}

MEO_IO_INLINE void OutputFile::fail(const char* what, std::error_code why) const {
  throw Error(file_, text_of({what, ": ", why.message()}));
}

#endif

}  // namespace detail

/// A file that is there already, and is written to at places of the caller's choice: by several processes at
/// the same time, if each has places of its own.
class PlacedOutput {
 public:
  /// Throws Error unless the file can be opened for writing.
  explicit PlacedOutput(const std::filesystem::path& path);
  ~PlacedOutput();
  PlacedOutput(const PlacedOutput&) = delete;
  PlacedOutput& operator=(const PlacedOutput&) = delete;

  /// The file's name as messages have it.
  const std::string& file() const { return file_; }

  /// From byte number `place` on; what lies between places that were written to is zero. Throws Error if not
  /// all can be written.
  void write(std::uint64_t place, std::span<const std::byte> bytes);

  /// To the disk; nothing can be written after it. Throws Error if it cannot.
  void close();

 private:
  [[noreturn]] void fail(const char* what) const;

  std::string file_;
  int descriptor_ = -1;
};

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE PlacedOutput::PlacedOutput(const std::filesystem::path& path)
    : file_(detail::in_utf8(path)), descriptor_(detail::open_to_write(path)) {
  if (descriptor_ < 0) fail("cannot be opened for writing");
}

MEO_IO_INLINE PlacedOutput::~PlacedOutput() {
  if (descriptor_ >= 0) detail::close_file(descriptor_);
}

MEO_IO_INLINE void PlacedOutput::write(std::uint64_t place, std::span<const std::byte> bytes) {
  if (detail::seek(descriptor_, place) < 0) fail("cannot be written");
  while (!bytes.empty()) {
    const std::ptrdiff_t written = detail::write_some(descriptor_, bytes);
    if (written >= 0) bytes = bytes.subspan(static_cast<std::size_t>(written));
    else if (errno != EINTR) fail("cannot be written");
  }
}

MEO_IO_INLINE void PlacedOutput::close() {
  if (detail::write_to_disk(descriptor_) < 0) fail("cannot be written to the disk");
  if (detail::close_file(std::exchange(descriptor_, -1)) < 0) fail("cannot be written");
}

MEO_IO_INLINE void PlacedOutput::fail(const char* what) const {
  const std::error_code why(errno, std::generic_category());
  throw Error(file_, detail::text_of({what, ": ", why.message()}));
}

#endif

/// Throws Error unless a file can be written at the path: where the folder is missing or not writable, where
/// a folder or a device is, …; for programs that write only after a long time. Leaves everything as it was,
/// for which a file beside is created and removed. Does not know how much room the disk will have.
inline void require_writable(const std::filesystem::path& path) { const detail::OutputFile probe(path); }

/// Replaces the file, or creates it, whole or not at all, as SafetensorsWriter::write does: for what stands
/// beside a checkpoint, as a config. Throws Error if it cannot.
inline void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  detail::OutputFile file(path);
  file.write(bytes);
  file.commit();
}

}  // namespace meo::io
