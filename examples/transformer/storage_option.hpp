#pragma once

/// The option --storage: what experts are stored as.

#include <string>

#include "command_line.hpp"
#include "model/small_storage.hpp"

namespace transformer {

/// Throws UsageError for a text that is none.
inline const Storage* storage_of(const std::string& text) {
  std::string all;
  for (const Storage* storage : small_storages()) {
    if (text == storage->name()) return storage;
    if (!all.empty()) all += storage == small_storages().back() ? " or " : ", ";
    all += storage->name();
  }
  throw UsageError("--storage: expected " + all + ", got '" + text + "'");
}

}  // namespace transformer
