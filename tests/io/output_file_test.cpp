// Files that are replaced whole or not at all; what cannot be written is known before.

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <meo/io/output_file.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

#if __has_include(<sys/resource.h>)
#include <csignal>
#include <unistd.h>

#include <sys/resource.h>
#include <sys/stat.h>
#endif

#if defined(__linux__)
#include <sys/syscall.h>

// Stands in for the C library's. Without a test that listens it does the same.
static std::function<int(int)> on_fsync;
extern "C" int fsync(int descriptor) {
  return on_fsync ? on_fsync(descriptor) : static_cast<int>(syscall(SYS_fsync, descriptor));
}
#endif

namespace {
namespace output_file_test {

using meo::io::PlacedOutput;
using meo::io::require_writable;
using meo::io::detail::OutputFile;
using meo::test::Bytes;
using meo::test::error_of;
using meo::test::Folder;
using meo::test::load_text;
using meo::test::names_in;
using Names = std::vector<std::string>;
using Path = std::filesystem::path;

void save(const Path& path, const std::string& text) { meo::test::save(path, meo::test::to_bytes(text)); }

// Writes a text as a file of the library is written.
void write(const Path& path, const std::string& text) {
  meo::io::write_file(path, meo::test::to_bytes(text));
}

std::string write_fault(const Path& path) {
  return error_of([&] { write(path, "new"); });
}

TEST_CASE("a file gets what is written, when it is complete", "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "f";
  write(path, "");
  CHECK(load_text(path) == "");
  {
    OutputFile file(path);
    file.write(meo::test::to_bytes("first "));
    file.write({});
    file.write(meo::test::to_bytes("second"));
    CHECK(load_text(path) == "");
    file.commit();
    CHECK(load_text(path) == "first second");
  }
  { OutputFile(path).write(meo::test::to_bytes("given up")); }
  CHECK(load_text(path) == "first second");
  CHECK(names_in(folder) == Names{"f"});

  // In the current folder, without its name.
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder);
  write("f", "third");
  std::filesystem::current_path(before);
  CHECK(load_text(path) == "third");
}

TEST_CASE("several write to one file, each at places of its own", "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "f";
  OutputFile file(path);
  {
    PlacedOutput one(file.partial()), other(file.partial());
    one.write(6, meo::test::to_bytes("one"));
    other.write(0, meo::test::to_bytes("other"));
    one.write(11, meo::test::to_bytes("!"));
    CHECK(one.file() == file.partial().string());
    one.close();
    other.close();
    CHECK(error_of([&] { other.write(0, {}); }) ==
          "meo: " + file.partial().string() + ": cannot be written: Bad file descriptor");
  }
  CHECK(names_in(folder) == Names{file.partial().filename().string()});
  file.commit();
  CHECK(load_text(path) == std::string("other\0one\0\0!", 12));
  CHECK(error_of([&] { PlacedOutput(folder / "none"); }) ==
        "meo: " + (folder / "none").string() + ": cannot be opened for writing: No such file or directory");
  CHECK(names_in(folder) == Names{"f"});
}

TEST_CASE("two that write the same file do not meet", "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "f";
  OutputFile first(path), second(path);
  first.write(meo::test::to_bytes("one"));
  second.write(meo::test::to_bytes("two, longer"));
  first.commit();
  CHECK(load_text(path) == "one");
  second.commit();
  CHECK(load_text(path) == "two, longer");
  CHECK(names_in(folder) == Names{"f"});
}

TEST_CASE("what cannot be written is known before, and stays as it is", "[io][output_file]") {
  const Folder folder;
  save(folder / "file", "old");
  std::filesystem::create_directory(folder / "directory");
  const auto check = [&](const Path& path, const std::string& reason) {
    const std::string error = "meo: " + path.string() + (path.empty() ? "" : ": ") + reason;
    CHECK(error_of([&] { require_writable(path); }) == error);
    CHECK(write_fault(path) == error);
  };
  const std::string create = "no file can be created beside it: ";
  check(folder / "missing/f", create + "No such file or directory");
  check(folder / "directory", "expected a regular file");
  check(folder / "directory/", "expected a regular file");
  check(folder / "directory/..", "expected a regular file");
  check(folder / "new/", "expected the name of a file");
  check("", "expected the name of a file");
  CHECK(load_text(folder / "file") == "old");
  CHECK(names_in(folder) == Names{"directory", "file"});
#if !defined(_WIN32)
  check(folder / "file/f", create + "Not a directory");
  check(folder / std::string(300, 'f'), "cannot be written: File name too long");
  check(folder / std::string(250, 'f'), create + "File name too long");
  // In the place of a device, which a fault of the code would replace.
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  check(folder / "pipe", "expected a regular file");
  std::filesystem::create_symlink("pipe", folder / "to_pipe");
  check(folder / "to_pipe", "expected a regular file");
  std::filesystem::create_symlink("directory", folder / "to_directory");
  check(folder / "to_directory", "expected a regular file");
  std::filesystem::create_symlink("missing/f", folder / "to_missing");
  check(folder / "to_missing", create + "No such file or directory");
  std::filesystem::create_symlink("circle", folder / "circle");
  check(folder / "circle", "cannot be written: Too many levels of symbolic links");
  CHECK(std::filesystem::is_fifo(folder / "pipe"));
  CHECK(names_in(folder) ==
        Names{"circle", "directory", "file", "pipe", "to_directory", "to_missing", "to_pipe"});
#endif
}

TEST_CASE("looking whether a file can be written leaves no trace", "[io][output_file]") {
  const Folder folder;
  save(folder / "old", "old");
  const auto time = std::filesystem::last_write_time(folder / "old") - std::chrono::hours(1);
  std::filesystem::last_write_time(folder / "old", time);
  require_writable(folder / "old");
  require_writable(folder / "new");
  CHECK(names_in(folder) == Names{"old"});
  CHECK(load_text(folder / "old") == "old");
  CHECK(std::filesystem::last_write_time(folder / "old") == time);
}

TEST_CASE("a file whose place is taken on the way", "[io][output_file]") {
  const Folder folder;
  OutputFile file(folder / "f");
  std::filesystem::create_directories(folder / "f/g");
  const std::string error = error_of([&] { file.commit(); });
  CHECK(error.starts_with("meo: " + (folder / "f").string() + ": cannot be replaced: "));
  CHECK(std::filesystem::is_directory(folder / "f"));
}

#if !defined(_WIN32)
TEST_CASE("a file that is replaced keeps its permissions, a new one gets those of every new file",
          "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "f";
  using std::filesystem::perms;
  const auto permissions = [&] { return std::filesystem::status(path).permissions(); };
  for (const unsigned mask : {022u, 077u, 0u}) {
    std::filesystem::remove(path);
    const mode_t before = umask(mask);
    write(path, "new");
    umask(before);
    CHECK(permissions() == static_cast<perms>(0666 & ~mask));
  }
  for (const unsigned mode : {0600u, 0640u, 0444u, 0666u, 0755u, 0200u, 0u, 01644u}) {
    save(path, "old");
    std::filesystem::permissions(path, static_cast<perms>(mode));
    write(path, "new");
    CHECK(permissions() == static_cast<perms>(mode));
    std::filesystem::permissions(path, perms::owner_all);
    CHECK(load_text(path) == "new");
  }
  // Nobody else reads them before they are complete.
  save(path, "old");
  std::filesystem::permissions(path, perms::owner_read);
  const OutputFile file(path);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    CHECK(entry.status().permissions() == perms::owner_read);
  }
}

