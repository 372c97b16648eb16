// OwnedBuffer on malloc and realloc.
#include "triton_fast/wire/buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace triton_fast::wire {

OwnedBuffer::~OwnedBuffer() { std::free(data_); }

OwnedBuffer::OwnedBuffer(OwnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)) {}

OwnedBuffer& OwnedBuffer::operator=(OwnedBuffer&& other) noexcept {
  if (this != &other) {
    std::free(data_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
  }
  return *this;
}

void OwnedBuffer::reserve(std::size_t capacity) {
  if (capacity <= capacity_) return;
  void* grown = std::realloc(data_, capacity);
  if (grown == nullptr) throw std::bad_alloc();
  data_ = static_cast<std::uint8_t*>(grown);
  capacity_ = capacity;
  expect_to_fill(data_, capacity_);
}

void expect_to_fill(void* memory, std::size_t size) noexcept {
#ifdef MADV_HUGEPAGE
  constexpr std::size_t kLarge = std::size_t{4} << 20;
  if (size < kLarge) return;
  constexpr std::uintptr_t kPage = 4096;
  // With the pages at both ends, which a large block has to itself: advice for a part of it would
  // make two mappings of one, which the C library cannot remap any more. realloc() then copies.
  const auto begin = reinterpret_cast<std::uintptr_t>(memory) & ~(kPage - 1);
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + size + kPage - 1) & ~(kPage - 1);
  // Advice only: a kernel that does not take it makes small pages.
  static_cast<void>(::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#else
  static_cast<void>(memory), static_cast<void>(size);
#endif
}

void OwnedBuffer::append(const void* bytes, std::size_t size) {
  if (size == 0) return;
  if (size > capacity_ - size_) {
    if (size > SIZE_MAX / 2 - size_) throw std::bad_alloc();
    reserve(std::max({size_ + size, 2 * capacity_, std::size_t{64}}));
  }
  if (bytes != data_ + size_) std::memcpy(data_ + size_, bytes, size);
  size_ += size;
}

}  // namespace triton_fast::wire
