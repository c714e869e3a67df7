#pragma once

/// Loads and saves one feed-forward block of a model of a public family, under its names:
///
///     using Block = meo::FeedForward<meo::MoeLayer<float>, meo::AnyActivation>;
///     const meo::io::FamilyModel model("OLMoE-1B-7B");
///     const Block block = meo::io::load_block<Block>(model, model.layer(3));
///
/// A model is a folder with config.json and model.safetensors, or several files and their index, or a single
/// file whose metadata have `family` and the config's fields. A block has one router, Level::token and no
/// auxiliary losses; it is the feed-forward alone, without norm and residual. The noise of its gate, which no
/// family has, is zero.

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/experts/gated_activation.hpp>
#include <meo/io/checkpoint.hpp>
#include <meo/io/error.hpp>
#include <meo/io/model_config.hpp>
#include <meo/io/model_family.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/io/tensor_files.hpp>
#include <meo/io/tensor_parts.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

/// Which tensors of a model are a block.
struct BlockFormat {
  std::string prefix;   ///< what their names begin with, as "model.layers.3.mlp."
  FamilyLayout layout;  ///< what follows
  /// I_s, hidden features of the shared expert, of which each of the block's S shared experts has I; the last
  /// may be filled with zeros. 0: S · I.
  Index shared_features = 0;

  /// The layer's number: the first number in the prefix, or −1.
  Index layer() const;
};

/// A model of a public family, in files. Const, and so safe to use from several threads.
class FamilyModel {
 public:
  /// Of a folder, its family by `model_type`, or of a file, its family by the metadata's `family`. Throws
  /// Error for files that cannot be read or a family that is not known.
  explicit FamilyModel(const std::filesystem::path& path);
  explicit FamilyModel(const SafetensorsReader& file);

  /// What it is made of.
  const ModelFamily& family() const { return *family_; }
  const ModelConfig& config() const { return config_; }
  const TensorFiles& tensors() const { return tensors_; }

  /// Of a block. Throws Error for a field of the config that is missing or wrong.
  FeedForwardOptions options() const;

  /// The name of a block's activation: relu, silu or gpt_oss. Throws Error as options does.
  std::string_view activation() const;

  /// I_s, or 0 where there is no shared expert. Throws Error as options does.
  Index shared_features() const;

  /// All blocks, in alphabetical order. Throws Error as options does.
  std::vector<BlockFormat> blocks() const;

  /// The one whose prefix begins with these words, as "encoder" or "model.layers.3.mlp". Throws Error unless
  /// there is exactly one.
  BlockFormat block(std::string_view prefix = "") const;

  /// The one of a layer, of those of block(prefix).
  BlockFormat layer(Index number, std::string_view prefix = "") const;

 private:
  FamilyModel(TensorFiles tensors, ModelConfig config, std::string_view field);

  /// The only one of those found, of which what says more.
  BlockFormat only(const std::vector<BlockFormat>& blocks, std::string_view what) const;

  TensorFiles tensors_;
  ModelConfig config_;
  const ModelFamily* family_;
};

#if defined(MEO_DEFINES_IO)

namespace detail {

MEO_IO_INLINE bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Whether a name ends as a tensor of a layout, and where that begins.
MEO_IO_INLINE bool ends_as(std::string_view name, std::string_view pattern, std::size_t& begin) {
  const std::size_t number = pattern.find("{}");
  if (number != pattern.npos) {
    const std::string_view tail = pattern.substr(number + 2);
    if (!name.ends_with(tail)) return false;
    name.remove_suffix(tail.size());
    const std::size_t size = name.size();
    while (!name.empty() && is_digit(name.back())) name.remove_suffix(1);
    if (name.size() == size) return false;
    pattern = pattern.substr(0, number);
  }
  if (!name.ends_with(pattern)) return false;
  begin = name.size() - pattern.size();
  return begin == 0 || name[begin - 1] == '.';
}

/// The first of two fields that is there, or the first.
MEO_IO_INLINE std::string_view field_of(const ModelConfig& config,
                                        const std::array<std::string_view, 2>& fields) {
  return fields[1].empty() || config.has(fields[0]) || !config.has(fields[1]) ? fields[0] : fields[1];
}

/// A prefix as whole words.
MEO_IO_INLINE std::string in_words(std::string_view prefix) {
  std::string words(prefix);
  if (!words.empty() && words.back() != '.') words += '.';
  return words;
}

}  // namespace detail

