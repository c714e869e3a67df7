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

namespace meo::inline MEO_ABI::io {

/// A tensor of a layer, or of anything that has rows of numbers. Refers to it, which has to outlive the part.
template <class Scalar>
class TensorPart {
 public:
  /// See the constructor.
  using Read = std::function<void(Index row, Index col, std::span<Scalar> values)>;
  using Write = std::function<void(Index row, Index col, std::span<const Scalar> values)>;

  /// cols: of a row; read, write: get and set values of a row from a column on, as many as there are in
  /// `values`. write: none for a layer that is const; load gives it whole rows.
  TensorPart(std::string name, std::vector<Index> shape, Index cols, Read read, Write write);

  /// As a file has it; the product of the shape is the size.
  const std::string& name() const { return name_; }
  const std::vector<Index>& shape() const { return shape_; }
  Index cols() const { return cols_; }
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

namespace detail {

/// Where the rows of a tensor lie in a bank: a row of the weight, turned or not, or all biases of an expert.
struct BankRows {
  enum class Kind { weights, turned_weight, biases };

  Kind kind;
  Index first_expert = 0;

  /// Reads or writes a piece of a row. access: Reading or Writing.
  template <class Bank, class Values, class Access>
  void access_row(Bank& bank, Index row, Index col, Values values, Access access) const {
    const Index out = bank.out_features();
    switch (kind) {
      case Kind::weights:
        return access.row(bank, first_expert + row / out, row % out, col, values);
      case Kind::turned_weight:
        for (std::size_t i = 0; i < values.size(); ++i)
          access.row(bank, first_expert, col + static_cast<Index>(i), row, values.subspan(i, 1));
        return;
      case Kind::biases:
        return access.bias(bank, first_expert + row, col, values);
    }
  }
};

/// Names the tensors of the parts that a visit of a layer names: calls take(name, shape, cols, bank, rows)
/// for one after another, of which each has rows of `cols` columns. stacks_experts: all experts are one
/// tensor, and the `num_shared` of them that are shared, the last ones, another.
template <class Scalar, class Take>
class TensorNamer {
 public:
  TensorNamer(std::string_view prefix, bool stacks_experts, Index num_shared, const Take& take)
      : prefix_(prefix), stacks_experts_(stacks_experts), num_shared_(num_shared), take_(take) {}

  /// W (out × in) and b under a projection's name.
  template <class LinearType>
  requires std::same_as<std::remove_const_t<LinearType>, Linear<Scalar>>
  void operator()(std::string_view name, LinearType& linear) const;

  /// in × out, and where there is a bias that under the name with .bias.
  template <class LinearType>
  void operator()(std::string_view name, const TurnedWeight<LinearType>& turned) const;

  /// Of one row.
  template <class LinearType>
  void operator()(std::string_view name, const TurnedBuffer<LinearType>& turned) const;

  /// experts.i.dense. for each expert, or weight (N × out × in) and bias (N × out) beside `experts`; for
  /// shared ones shared_experts.i.dense., or shared_weight and shared_bias.
  template <class Bank>
  requires std::same_as<std::remove_const_t<Bank>, ExpertBank<Scalar, typename Bank::Storage>>
  void operator()(std::string_view name, Bank& experts) const;

 private:
  /// `count` experts from `first` on, under `beside` and what is before their names.
  template <class Bank>
  void name_experts(const std::string& beside, const std::string& which, Bank& experts, Index first,
                    Index count) const;
  template <class Bank>
  void name_expert(const std::string& name, Bank& experts, Index expert) const;

