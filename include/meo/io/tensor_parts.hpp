#pragma once

/// The tensors that a layer or a block has in a file, each as rows of numbers that are read from the layer
/// and written to it piece by piece.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/linear.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io::detail {

/// Refers to the layer, which has to outlive it.
template <class Scalar>
class TensorPart {
 public:
  using Read = std::function<void(Index row, Index col, std::span<Scalar> values)>;
  using Write = std::function<void(Index row, Index col, std::span<const Scalar> values)>;

  /// write: none for a layer that is const.
  TensorPart(std::string name, std::vector<Index> shape, Index cols, Read read, Write write);

  const std::string& name() const { return name_; }
  const std::vector<Index>& shape() const { return shape_; }
  Index size() const {
    Index product = 1;
    for (const Index length : shape_) product *= length;
    return product;
  }

  /// values.size() values from place `first` on, in row-major order.
  void read(Index first, std::span<Scalar> values) const;
  void write(Index first, std::span<const Scalar> values) const;

 private:
  template <class Value, class Function>
  void for_rows(Index first, std::span<Value> values, const Function& f) const {
    while (!values.empty()) {
      const auto count =
          static_cast<std::size_t>((std::min)(cols_ - first % cols_, static_cast<Index>(values.size())));
      f(first / cols_, first % cols_, values.first(count));
      values = values.subspan(count);
      first += static_cast<Index>(count);
    }
  }

  std::string name_;
  std::vector<Index> shape_;
  Index cols_;
  Read read_;
  Write write_;
};

template <class Scalar>
TensorPart<Scalar>::TensorPart(std::string name, std::vector<Index> shape, Index cols, Read read, Write write)
    : name_(std::move(name)),
      shape_(std::move(shape)),
      cols_(cols),
      read_(std::move(read)),
      write_(std::move(write)) {}

template <class Scalar>
void TensorPart<Scalar>::read(Index first, std::span<Scalar> values) const {
  for_rows(first, values, read_);
}

template <class Scalar>
void TensorPart<Scalar>::write(Index first, std::span<const Scalar> values) const {
  for_rows(first, values, write_);
}

/// Makes TensorParts of the parts that a visit of a layer names. stacks_experts: all experts are one tensor.
template <class Scalar>
class TensorPartMaker {
 public:
  TensorPartMaker(std::string prefix, bool stacks_experts)
      : prefix_(std::move(prefix)), stacks_experts_(stacks_experts) {}

  /// W (out × in) and b under a projection's name.
  template <class LinearType>
  requires std::same_as<std::remove_const_t<LinearType>, Linear<Scalar>>
  void operator()(std::string_view name, LinearType& linear);

  /// in × out.
  template <class LinearType>
  void operator()(std::string_view name, const TurnedWeight<LinearType>& turned);

  /// experts.i.dense. for each expert, or weight (N × out × in) and bias (N × out) beside `experts`.
  template <class Bank>
  requires std::same_as<std::remove_const_t<Bank>, ExpertBank<Scalar>>
  void operator()(std::string_view name, Bank& bank);

  std::vector<TensorPart<Scalar>>& parts() { return parts_; }

 private:
  struct Reading {
    template <class Bank>
    static void row(Bank& bank, Index expert, Index out, Index first, std::span<Scalar> values) {
      bank.read_row(expert, out, first, values);
    }
    template <class Bank>
    static void bias(Bank& bank, Index expert, Index first, std::span<Scalar> values) {
      bank.read_bias(expert, first, values);
    }
  };
  struct Writing {
    template <class Bank>
    static void row(Bank& bank, Index expert, Index out, Index first, std::span<const Scalar> values) {
      bank.write_row(expert, out, first, values);
    }
    template <class Bank>
    static void bias(Bank& bank, Index expert, Index first, std::span<const Scalar> values) {
      bank.write_bias(expert, first, values);
    }
  };

  template <class Bank>
  void add_expert(const std::string& name, Bank& bank, Index expert);

  /// access(bank, row, col, values, Reading or Writing): reads or writes a piece of a row of the tensor.
  template <class Bank, class Access>
  void add(const std::string& name, std::vector<Index> shape, Index cols, Bank& bank, const Access& access);