TEST_CASE("symbolic links are written through, hard links keep the old file", "[io][output_file]") {
  const Folder folder;
  const Path target = folder / "a/target", link = folder / "b/link";
  std::filesystem::create_directory(folder / "a");
  std::filesystem::create_directory(folder / "b");
  // Relative to the link's own folder, absolute, and through other links, one of them a folder's.
  std::filesystem::create_directory_symlink("../a", folder / "b/to_a");
  std::filesystem::create_symlink("../a/target", folder / "b/relative");
  for (const Path& to : {Path("../a/target"), target, Path("relative"), Path("to_a/target")}) {
    CAPTURE(to.string());
    std::filesystem::remove(link);
    std::filesystem::create_symlink(to, link);
    for (const bool exists : {true, false}) {  // where a link leads to nothing, what it names comes to be
      if (exists) save(target, "old");
      else std::filesystem::remove(target);
      require_writable(link);
      CHECK(std::filesystem::exists(target) == exists);
      write(link, "new");
      CHECK(load_text(target) == "new");
      CHECK(std::filesystem::is_symlink(link));
      CHECK(std::filesystem::read_symlink(link) == to);
      CHECK_FALSE(std::filesystem::is_symlink(target));
    }
    CHECK(names_in(folder / "a") == Names{"target"});
    CHECK(names_in(folder / "b") == Names{"link", "relative", "to_a"});
  }
  std::filesystem::permissions(target, std::filesystem::perms::owner_read);
  write(link, "newer");
  CHECK(std::filesystem::status(target).permissions() == std::filesystem::perms::owner_read);

  // A link whose folder is reached by a link: .. is the folder's, not the link's.
  std::filesystem::create_directories(folder / "a/deep");
  std::filesystem::create_directory_symlink("a/deep", folder / "shortcut");
  std::filesystem::create_symlink("../other", folder / "a/deep/up");
  write(folder / "shortcut/up", "up");
  CHECK(load_text(folder / "a/other") == "up");

  std::filesystem::create_hard_link(target, folder / "hard");
  write(target, "newest");
  CHECK(load_text(target) == "newest");
  CHECK(load_text(folder / "hard") == "newer");
}

