#pragma once

/// Checkpoints of what is split over ranks: the files of io/checkpoint.hpp, of which each rank reads and
/// writes its part. A file does not tell how many ranks have written it, and any number may read it.
///
/// All ranks have to see the same folder. Needs meo::safetensors beside meo::mpi.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/distributed/tensor_slice.hpp>
#include <meo/errors.hpp>
#include <meo/io/checkpoint.hpp>
#include <meo/io/output_file.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/io/tensor_parts.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// The file, open for reading on all ranks. Where one cannot open it, all throw Error with what io::Error
/// says, as do the functions below for what io/checkpoint.hpp throws. Collective.
inline io::SafetensorsReader open(const Communicator& communicator, const std::filesystem::path& path) {
  std::optional<io::SafetensorsReader> file;
  agree(communicator, [&] { file.emplace(path); });
  return *std::move(file);
}

/// Fills each rank's part of the tensors, as io::load fills layers, of which `ignored` names those that may
/// be there besides. A rank reads what it has, twice. If a rank finds something wrong at the first reading,
/// all throw Error, and the tensors are as they were. Collective.
template <class Scalar>
void load(const Communicator& communicator, const std::vector<TensorSlice<Scalar>>& slices,
          const io::SafetensorsReader& file, std::string_view prefix, const io::LoadOptions& options = {},
          std::set<std::string> ignored = {});

/// Fills a layer, or a block, that is split over ranks; file: open on each of them. See io::load.
template <SplitOverRanks SplitLayer>
void load(SplitLayer& layer, const io::SafetensorsReader& file, std::string_view prefix = "param.",
          const io::LoadOptions& options = {});

/// Collects what ranks have and writes it as one file, byte for byte that of SafetensorsWriter on one rank
/// that has all. Nothing is copied: what is added has to live, and to stay as it is, until the file is
/// written. All ranks add the same tensors.
class CheckpointWriter {
 public:
  /// The ranks that write together.
  explicit CheckpointWriter(const Communicator& communicator) : communicator_(communicator) {}

  /// See SafetensorsWriter.
  void set_metadata(const std::string& key, const std::string& value) { writer_.set_metadata(key, value); }

  /// A tensor, as numbers of its scalar. Throws io::Error for a name that has been added.
  template <class Scalar>
  void add(const TensorSlice<Scalar>& slice);

  /// All of a layer or a block that is split over ranks, or that each of them has whole; see io::save.
  template <SplitOverRanks SplitLayer>
  void add(const SplitLayer& layer, std::string_view prefix = "param.") {
    for (const auto& slice : tensor_slices(layer, prefix)) add(slice);
  }
  template <class Layer>
  requires(!SplitOverRanks<Layer>) && requires { typename Layer::Kind; }
  void add(const Layer& layer, std::string_view prefix = "param.") {
    for (const auto& part : io::tensor_parts(layer, prefix)) {
      const std::vector<Index> shape = part.shape();
      add(TensorSlice<typename Layer::Scalar>{part, shape, std::vector<Index>(shape.size(), 0),
                                              Held::by_all});
    }
  }

  /// Writes as SafetensorsWriter::write does, whole or not at all; of what all ranks have, each writes its
  /// share. Throws Error on all ranks for what goes wrong on one, and std::invalid_argument unless the ranks
  /// have added the same and have, together, all of it. Collective.
  void write(const std::filesystem::path& path) const;

 private:
  /// Which elements of a tensor this rank writes.
  struct Share {
    Index count;
    Index size;  ///< of the tensor
    std::function<void(const io::SafetensorsWriter::VisitElements&)> for_elements;
  };

  /// Throws unless all ranks would write the same head, and together all elements.
  void check_same_tensors(std::span<const std::byte> head) const;

  Communicator communicator_;
  io::SafetensorsWriter writer_;
  std::map<std::string, Share> shares_;
};

namespace detail {

/// Calls visit(first, own, count) for what a rank reads of a tensor: all that it has.
template <class Scalar, class Visit>
void for_held(const TensorSlice<Scalar>& slice, const Communicator& communicator, const Visit& visit) {
  if (slice.held == Held::by_first && communicator.rank() > 0) return;
  slice.for_runs(visit);
}

/// Of what ranks have to agree on.
inline std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t sum = empty_checksum;
  for (const std::byte byte : bytes) sum = checksum_with(sum, static_cast<std::uint64_t>(byte));
  return sum;
}

}  // namespace detail