  std::string prefix_;
  bool stacks_experts_;
  std::vector<TensorPart<Scalar>> parts_;
};

template <class Scalar>
template <class LinearType>
requires std::same_as<std::remove_const_t<LinearType>, Linear<Scalar>>
void TensorPartMaker<Scalar>::operator()(std::string_view name, LinearType& linear) {
  add_expert(std::string(name) + ".", linear.bank(), 0);
}

template <class Scalar>
template <class LinearType>
void TensorPartMaker<Scalar>::operator()(std::string_view name, const TurnedWeight<LinearType>& turned) {
  auto& bank = turned.linear().bank();
  const Index in = turned.in_features(), out = turned.out_features();
  add(std::string(name), {in, out}, out, bank, [](auto& of, Index row, Index col, auto values, auto access) {
    for (std::size_t i = 0; i < values.size(); ++i)
      access.row(of, 0, col + static_cast<Index>(i), row, values.subspan(i, 1));
  });
}

template <class Scalar>
template <class Bank>
requires std::same_as<std::remove_const_t<Bank>, ExpertBank<Scalar>>
void TensorPartMaker<Scalar>::operator()(std::string_view name, Bank& bank) {
  const Index experts = bank.num_experts(), out = bank.out_features(), in = bank.in_features();
  if (!stacks_experts_) {
    for (Index expert = 0; expert < experts; ++expert)
      add_expert(std::string(name) + "." + std::to_string(expert) + ".dense.", bank, expert);
    return;
  }
  const std::string beside(name.substr(0, name.size() - std::string_view("experts").size()));
  add(beside + "weight", {experts, out, in}, in, bank,
      [out](auto& of, Index row, Index col, auto values, auto access) {
        access.row(of, row / out, row % out, col, values);
      });
  if (!bank.has_bias()) return;
  add(beside + "bias", {experts, out}, out, bank,
      [](auto& of, Index row, Index col, auto values, auto access) { access.bias(of, row, col, values); });
}

template <class Scalar>
template <class Bank>
void TensorPartMaker<Scalar>::add_expert(const std::string& name, Bank& bank, Index expert) {
  const Index out = bank.out_features(), in = bank.in_features();
  add(name + "weight", {out, in}, in, bank,
      [expert](auto& of, Index row, Index col, auto values, auto access) {
        access.row(of, expert, row, col, values);
      });
  if (!bank.has_bias()) return;
  add(name + "bias", {out}, out, bank, [expert](auto& of, Index, Index col, auto values, auto access) {
    access.bias(of, expert, col, values);
  });
}

template <class Scalar>
template <class Bank, class Access>
void TensorPartMaker<Scalar>::add(const std::string& name, std::vector<Index> shape, Index cols, Bank& bank,
                                  const Access& access) {
  typename TensorPart<Scalar>::Write write;
  if constexpr (!std::is_const_v<Bank>) {
    write = [&bank, access](Index row, Index col, std::span<const Scalar> values) {
      access(bank, row, col, values, Writing());
    };
  }
  parts_.emplace_back(
      prefix_ + name, std::move(shape), cols,
      [&bank, access](Index row, Index col, std::span<Scalar> values) {
        access(bank, row, col, values, Reading());
      },
      std::move(write));
}

/// Of a MoeLayer, a MeoLayer or a block; names begin with `prefix`.
template <class Layer>
std::vector<TensorPart<typename Layer::Scalar>> tensor_parts(Layer& layer, std::string_view prefix,
                                                             bool stacks_experts) {
  TensorPartMaker<typename Layer::Scalar> maker{std::string(prefix), stacks_experts};
  layer.visit([&](std::string_view name, auto&& part) { maker(name, part); });
  return std::move(maker.parts());
}

#define MEO_INSTANCES(instance, Scalar)                                                                     \
  instance class TensorPart<Scalar>;                                                                        \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view, Linear<Scalar>&);                     \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view, const Linear<Scalar>&);               \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view, const TurnedWeight<Linear<Scalar>>&); \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view,                                       \
                                                    const TurnedWeight<const Linear<Scalar>>&);             \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view, ExpertBank<Scalar>&);                 \
  instance void TensorPartMaker<Scalar>::operator()(std::string_view, const ExpertBank<Scalar>&);
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::io::detail