TEST_CASE("a full disk leaves the old file", "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "f";
  save(path, "old");
  // As if the disk were full.
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{100, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string error = error_of([&] { write(path, std::string(101, 'x')); });
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  CHECK(error == "meo: " + path.string() + ": cannot be written: File too large");
  CHECK(load_text(path) == "old");
#if defined(__linux__)
  PlacedOutput full("/dev/full");
  CHECK(error_of([&] { full.write(7, meo::test::to_bytes("x")); }) ==
        "meo: /dev/full: cannot be written: No space left on device");
#endif
  CHECK(names_in(folder) == Names{"f"});
}
#endif

#if defined(__linux__)
TEST_CASE("all of a file is on the disk before it has its name, and then the name is", "[io][output_file]") {
  const Folder folder;
  const Path path = folder / "a/f";
  std::filesystem::create_directory(folder / "a");
  std::filesystem::create_symlink("a/f", folder / "link");
  save(path, "old");
  struct stat of_folder {};
  REQUIRE(stat((folder / "a").c_str(), &of_folder) == 0);
  const std::string new_text(100000, 'x');
  int failing_call = 0, error = 0;
  std::vector<std::string> calls;
  on_fsync = [&](int descriptor) {
    struct stat status {};
    fstat(descriptor, &status);
    if (S_ISREG(status.st_mode)) calls.push_back("file of " + std::to_string(status.st_size));
    else calls.push_back(status.st_ino == of_folder.st_ino ? "its folder" : "something else");
    calls.back() += load_text(path) == new_text ? ", new" : ", old";
    if (static_cast<int>(calls.size()) != failing_call) return 0;
    errno = error;
    return -1;
  };
  const auto fault = [&](int call, int with) {
    failing_call = call;
    error = with;
    calls.clear();
    save(path, "old");
    return error_of([&] { write(folder / "link", new_text); });
  };
  const std::string start = "meo: " + (folder / "link").string() + ": ";
  CHECK(fault(0, 0) == "no error");
  CHECK(calls == std::vector<std::string>{"file of 100000, old", "its folder, new"});
  CHECK(fault(1, EIO) == start + "cannot be written to the disk: Input/output error");
  CHECK(load_text(path) == "old");
  CHECK(fault(2, EIO) ==
        start + "has been replaced, but its name cannot be written to the disk: Input/output error");
  CHECK(load_text(path) == new_text);
  CHECK(fault(2, EINVAL) == "no error");  // file systems where folders are not written so
  CHECK(names_in(folder / "a") == Names{"f"});
  require_writable(path);
  on_fsync = nullptr;
}
#endif

}  // namespace output_file_test
}  // namespace
