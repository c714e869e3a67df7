#pragma once

/// Fills layers from the parameters of a checkpoint and saves them, under the names of the MEO authors'
/// state_dict and in PyTorch's form:
///
///     w_gate, w_noise (D_g × N); as the options say, w_gate.bias (N) and correction_bias (N)
///     MoeLayer: experts.i.dense.weight (F × D), experts.i.dense.bias (F)
///     MeoLayer: weight (N × F × D), bias (N × F); at token level tokenatt.down_proj, tokenatt.up_proj
///     at task level: task_proj
///     with S shared experts, by names of our own: shared_experts.i.dense.weight and .bias, or shared_weight
///     (S × F × D) and shared_bias (S × F); for s shared_expert_gate.weight (1 × D_g)
///
/// of which tokenatt's and task_proj are a `.weight` and a `.bias` each. A block has those of its projections
/// under `up.`, `gate_up.` and `down.`; with one router for the block those of `up` alone are under its name.
///
/// Letters: D in_features, F out_features, N num_experts, D_g features that the gate sees.

#include <algorithm>
#include <array>
#include <cstddef>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/io/size_only.hpp>
#include <meo/io/tensor_files.hpp>
#include <meo/io/tensor_parts.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

/// What load takes and what it refuses.
struct LoadOptions {
  /// Whether a parameter that is NaN, infinite or too large for the layer's scalar, or for what its experts
  /// are stored as, is an error; it names the first, in row-major order. For experts of 8 bits it always is.
  bool require_finite = false;
};

namespace detail {

/// What the authors' names begin with, up to the first dot.
inline constexpr std::array<std::string_view, 15> first_words{
    "w_gate",  "w_noise",        "correction_bias", "weight",      "bias",
    "experts", "tokenatt",       "task_proj",       "up",          "gate_up",
    "down",    "shared_experts", "shared_weight",   "shared_bias", "shared_expert_gate"};

/// Throws if there is a parameter under the prefix that is not among those used: an expert too many, a bias,
/// another level. Tensors that do not begin with one of the words, where there are any, may stand beside:
/// inputs, where the prefix is empty, and the constants mean and std of the authors' normal distribution.
/// names: of all tensors of the file.
MEO_IO_INLINE void check_all_used(const std::string& file, const std::vector<std::string>& names,
                                  std::string_view prefix, std::span<const std::string_view> words,
                                  const std::set<std::string>& used);

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE void check_all_used(const std::string& file, const std::vector<std::string>& names,
                                  std::string_view prefix, std::span<const std::string_view> words,
                                  const std::set<std::string>& used) {
  for (const std::string& name : names) {
    if (!name.starts_with(prefix) || used.contains(name)) continue;
    const std::string_view rest = std::string_view(name).substr(prefix.size());
    const std::string_view word = rest.substr(0, rest.find('.'));
    if (words.empty() || std::find(words.begin(), words.end(), word) != words.end())
      throw Error(file, name, "is no parameter of what is loaded");
  }
}

#endif

/// The file of a tensor, be there one file or several; what messages call them.
inline const SafetensorsReader& file_of(const SafetensorsReader& file, std::string_view) { return file; }
inline const SafetensorsReader& file_of(const TensorFiles& files, std::string_view name) {
  return files.file_of(name);
}
inline const std::string& name_of(const SafetensorsReader& file) { return file.file(); }
inline const std::string& name_of(const TensorFiles& files) { return files.name(); }

/// The most numbers that are held beside a layer while it is loaded, unless a row has more.
inline constexpr Index load_elements = 4096;

/// First all is looked at, every byte of it, and then written over what the parts had, a piece at a time:
/// what does not fit, or cannot be read, is known before anything has changed. `ignored`: names that may be
/// there; words: see check_all_used. Files: a SafetensorsReader, or TensorFiles without a prefix.
template <class Scalar, class Files>
void load_parts(const std::vector<TensorPart<Scalar>>& parts, const Files& files, std::string_view prefix,
                const LoadOptions& options, std::set<std::string> ignored = {},
                std::span<const std::string_view> words = first_words) {
  for (const TensorPart<Scalar>& part : parts) {
    file_of(files, part.name()).template check<Scalar>(part.name(), part.shape(), options.require_finite);
    ignored.insert(part.name());
  }
  check_all_used(name_of(files), files.names(), prefix, words, ignored);
  std::vector<Scalar> buffer;
  for (const TensorPart<Scalar>& part : parts) {
    const SafetensorsReader& file = file_of(files, part.name());
    // Whole rows: a quantized one has a scale that all of it decides on.
    const Index piece = (std::max<Index>)(load_elements / part.cols(), 1) * part.cols();
    for (Index first = 0; first < part.size(); first += piece) {
      const auto count = static_cast<std::size_t>((std::min)(piece, part.size() - first));
      if (buffer.size() < count) buffer.resize(count);
      const std::span<Scalar> values = std::span(buffer).first(count);
      try {
        file.read_into<Scalar>(part.name(), first, values);
      } catch (const Error&) {
        throw Error(file.file(), part.name(),
                    text_of({"cannot be read a second time, from element ", first,
                             " on: all before it is loaded, nothing after it"}));
      }
      part.write(first, values);
    }
  }
}

/// For name_tensors.
struct CheckShape {
  const SafetensorsReader& file;

