// OwnedBuffer on malloc and realloc.
#include "triton_fast/wire/buffer.hpp"

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
}

void OwnedBuffer::append(const void* bytes, std::size_t size) {
  if (size == 0) return;
  if (size > capacity_ - size_) {
    if (size > SIZE_MAX / 2 - size_) throw std::bad_alloc();
    reserve(std::max({size_ + size, 2 * capacity_, std::size_t{64}}));
  }
  std::memcpy(data_ + size_, bytes, size);
  size_ += size;
}

}  // namespace triton_fast::wire
