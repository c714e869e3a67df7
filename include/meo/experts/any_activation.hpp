#pragma once

/// One of the library's activations, chosen at run time: where a file names it, a block for each would be
/// compiled.

#include <optional>
#include <string_view>

#include <meo/experts/activation.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// As an Activation of FeedForward, equal to the one it stands for to the bit.
class AnyActivation {
 public:
  /// Which activation it is; each is the struct of its name.
  enum class Kind { relu, gelu, gelu_tanh, silu, identity };

  /// One of that kind.
  AnyActivation(Kind kind) : kind_(kind) {}  // NOLINT: meant to convert

  /// By the name of its kind, as "gelu_tanh"; none for other names.
  static std::optional<AnyActivation> from_name(std::string_view name) {
    if (name == "relu") return Kind::relu;
    if (name == "gelu") return Kind::gelu;
    if (name == "gelu_tanh") return Kind::gelu_tanh;
    if (name == "silu") return Kind::silu;
    if (name == "identity") return Kind::identity;
    return std::nullopt;
  }

  /// Which one it is.
  Kind kind() const { return kind_; }

  /// The function that it stands for, and its derivative.
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return visit([&](const auto& f) { return f(x); });
  }
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    return visit([&](const auto& f) { return f.derivative(x); });
  }

  /// f(activation) for the activation that it stands for.
  template <class Function>
  decltype(auto) visit(const Function& f) const {
    switch (kind_) {
      case Kind::relu:
        return f(Relu());
      case Kind::gelu:
        return f(Gelu());
      case Kind::gelu_tanh:
        return f(GeluTanh());
      case Kind::silu:
        return f(Silu());
      case Kind::identity:
        break;
    }
    return f(Identity());
  }

 private:
  Kind kind_;
};

}  // namespace meo
