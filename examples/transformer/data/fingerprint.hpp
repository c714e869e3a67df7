#pragma once

/// What tells data of a run from others', for checkpoints: the 64-bit FNV-1a hash (Fowler, Noll, Vo).

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

namespace transformer {

class Fingerprint {
 public:
  template <class Value>
  void add(std::span<const Value> values) {
    static_assert(std::is_arithmetic_v<Value>);
    for (const std::byte byte : std::as_bytes(values))
      hash_ = (hash_ ^ std::to_integer<std::uint64_t>(byte)) * prime;
  }

  std::string text() const { return std::to_string(hash_); }

 private:
  static constexpr std::uint64_t prime = 0x100000001b3;
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

}  // namespace transformer