template <class Scalar>
void load(const Communicator& communicator, const std::vector<TensorSlice<Scalar>>& slices,
          const io::SafetensorsReader& file, std::string_view prefix, const io::LoadOptions& options,
          std::set<std::string> ignored) {
  agree(communicator, [&] {
    for (const TensorSlice<Scalar>& slice : slices) {
      file.check_shape(slice.part.name(), slice.shape);
      ignored.insert(slice.part.name());
    }
    io::detail::check_all_used(file.file(), file.names(), prefix, io::detail::first_words, ignored);
    for (const TensorSlice<Scalar>& slice : slices) {
      detail::for_held(slice, communicator, [&](Index first, Index, Index count) {
        file.check_elements<Scalar>(slice.part.name(), first, count, options.require_finite);
      });
    }
  });
  agree(communicator, [&] {
    std::vector<Scalar> buffer;
    for (const TensorSlice<Scalar>& slice : slices) {
      // Whole rows, see io::detail::load_parts.
      const Index cols = slice.part.cols();
      const Index most = (std::max<Index>)(io::detail::load_elements / cols, 1) * cols;
      detail::for_held(slice, communicator, [&](Index first, Index own, Index count) {
        for (Index done = 0; done < count; done += most) {
          buffer.resize(static_cast<std::size_t>((std::min)(most, count - done)));
          file.read_into<Scalar>(slice.part.name(), first + done, buffer);
          slice.part.write(own + done, buffer);
        }
      });
    }
  });
}

template <SplitOverRanks SplitLayer>
void load(SplitLayer& layer, const io::SafetensorsReader& file, std::string_view prefix,
          const io::LoadOptions& options) {
  const auto slices = tensor_slices(layer, prefix);
  using Scalar = typename SplitLayer::Scalar;
  using Projection = typename detail::Split<typename SplitLayer::Layer>::Projection;
  using Storage = typename Projection::Storage;
  if constexpr (io::FloatLike<Storage> && !std::same_as<Storage, Scalar>) {
    agree(layer.communicator(), [&] {
      if (!options.require_finite) return;
      for (const auto& slice : slices) {
        file.check_shape(slice.part.name(), slice.shape);
        detail::for_held(slice, layer.communicator(), [&](Index first, Index, Index count) {
          file.template check_finite<Storage>(slice.part.name(), first, count);
        });
      }
    });
  }
  load(layer.communicator(), slices, file, prefix, io::detail::load_options<Projection>(options),
       io::detail::ignored_names(layer.options(), prefix));
}

template <class Scalar>
void CheckpointWriter::add(const TensorSlice<Scalar>& slice) {
  writer_.add_deferred<Scalar>(slice.part.name(), slice.shape,
                               [slice](Index first, std::span<Scalar> values) {
                                 slice.part.read(slice.place_in_part(first), values);
                               });
  Index size = 1;
  for (const Index length : slice.shape) size *= length;
  Share share{0, size, {}};
  if (slice.held == Held::by_all) {
    const RankRange range = range_of(size, communicator_.size(), communicator_.rank());
    share.count = range.size();
    share.for_elements = [range](const auto& visit) { visit(range.begin, range.size()); };
  } else {
    const bool has_it = slice.held == Held::in_part || communicator_.rank() == 0;
    share.count = has_it ? slice.part.size() : 0;
    share.for_elements = [slice, has_it](const auto& visit) {
      if (has_it) slice.for_runs([&](Index first, Index, Index count) { visit(first, count); });
    };
  }
  shares_.emplace(slice.part.name(), std::move(share));
}

inline void CheckpointWriter::check_same_tensors(std::span<const std::byte> head) const {
  agree_on(communicator_, "tensors and metadata of the checkpoint", [&] { return detail::checksum(head); });
  std::vector<Index> counts;
  for (const auto& [name, share] : shares_) counts.push_back(share.count);
  communicator_.all_reduce_sum(std::span<Index>(counts));
  auto count = counts.cbegin();
  for (const auto& [name, share] : shares_) {
    meo::detail::require(*count == share.size, name, ": expected ", share.size,
                         " elements of all ranks together, got ", *count);
    ++count;
  }
}

inline void CheckpointWriter::write(const std::filesystem::path& path) const {
  std::vector<std::byte> head;
  agree(communicator_, [&] { head = writer_.head(); });
  check_same_tensors(head);

  std::optional<io::detail::OutputFile> output;  // the first rank's
  std::u8string partial;
  agree(communicator_, [&] {
    if (communicator_.rank() > 0) return;
    output.emplace(path);
    partial = std::filesystem::absolute(output->partial()).u8string();
  });
  std::uint64_t size = partial.size();
  communicator_.broadcast(std::span<std::uint64_t>(&size, 1));
  partial.resize(static_cast<std::size_t>(size));
  communicator_.broadcast(std::span<char8_t>(partial));

  agree(communicator_, [&] {
    io::PlacedOutput file{std::filesystem::path(partial)};
    if (communicator_.rank() == 0) file.write(0, head);
    writer_.write_elements(
        file, [&](const std::string& name, const auto& visit) { shares_.at(name).for_elements(visit); });
    file.close();
  });
  agree(communicator_, [&] {
    if (output) output->commit();
  });
}

}  // namespace meo::mpi
