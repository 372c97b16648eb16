// OwnedBuffer: a growable run of bytes with one owner, for payloads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace triton_fast::wire {

/// Uninitialised bytes from the C heap, aligned for any datatype. Unlike std::vector it does not
/// clear what it is about to be given, and growing lets the C library remap large blocks in place
/// of copying them. Move-only.
class OwnedBuffer {
 public:
  OwnedBuffer() = default;
  ~OwnedBuffer();
  OwnedBuffer(OwnedBuffer&& other) noexcept;
  OwnedBuffer& operator=(OwnedBuffer&& other) noexcept;
  OwnedBuffer(const OwnedBuffer&) = delete;
  OwnedBuffer& operator=(const OwnedBuffer&) = delete;

  std::uint8_t* data() noexcept { return data_; }
  const std::uint8_t* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t capacity() const noexcept { return capacity_; }

  /// @brief Makes room for `capacity` bytes in all. Strong guarantee.
  /// @throws std::bad_alloc
  void reserve(std::size_t capacity);

  /// @brief Copies bytes to the end, doubling the room when it runs out. Strong guarantee.
  ///
  /// What lies there already, in room that was reserved, is not copied.
  /// @throws std::bad_alloc
  void append(const void* bytes, std::size_t size);

  /// @brief Says how many bytes count. `size` must not pass capacity().
  void set_size(std::size_t size) noexcept { size_ = size; }

  void clear() noexcept { size_ = 0; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

/// @brief Says that a block from malloc() is about to be filled. All of it, or all but its front.
///
/// Large memory then comes in huge pages, where the kernel has them: filling it takes a page fault
/// for every 2 MiB in place of every 4 KiB. What numpy does for its own arrays. What is filled
/// already stays as it is. Source: madvise(2).
void expect_to_fill(void* memory, std::size_t size) noexcept;

}  // namespace triton_fast::wire