  template <class Bank>
  void operator()(const std::string& name, const std::vector<Index>& shape, Index, Bank&,
                  const BankRows&) const {
    file.check_shape(name, shape);
  }
};

/// What a layer of this type needs to know of a file before it is loaded.
template <class Layer>
LoadOptions load_options(LoadOptions options) {
  // What is not finite has no place between −127 and 127.
  if (meo::detail::is_quantized<typename Layer::Storage>) options.require_finite = true;
  return options;
}

/// Parameters that a file may have besides those of a layer or block of these options.
inline std::set<std::string> ignored_names(const LayerOptions&, std::string_view) { return {}; }
inline std::set<std::string> ignored_names(const FeedForwardOptions& options, std::string_view prefix) {
  std::set<std::string> names;
  if (!options.shared_gate) return names;
  for (const char* const projection : {"gate_up.", "down."}) {
    for (const char* const name : {"w_gate", "w_gate.bias", "w_noise", "correction_bias",
                                   "shared_expert_gate.weight", "task_proj.weight", "task_proj.bias"})
      names.insert(std::string(prefix).append(projection).append(name));
  }
  return names;
}

/// Throws unless all that is to be stored in 16 bits fits them.
template <class Layer, class Files>
void check_range(const std::vector<TensorPart<typename Layer::Scalar>>& parts, const Files& files,
                 const LoadOptions& options) {
  using Storage = typename Layer::Storage;
  if constexpr (FloatLike<Storage> && !std::same_as<Storage, typename Layer::Scalar>) {
    if (!options.require_finite) return;
    for (const auto& part : parts) {
      const SafetensorsReader& file = file_of(files, part.name());
      file.check_shape(part.name(), part.shape());
      file.template check_finite<Storage>(part.name());
    }
  }
}

template <class Scalar>
void save_parts(const std::vector<TensorPart<Scalar>>& parts, SafetensorsWriter& writer,
                DType dtype = dtype_of<Scalar>) {
  for (const TensorPart<Scalar>& part : parts) {
    writer.add_deferred<Scalar>(
        part.name(), part.shape(),
        [part](Index first, std::span<Scalar> values) { part.read(first, values); }, dtype);
  }
}

#define MEO_INSTANCES(instance, Scalar)                                                                   \
  instance void load_parts(const std::vector<TensorPart<Scalar>>&, const SafetensorsReader&,              \
                           std::string_view, const LoadOptions&, std::set<std::string>,                   \
                           std::span<const std::string_view>);                                            \
  instance void load_parts(const std::vector<TensorPart<Scalar>>&, const TensorFiles&, std::string_view,  \
                           const LoadOptions&, std::set<std::string>, std::span<const std::string_view>); \
  instance void save_parts(const std::vector<TensorPart<Scalar>>&, SafetensorsWriter&, DType);
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace detail

/// Throws Error unless the file has every parameter of a MoeLayer, a MeoLayer or a block of these options,
/// each in its shape; std::invalid_argument for options that make none. Takes no memory for the layer: for
/// options that come from a file, before one is made of them, which then has no more parameters than the
/// file.
template <class Layer>
void check_shapes(const typename Layer::Options& options, const SafetensorsReader& file,
                  std::string_view prefix = "param.") {
  const typename detail::SizesOf<Layer>::Type layer(options);
  detail::name_tensors(layer, prefix, detail::CheckShape{file});
}

/// Fills a MoeLayer or a MeoLayer. Needs all of its parameters, each in its shape and in any type that can be
/// read, and no other parameters of the authors' names under the prefix; else throws Error and leaves the
/// layer as it was.
///
/// The file is read twice: first every byte of these parameters, to see that all of them can be taken, and
/// then into the layer, piece by piece, so that beside it there is memory for 4096 numbers, or a row, and
/// about 1 kB for each tensor alone. If the second reading fails, because somebody has cut the file short
/// since or its medium has, the layer is loaded in part; the Error then says up to where, in the order of
/// visit.
template <class Layer>
void load(Layer& layer, const SafetensorsReader& file, std::string_view prefix = "param.",
          const LoadOptions& options = {}) {
  const auto parts = tensor_parts(layer, prefix);
  detail::check_range<Layer>(parts, file, options);
  detail::load_parts(parts, file, prefix, detail::load_options<Layer>(options));
}

/// The same for a block. With one router for the block, those of the other projections, which files have that
/// were written with a gate for each, are left out.
template <class Layer, class Activation>
void load(FeedForward<Layer, Activation>& block, const SafetensorsReader& file,
          std::string_view prefix = "param.", const LoadOptions& options = {}) {
  const auto parts = tensor_parts(block, prefix);
  detail::check_range<Layer>(parts, file, options);
  detail::load_parts(parts, file, prefix, detail::load_options<Layer>(options),
                     detail::ignored_names(block.options(), prefix));
}

/// Adds the parameters of a MoeLayer, a MeoLayer or a block, or of one that holds their gradients or moments,
/// for load to read, as numbers of its scalar whatever they are stored as; read into the same storage they
/// are the same. They are not copied: the layer has to live, and to stay as it is, until the writer has
/// written, which takes memory for SafetensorsWriter::deferred_elements numbers and about 1 kB for each
/// tensor. Throws Error for a name that the writer has already.
template <class Layer>
void save(const Layer& layer, SafetensorsWriter& writer, const std::string& prefix = "param.") {
  const auto parts = tensor_parts(layer, prefix);
  detail::save_parts(parts, writer);
}

}  // namespace meo::io
