// Segment: POSIX shared memory, mapped. An object belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "triton_fast/error.hpp"
#include "triton_fast/process.hpp"

namespace triton_fast::shm {

/// @brief Puts memory of this process alone in place of mapped pages, with what is in them now.
///
/// For a forked child, where no other thread is at them. A mebibyte at a time.
/// @param address, size whole pages
/// @throws SharedMemoryError with ENOMEM; what was done until then stays done
void make_private(std::uintptr_t address, std::size_t size);

/// @brief Owns a mapping, and the name too of a segment that it created.
///
/// A forked child inherits the mapping, and never the name: only the process that created a segment
/// unlinks it. No descriptor stays open.
class Segment {
 public:
  /// @brief Creates a segment under a name that nobody can guess, for this user alone.
  ///
  /// All its pages are there when this returns: neither this process nor another that maps it can
  /// run out of memory by writing to it. If anything throws, nothing is left behind.
  ///
  /// @param size in bytes, at least 1
  /// @throws SharedMemoryError with ENOSPC if /dev/shm has no room for it, with ENOMEM if the
  /// machine has no memory for it
  static Segment create(std::size_t size);

  /// @brief Maps a part of somebody else's segment.
  /// @param offset where the part begins, in bytes; a multiple of the page size
  /// @throws SharedMemoryError if there is no such segment, or it is shorter
  static Segment attach(std::string name, std::size_t size, std::size_t offset);

  Segment() noexcept = default;
  Segment(Segment&& other) noexcept { swap(other); }
  Segment& operator=(Segment&& other) noexcept {
    Segment(std::move(other)).swap(*this);
    return *this;
  }
  ~Segment();

  /// Page-aligned; valid while the object lives.
  std::uint8_t* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  /// As shm_open() takes it, with its slash.
  const std::string& name() const noexcept { return name_; }
  /// Whether this object made it, and did not attach to it.
  bool created() const noexcept { return created_; }
  /// Whether this is a copy, in a forked child, of the parent's.
  bool inherited() const noexcept { return generation_ != process_generation(); }

  /// @brief Takes the name away; who has mapped the segment keeps it. Idempotent, and nothing
  /// happens in a forked child.
  /// @throws SharedMemoryError also if it was attached to: it belongs to who created it
  void unlink();

 private:
  Segment(std::string name, bool created) : name_(std::move(name)), created_(created) {}

  void swap(Segment& other) noexcept;
  void map(int descriptor, std::size_t size, std::size_t offset);

  std::string name_;
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  bool created_ = false;
  bool named_ = false;  // by us, and not unlinked yet
  std::uint64_t generation_ = process_generation();
};

}  // namespace triton_fast::shm
