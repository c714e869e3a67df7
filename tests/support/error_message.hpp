#pragma once

/// Checks of exceptions: their exact type and what their message says.

#include <exception>
#include <initializer_list>
#include <string>
#include <typeinfo>

namespace meo::test {

/// Empty when f throws an Exception, of that very type, whose message has all of `parts`; else what is wrong.
template <class Exception, class Function>
std::string error_lacks(Function&& f, std::initializer_list<std::string> parts) {
  try {
    f();
  } catch (const std::exception& error) {
    const std::string message = error.what();
    if (typeid(error) != typeid(Exception)) return "another type of exception: " + message;
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) return "no '" + part + "' in: " + message;
    }
    return "";
  }
  return "no exception";
}

}  // namespace meo::test