  std::string prefix_;
  bool stacks_experts_;
  Index num_shared_;
  const Take& take_;
};

template <class Scalar, class Take>
template <class LinearType>
requires std::same_as<std::remove_const_t<LinearType>, Linear<Scalar>>
void TensorNamer<Scalar, Take>::operator()(std::string_view name, LinearType& linear) const {
  name_expert(std::string(name) + ".", linear.bank(), 0);
}

template <class Scalar, class Take>
template <class LinearType>
void TensorNamer<Scalar, Take>::operator()(std::string_view name,
                                           const TurnedWeight<LinearType>& turned) const {
  const Index in = turned.in_features(), out = turned.out_features();
  take_(prefix_ + std::string(name), {in, out}, out, turned.linear().bank(),
        BankRows{BankRows::Kind::turned_weight});
  if (turned.linear().has_bias()) {
    take_(prefix_ + std::string(name) + ".bias", {out}, out, turned.linear().bank(),
          BankRows{BankRows::Kind::biases});
  }
}

template <class Scalar, class Take>
template <class LinearType>
void TensorNamer<Scalar, Take>::operator()(std::string_view name,
                                           const TurnedBuffer<LinearType>& turned) const {
  const Index out = turned.out_features();
  take_(prefix_ + std::string(name), {out}, out, turned.linear().bank(),
        BankRows{BankRows::Kind::turned_weight});
}

template <class Scalar, class Take>
template <class Bank>
requires std::same_as<std::remove_const_t<Bank>, ExpertBank<Scalar, typename Bank::Storage>>
void TensorNamer<Scalar, Take>::operator()(std::string_view name, Bank& experts) const {
  const std::string beside(name.substr(0, name.size() - std::string_view("experts").size()));
  const Index routed = experts.num_experts() - num_shared_;
  name_experts(beside, "", experts, 0, routed);
  if (num_shared_ > 0) name_experts(beside, "shared_", experts, routed, num_shared_);
}

template <class Scalar, class Take>
template <class Bank>
void TensorNamer<Scalar, Take>::name_experts(const std::string& beside, const std::string& which,
                                             Bank& experts, Index first, Index count) const {
  const Index out = experts.out_features(), in = experts.in_features();
  if (!stacks_experts_) {
    for (Index i = 0; i < count; ++i)
      name_expert(beside + which + "experts." + std::to_string(i) + ".dense.", experts, first + i);
    return;
  }
  take_(prefix_ + beside + which + "weight", {count, out, in}, in, experts,
        BankRows{BankRows::Kind::weights, first});
  if (experts.has_bias()) {
    take_(prefix_ + beside + which + "bias", {count, out}, out, experts,
          BankRows{BankRows::Kind::biases, first});
  }
}

template <class Scalar, class Take>
template <class Bank>
void TensorNamer<Scalar, Take>::name_expert(const std::string& name, Bank& experts, Index expert) const {
  const Index out = experts.out_features(), in = experts.in_features();
  take_(prefix_ + name + "weight", {out, in}, in, experts, BankRows{BankRows::Kind::weights, expert});
  if (experts.has_bias())
    take_(prefix_ + name + "bias", {out}, out, experts, BankRows{BankRows::Kind::biases, expert});
}

/// Of a MoeLayer, a MeoLayer or a block; names begin with `prefix`. take: see TensorNamer.
template <class Layer, class Take>
void name_tensors(Layer& layer, std::string_view prefix, const Take& take) {
  layer.visit(TensorNamer<typename Layer::Scalar, Take>(prefix, Layer::Kind::stacks_experts,
                                                        layer.options().shared_experts.count, take));
}

template <class Scalar>
struct Reading {
  template <class Storage>
  static void row(const ExpertBank<Scalar, Storage>& bank, Index expert, Index out, Index first,
                  std::span<Scalar> values) {
    bank.read_row(expert, out, first, values);
  }
  template <class Storage>
  static void bias(const ExpertBank<Scalar, Storage>& bank, Index expert, Index first,
                   std::span<Scalar> values) {
    bank.read_bias(expert, first, values);
  }
};
template <class Scalar>
struct Writing {
  template <class Storage>
  static void row(ExpertBank<Scalar, Storage>& bank, Index expert, Index out, Index first,
                  std::span<const Scalar> values) {
    bank.write_row(expert, out, first, values);
  }
  template <class Storage>
  static void bias(ExpertBank<Scalar, Storage>& bank, Index expert, Index first,
                   std::span<const Scalar> values) {
    bank.write_bias(expert, first, values);
  }
};

/// Makes a part of each tensor. For name_tensors: a class, so that layers of one scalar share its instances.
template <class Scalar>
class CollectParts {
 public:
  explicit CollectParts(std::vector<TensorPart<Scalar>>& parts) : parts_(parts) {}

  template <class Bank>
  void operator()(std::string name, std::vector<Index> shape, Index cols, Bank& bank,
                  const BankRows& rows) const {
    typename TensorPart<Scalar>::Write write;
    if constexpr (!std::is_const_v<Bank>) {
      write = [&bank, rows](Index row, Index col, std::span<const Scalar> values) {
        rows.access_row(bank, row, col, values, Writing<Scalar>());
      };
    }
    parts_.emplace_back(
        std::move(name), std::move(shape), cols,
        [&bank, rows](Index row, Index col, std::span<Scalar> values) {
          rows.access_row(bank, row, col, values, Reading<Scalar>());
        },
        std::move(write));
  }

 private:
  std::vector<TensorPart<Scalar>>& parts_;
};

}  // namespace detail

/// All tensors of a MoeLayer, a MeoLayer or a block under the names that io/checkpoint.hpp has, which begin
/// with `prefix`: for files that its load and save do not fit, of other names or in several parts.
template <class Layer>
std::vector<TensorPart<typename Layer::Scalar>> tensor_parts(Layer& layer, std::string_view prefix) {
  std::vector<TensorPart<typename Layer::Scalar>> parts;
  detail::name_tensors(layer, prefix, detail::CollectParts<typename Layer::Scalar>(parts));
  return parts;
}

#define MEO_INSTANCES(instance, Scalar) instance class TensorPart<Scalar>;
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

namespace detail {

#define MEO_INSTANCES(instance, Scalar)                                                                      \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(std::string_view, Linear<Scalar>&)     \
      const;                                                                                                 \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(std::string_view,                      \
                                                                      const Linear<Scalar>&) const;          \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(                                       \
      std::string_view, const TurnedWeight<Linear<Scalar>>&) const;                                          \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(                                       \
      std::string_view, const TurnedWeight<const Linear<Scalar>>&) const;                                    \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(                                       \
      std::string_view, const TurnedBuffer<Linear<Scalar>>&) const;                                          \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(                                       \
      std::string_view, const TurnedBuffer<const Linear<Scalar>>&) const;                                    \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(std::string_view, ExpertBank<Scalar>&) \
      const;                                                                                                 \
  instance void TensorNamer<Scalar, CollectParts<Scalar>>::operator()(std::string_view,                      \
                                                                      const ExpertBank<Scalar>&) const;
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace detail
}  // namespace meo::io