MEO_IO_INLINE Index BlockFormat::layer() const {
  for (std::size_t begin = 0, end; begin < prefix.size(); begin = end + 1) {
    end = (std::min)(prefix.find('.', begin), prefix.size());
    const std::string_view word = std::string_view(prefix).substr(begin, end - begin);
    Index number = 0;
    const auto [last, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (error == std::errc() && last == word.data() + word.size()) return number;
  }
  return -1;
}

MEO_IO_INLINE FamilyModel::FamilyModel(const std::filesystem::path& path)
    : FamilyModel(
          std::filesystem::is_directory(path)
              ? FamilyModel(TensorFiles::of_folder(path), ModelConfig(path / config_file), "model_type")
              : FamilyModel(SafetensorsReader(path))) {}

MEO_IO_INLINE FamilyModel::FamilyModel(const SafetensorsReader& file)
    : FamilyModel(TensorFiles(file), ModelConfig(file), "family") {}

MEO_IO_INLINE FamilyModel::FamilyModel(TensorFiles tensors, ModelConfig config, std::string_view field)
    : tensors_(std::move(tensors)),
      config_(std::move(config)),
      family_(&model_family(config_.text(field), config_.file(), field)) {}

MEO_IO_INLINE FeedForwardOptions FamilyModel::options() const {
  const ModelFamily& family = *family_;
  for (const FieldValue& field : family.required) config_.require(field.field, field.value);
  const auto count = [&](std::string_view field) { return field.empty() ? Index{1} : config_.count(field); };
  const auto count_if_there = [&](std::string_view field, Index otherwise) {
    return field.empty() || !config_.has(field) ? otherwise : config_.count(field);
  };
  FeedForwardOptions options{
      .features = config_.count(family.features),
      .hidden_features = config_.count(detail::field_of(config_, family.hidden_features)),
      .num_experts = config_.count(detail::field_of(config_, family.num_experts)),
      .top_k = count(family.top_k),
      .bias = family.bias,
      .gated = family.gated,
      .shared_gate = true};
  options.shared_experts.count = (shared_features() + options.hidden_features - 1) / options.hidden_features;
  options.shared_experts.weight = family.shared_weight;
  options.routing.level = Level::token;
  options.routing.loss_coefficient = 0;
  ScoreOptions& scores = options.routing.scores;
  scores.function = family.scores;
  scores.normalize = family.normalizes;
  if (!family.normalize.empty()) scores.normalize = config_.flag(family.normalize, family.normalizes);
  if (!family.scale.empty()) scores.scale = config_.number(family.scale);
  scores.bias = family.router_bias;
  SelectionOptions& selection = options.routing.selection;
  selection.correction_bias = family.correction_bias;
  selection.capacity = count_if_there(family.capacity, 0);
  const FieldValue& ungrouped = family.ungrouped;
  if (!config_.is(ungrouped.field, ungrouped.value)) {
    if (config_.has(ungrouped.field) && !config_.is(ungrouped.field, family.grouped))
      config_.fail(ungrouped.field, detail::text_of({ungrouped.value, " or ", family.grouped}));
    selection.groups = count_if_there(family.groups, 1);
    selection.top_groups = count_if_there(family.top_groups, selection.groups);
    if (selection.top_groups < selection.groups) selection.group_score = family.group_score;
  }
  return options;
}

MEO_IO_INLINE std::string_view FamilyModel::activation() const {
  config_.require(family_->activation_field.field, family_->activation_field.value);
  return family_->activation;
}

MEO_IO_INLINE Index FamilyModel::shared_features() const {
  const auto count_if_there = [&](std::string_view field) {
    return field.empty() || !config_.has(field) ? Index{0} : config_.count(field, 0);
  };
  return count_if_there(family_->shared_features) +
         count_if_there(family_->shared_experts) *
             config_.count(detail::field_of(config_, family_->hidden_features));
}

MEO_IO_INLINE std::vector<BlockFormat> FamilyModel::blocks() const {
  // How many tensors of each layout a prefix has; routers alone make no block.
  std::map<std::string, std::vector<Index>> counts;
  for (const std::string& name : tensors_.names()) {
    for (std::size_t i = 0; i < family_->layouts.size(); ++i) {
      for (const FamilyTensor& tensor : family_->layouts[i].subspan(1)) {
        std::size_t begin = 0;
        if (!detail::ends_as(name, tensor.name, begin)) continue;
        std::vector<Index>& of_prefix = counts[name.substr(0, begin)];
        of_prefix.resize(family_->layouts.size());
        ++of_prefix[i];
      }
    }
  }
  std::vector<BlockFormat> blocks;
  for (const auto& [prefix, of_prefix] : counts) {
    const auto most = std::max_element(of_prefix.begin(), of_prefix.end()) - of_prefix.begin();
    blocks.push_back({prefix, family_->layouts[static_cast<std::size_t>(most)], shared_features()});
  }
  return blocks;
}

MEO_IO_INLINE BlockFormat FamilyModel::block(std::string_view prefix) const {
  std::vector<BlockFormat> found;
  for (BlockFormat& format : blocks()) {
    if (format.prefix.starts_with(detail::in_words(prefix))) found.push_back(std::move(format));
  }
  return only(found, detail::text_of({"whose names begin with ", detail::in_quotes(prefix)}));
}

MEO_IO_INLINE BlockFormat FamilyModel::layer(Index number, std::string_view prefix) const {
  std::vector<BlockFormat> found;
  for (BlockFormat& format : blocks()) {
    if (format.layer() == number && format.prefix.starts_with(detail::in_words(prefix)))
      found.push_back(std::move(format));
  }
  return only(found, prefix.empty() ? detail::text_of({"of layer ", number})
                                    : detail::text_of({"of layer ", number, " whose names begin with ",
                                                       detail::in_quotes(prefix)}));
}

MEO_IO_INLINE BlockFormat FamilyModel::only(const std::vector<BlockFormat>& blocks,
                                            std::string_view what) const {
  if (blocks.size() == 1) return blocks[0];
  std::string found = blocks.empty() ? "none" : std::to_string(blocks.size());
  for (std::size_t i = 0; i < (std::min)(blocks.size(), std::size_t{8}); ++i)
    found += (i == 0 ? ": " : ", ") + blocks[i].prefix;
  if (blocks.size() > 8) found += ", …";
  throw Error(tensors_.name(),
              detail::text_of({"expected one block of ", family_->names[0], " ", what, ", found ", found}));
}

#endif

namespace detail {

/// The sizes that decide on the shapes of a block's tensors.
struct BlockSizes {
  Index features;         ///< D
  Index hidden_features;  ///< I
  Index num_experts;      ///< N
  Index shared_experts;   ///< S
  Index shared_features;  ///< I_s
};

/// Throws std::invalid_argument for options of a block that has other tensors than the format.
MEO_IO_INLINE BlockSizes sizes_of(const FeedForwardOptions& options, const BlockFormat& format);

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE BlockSizes sizes_of(const FeedForwardOptions& options, const BlockFormat& format) {
  const auto has = [&](std::initializer_list<BlockPart> parts) {
    return std::any_of(format.layout.begin(), format.layout.end(), [&](const FamilyTensor& tensor) {
      return std::find(parts.begin(), parts.end(), tensor.part) != parts.end();
    });
  };
  const auto check = [](std::string_view name, bool has_one, bool expected) {
    meo::detail::require(has_one == expected, name, ": expected ", expected ? "true" : "false",
                         ", as the format of the file has it, got ", has_one ? "true" : "false");
  };
  check("shared_gate", options.shared_gate && options.has_router, true);
  check("gated", options.gated, has({BlockPart::up, BlockPart::gate_and_up}));
  check("bias", options.bias, has({BlockPart::down_bias}));
  check("routing.scores.bias", options.routing.scores.bias, has({BlockPart::router_bias}));
  check("routing.selection.correction_bias", options.routing.selection.correction_bias,
        has({BlockPart::correction_bias}));
  const Index shared = options.shared_experts.count, hidden = options.hidden_features;
  if (shared > 0) {
    check("shared experts", true, has({BlockPart::shared_down}));
    check("the shared experts' weight sigmoid", options.shared_experts.weight == SharedWeight::sigmoid,
          has({BlockPart::shared_weight}));
  }
  const Index shared_features = format.shared_features == 0 ? shared * hidden : format.shared_features;
  meo::detail::require((shared_features + hidden - 1) / hidden == shared, "shared_experts.count: expected ",
                       (shared_features + hidden - 1) / hidden, " of ", hidden, " features for ",
                       shared_features, ", got ", shared);
  return {options.features, hidden, options.num_experts, shared, shared_features};
}

#endif

/// Where the numbers of a tensor lie: in one bank of experts, or in those of Gate and Up. Of the shared
/// expert, those of the first I hidden features in one expert of the bank, those of the next I in the next.
struct FamilyRows {
  Index first_expert = 0;
  Index inputs = 1;   ///< of an expert, in the tensor; 1 of biases
  Index outputs = 1;  ///< the same: of both banks where there are two
  bool is_bias = false;
  bool input_major = false;
  bool interleaved = false;

  /// Numbers that are written at a time: a row of the bank at least, since one of 8 bits has a scale of its
  /// own; so of a turned weight those of an expert.
  Index unit() const { return input_major ? inputs * outputs : is_bias ? outputs : inputs; }
};

/// Whether there is one for each expert.
constexpr bool is_of_experts(BlockPart part) {
  return BlockPart::gate <= part && part <= BlockPart::down_bias;
}
constexpr bool is_shared(BlockPart part) { return part >= BlockPart::shared_gate; }

/// Where the numbers of a part lie, of the first expert where there are several, in a tensor of the plainest
/// form.
constexpr FamilyRows rows_of(BlockPart part, const BlockSizes& sizes) {
  switch (part) {
    case BlockPart::router:
      return {.inputs = sizes.features, .outputs = sizes.num_experts};
    case BlockPart::router_bias:
      return {.outputs = sizes.num_experts, .is_bias = true};
    case BlockPart::correction_bias:  // in the gate the weight of one input
      return {.outputs = sizes.num_experts};
    case BlockPart::gate:
    case BlockPart::up:
      return {.inputs = sizes.features, .outputs = sizes.hidden_features};
    case BlockPart::gate_and_up:
      return {.inputs = sizes.features, .outputs = 2 * sizes.hidden_features};
    case BlockPart::down:
      return {.inputs = sizes.hidden_features, .outputs = sizes.features};
    case BlockPart::gate_and_up_bias:
      return {.outputs = 2 * sizes.hidden_features, .is_bias = true};
    case BlockPart::down_bias:
      return {.outputs = sizes.features, .is_bias = true};
    case BlockPart::shared_gate:
    case BlockPart::shared_up:
      return {.first_expert = sizes.num_experts, .inputs = sizes.features, .outputs = sizes.shared_features};
    case BlockPart::shared_down:
      return {.first_expert = sizes.num_experts, .inputs = sizes.shared_features, .outputs = sizes.features};
    case BlockPart::shared_weight:
      break;
  }
  return {.inputs = sizes.features};
}

/// Calls take(name, shape, part, rows) for one tensor of a block after another, that of the router first.
template <class Take>
void for_each_tensor(const BlockSizes& sizes, const BlockFormat& format, const Take& take) {
  for (const FamilyTensor& tensor : format.layout) {
    if (is_shared(tensor.part) && sizes.shared_features == 0) continue;
    FamilyRows rows = rows_of(tensor.part, sizes);
    rows.input_major = tensor.input_major;
    rows.interleaved = tensor.interleaved;
    std::vector<Index> shape{rows.outputs};
    if (!rows.is_bias && tensor.part != BlockPart::correction_bias)
      shape.insert(rows.input_major ? shape.begin() : shape.end(), rows.inputs);
    if (!tensor.is_per_expert()) {
      if (is_of_experts(tensor.part)) shape.insert(shape.begin(), sizes.num_experts);
      take(format.prefix + std::string(tensor.name), shape, tensor.part, rows);
      continue;
    }
    const std::size_t number = tensor.name.find("{}");
    for (; rows.first_expert < sizes.num_experts; ++rows.first_expert) {
      take(std::string(format.prefix)
               .append(tensor.name.substr(0, number))
               .append(std::to_string(rows.first_expert))
               .append(tensor.name.substr(number + 2)),
           shape, tensor.part, rows);
    }
  }
}

/// Reads and writes the numbers of a tensor where they lie.
template <class Scalar, class Bank>
class FamilyAccess {
 public:
  /// second: of Up, where the tensor has that too, or null.
  FamilyAccess(const FamilyRows& rows, Bank& first, Bank* second)
      : rows_(rows), first_(&first), second_(second) {}

  /// values.size() numbers of a unit from number `col` on.
  void read(Index unit, Index col, std::span<Scalar> values) const {
    while (!values.empty()) {
      Place place;
      std::size_t count = 1;
      if (rows_.is_bias) {
        place = at(unit, col, 0);
        place.bank->read_bias(place.expert, place.out, values.first(count));
      } else if (rows_.input_major) {
        place = at(unit, col % rows_.outputs, col / rows_.outputs);
        place.bank->read_row(place.expert, place.out, place.in, values.first(count));
      } else {
        place = at(unit / rows_.outputs, unit % rows_.outputs, col);
        count = (std::min)(values.size(), static_cast<std::size_t>(first_->in_features() - place.in));
        place.bank->read_row(place.expert, place.out, place.in, values.first(count));
      }
      values = values.subspan(count);
      col += static_cast<Index>(count);
    }
  }

  /// All of a unit.
  void write(Index unit, std::span<const Scalar> values) const {
    if (rows_.is_bias) {
      for (Index output = 0; output < rows_.outputs; ++output) {
        const Place place = at(unit, output, 0);
        place.bank->write_bias(place.expert, place.out, values.subspan(static_cast<std::size_t>(output), 1));
      }
    } else if (rows_.input_major) {
      std::vector<Scalar> row(static_cast<std::size_t>(rows_.inputs));
      for (Index output = 0; output < rows_.outputs; ++output) {
        auto next = static_cast<std::size_t>(output);
        for (Scalar& value : row) {
          value = values[next];
          next += static_cast<std::size_t>(rows_.outputs);
        }
        write_row(unit, output, row);
      }
    } else {
      write_row(unit / rows_.outputs, unit % rows_.outputs, values);
    }
  }

 private:
  struct Place {
    Bank* bank;
    Index expert, out, in;
  };

  /// Of a weight of the tensor's expert number `expert`, or a bias of it.
  Place at(Index expert, Index output, Index input) const {
    const Index outputs = first_->out_features(), inputs = first_->in_features();
    expert += rows_.first_expert + input / inputs;
    input %= inputs;
    if (second_ == nullptr) return {first_, expert + output / outputs, output % outputs, input};
    if (rows_.interleaved) return {output % 2 == 0 ? first_ : second_, expert, output / 2, input};
    return {output < outputs ? first_ : second_, expert, output % outputs, input};
  }

  /// All weights of an output; zeros beyond them, where the last expert has room for more.
  void write_row(Index expert, Index output, std::span<const Scalar> values) const {
    const auto inputs = static_cast<std::size_t>(first_->in_features());
    for (Index input = 0; !values.empty(); input += first_->in_features()) {
      const Place place = at(expert, output, input);
      if (values.size() < inputs) {
        std::vector<Scalar> row(inputs);
        std::copy(values.begin(), values.end(), row.begin());
        return place.bank->write_row(place.expert, place.out, 0, row);
      }
      place.bank->write_row(place.expert, place.out, 0, values.first(inputs));
      values = values.subspan(inputs);
    }
  }

  FamilyRows rows_;
  Bank *first_, *second_;
};

template <class Scalar, class Bank>
TensorPart<Scalar> family_part(const std::string& name, const std::vector<Index>& shape,
                               const FamilyRows& rows, Bank& first, Bank* second = nullptr) {
  const FamilyAccess<Scalar, Bank> access(rows, first, second);
  typename TensorPart<Scalar>::Write write;
  if constexpr (!std::is_const_v<Bank>) {
    write = [access](Index unit, Index, std::span<const Scalar> values) { access.write(unit, values); };
  }
  return {name, shape, rows.unit(),
          [access](Index unit, Index col, std::span<Scalar> values) { access.read(unit, col, values); },
          std::move(write)};
}

/// The tensors of a block's projections, Layer being const or not. They have to outlive them.
template <class Layer>
std::vector<TensorPart<typename Layer::Scalar>> family_parts(Layer& gate, Layer* up, Layer& down,
                                                             const BlockSizes& sizes,
                                                             const BlockFormat& format) {
  using Scalar = typename Layer::Scalar;
  std::vector<TensorPart<Scalar>> parts;
  const auto take = [&](const std::string& name, const std::vector<Index>& shape, BlockPart part,
                        const FamilyRows& rows) {
    const auto add = [&](auto& first) { parts.push_back(family_part<Scalar>(name, shape, rows, first)); };
    switch (part) {
      case BlockPart::router:
      case BlockPart::router_bias:
        return gate.gate().visit([&](std::string_view of_gate, const auto& projection) {
          if (of_gate == "w_gate") add(projection.linear().bank());
        });
      case BlockPart::correction_bias:
        return gate.gate().visit([&](std::string_view of_gate, const auto& projection) {
          if (of_gate == "correction_bias") add(projection.linear().bank());
        });
      case BlockPart::shared_weight:
        return add(gate.router().shared_expert_gate().bank());
      case BlockPart::gate:
      case BlockPart::shared_gate:
        return add(gate.experts());
      case BlockPart::up:
      case BlockPart::shared_up:
        return add(up->experts());
      case BlockPart::gate_and_up:
      case BlockPart::gate_and_up_bias:
        return parts.push_back(family_part<Scalar>(name, shape, rows, gate.experts(), &up->experts()));
      case BlockPart::down:
      case BlockPart::down_bias:
      case BlockPart::shared_down:
        return add(down.experts());
    }
  };
  for_each_tensor(sizes, format, take);
  return parts;
}
template <class Block>
auto family_parts(Block& block, const BlockFormat& format) {
  return family_parts(block.up(), block.options().gated ? &block.gate_up() : nullptr, block.down(),
                      sizes_of(block.options(), format), format);
}

/// Of the last shared expert, the hidden features that no tensor has: fills those of Gate and Up with zeros,
/// those of Down being written with its rows.
template <class Block>
void clear_filling(Block& block, const BlockFormat& format) {
  using Scalar = typename Block::Scalar;
  const BlockSizes sizes = sizes_of(block.options(), format);
  const std::vector<Scalar> zeros(static_cast<std::size_t>(sizes.features), Scalar(0));
  const Index first = sizes.shared_features % sizes.hidden_features;
  for (Index out = first; first > 0 && out < sizes.hidden_features; ++out) {
    const Index expert = sizes.num_experts + sizes.shared_experts - 1;
    block.up().experts().write_row(expert, out, 0, zeros);
    if (block.options().gated) block.gate_up().experts().write_row(expert, out, 0, zeros);
  }
}

/// Throws Error if those features have weights, which would be lost.
template <class Block>
void check_filling(const Block& block, const BlockFormat& format) {
  const BlockSizes sizes = sizes_of(block.options(), format);
  const Index first = sizes.shared_features % sizes.hidden_features;
  if (first == 0) return;
  std::vector<typename Block::Scalar> values(static_cast<std::size_t>(sizes.hidden_features - first));
  for (Index out = 0; out < sizes.features; ++out) {
    block.down().experts().read_row(sizes.num_experts + sizes.shared_experts - 1, out, first, values);
    if (std::any_of(values.begin(), values.end(), [](const auto& value) { return value != 0; })) {
      throw Error("", text_of({"expected a shared expert of ", sizes.shared_features,
                               " hidden features, got one with weights for more"}));
    }
  }
}

/// First words of the names of all families' tensors: what is refused beside a block without a prefix.
MEO_IO_INLINE std::vector<std::string_view> family_words();

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE std::vector<std::string_view> family_words() {
  std::vector<std::string_view> words;
  for (const ModelFamily& family : model_families) {
    for (const FamilyLayout& layout : family.layouts) {
      for (const FamilyTensor& tensor : layout) words.push_back(tensor.name.substr(0, tensor.name.find('.')));
    }
  }
  return words;
}

#endif

/// The activation that a model says, as one of these types.
template <class Activation>
Activation activation_of(const FamilyModel& model) {
  const std::string_view name = model.activation();
  if constexpr (std::same_as<Activation, AnyActivation>) {
    if (const auto activation = AnyActivation::from_name(name)) return *activation;
  }
  if constexpr (std::same_as<Activation, Silu>) {
    if (name == "silu") return {};
  }
  if constexpr (std::same_as<Activation, Relu>) {
    if (name == "relu") return {};
  }
  if constexpr (std::same_as<Activation, GptOssSwiglu>) {
    if (name == "gpt_oss") {
      GptOssSwiglu activation;
      const auto take = [&](std::string_view field, double& value) {
        if (!field.empty() && model.config().has(field)) value = model.config().number(field);
      };
      take(model.family().alpha, activation.alpha);
      take(model.family().limit, activation.limit);
      return activation;
    }
  }
  throw Error(model.config().file(), text_of({"expected a block whose activation can be ", name}));
}

}  // namespace detail

/// Throws Error unless a model has all tensors of a block, each in its shape. Takes no memory for the block.
MEO_IO_INLINE void check_shapes(const FeedForwardOptions& options, const BlockFormat& format,
                                const TensorFiles& files);

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE void check_shapes(const FeedForwardOptions& options, const BlockFormat& format,
                                const TensorFiles& files) {
  detail::for_each_tensor(detail::sizes_of(options, format), format,
                          [&](const std::string& name, const std::vector<Index>& shape, BlockPart,
                              const detail::FamilyRows&) { files.file_of(name).check_shape(name, shape); });
}

#endif

/// Fills a block of MoE layers, whose options are those of the model, or differ in what is no size. Needs all
/// tensors of the block, each in its shape and in any type that can be read, and no other under its prefix;
/// else throws Error, or std::invalid_argument for a block of another form, and leaves it as it was. The
/// files are read twice, see load of checkpoint.hpp; beside the block there is memory for 4096 numbers, or a
/// row, or where the file has turned weights for those of an expert, and about 1 kB for each tensor.
template <class Block>
void load(Block& block, const BlockFormat& format, const TensorFiles& files,
          const LoadOptions& options = {}) {
  using Layer = typename Block::Layer;
  using Scalar = typename Block::Scalar;
  const auto parts = detail::family_parts(block, format);
  detail::check_range<Layer>(parts, files, options);
  std::vector<std::string_view> words;
  if (format.prefix.empty()) words = detail::family_words();
  detail::load_parts<Scalar>(parts, files, format.prefix, detail::load_options<Layer>(options), {}, words);
  block.up().gate().visit([](std::string_view name, const auto& part) {
    if (name == "w_noise") part.linear().set_zero();
  });
  detail::clear_filling(block, format);
}

/// A block of a model, FeedForward of MoeLayers and AnyActivation or the model's own activation. Throws Error
/// for a config or tensors that do not fit, before it takes memory for the block, and std::invalid_argument
/// for sizes of the config that make none.
template <class Block>
Block load_block(const FamilyModel& model, const BlockFormat& format, const LoadOptions& options = {}) {
  const FeedForwardOptions sizes = model.options();
  check_shapes(sizes, format, model.tensors());
  Block block(
      sizes, detail::activation_of<std::remove_cvref_t<decltype(std::declval<Block>().activation())>>(model));
  load(block, format, model.tensors(), options);
  return block;
}

/// Adds a block's tensors under the names and in the shapes of a format, for load to read; of another type
/// than the block's scalar they are rounded. They are not copied, see save of checkpoint.hpp. Throws Error
/// for a name that the writer has already, or for a gate that has learned noise, which has no name.
template <class Block>
void save(const Block& block, const BlockFormat& format, SafetensorsWriter& writer,
          DType dtype = dtype_of<typename Block::Scalar>) {
  block.up().gate().visit([](std::string_view name, const auto& part) {
    const auto values = part.values();
    const auto is_zero = [](const auto& value) { return value == 0; };
    if (name == "w_noise" && !std::all_of(values.begin(), values.end(), is_zero)) {
      throw Error(
          "", "expected a gate without noise, which no family has a tensor for, got w_noise that is not 0");
    }
  });
  detail::check_filling(block, format);
  detail::save_parts(detail::family_parts(block, format), writer, dtype);
}

namespace detail {

#define MEO_INSTANCES(instance, Scalar)                                                                   \
  instance std::vector<TensorPart<Scalar>> family_parts(                                                  \
      MoeLayer<Scalar>&, MoeLayer<Scalar>*, MoeLayer<Scalar>&, const BlockSizes&, const BlockFormat&);    \
  instance std::vector<TensorPart<Scalar>> family_parts(const MoeLayer<Scalar>&, const MoeLayer<Scalar>*, \
                                                        const MoeLayer<Scalar>&, const BlockSizes&,       \
                                                        const BlockFormat&);
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace detail
}  // namespace meo::io
