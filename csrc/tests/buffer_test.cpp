// OwnedBuffer: growth and ownership.
#include "triton_fast/wire/buffer.hpp"

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "check.hpp"

namespace {

using triton_fast::wire::OwnedBuffer;

}  // namespace

TEST(buffer_appends_and_grows) {
  OwnedBuffer buffer;
  for (int i = 0; i < 1000; ++i) {
    const auto byte = static_cast<std::uint8_t>(i);
    buffer.append(&byte, 1);
  }
  CHECK(buffer.size() == 1000 && buffer.capacity() < 4096);
  for (int i = 0; i < 1000; ++i) CHECK(buffer.data()[i] == static_cast<std::uint8_t>(i));
  buffer.append(nullptr, 0);
  CHECK(buffer.size() == 1000);
}

TEST(buffer_reserves_just_that_and_never_shrinks) {
  OwnedBuffer buffer;
  buffer.reserve(100);
  CHECK(buffer.capacity() == 100 && buffer.size() == 0);
  buffer.reserve(10);
  CHECK(buffer.capacity() == 100);
  buffer.set_size(100);
  buffer.clear();
  CHECK(buffer.size() == 0 && buffer.capacity() == 100);
}

TEST(buffer_moves) {
  OwnedBuffer one;
  one.append("abc", 3);
  const std::uint8_t* const block = one.data();
  OwnedBuffer two = std::move(one);
  CHECK(two.data() == block && two.size() == 3);
  CHECK(one.data() == nullptr && one.size() == 0 && one.capacity() == 0);
  OwnedBuffer three;
  three.append("longer", 6);
  three = std::move(two);
  CHECK(three.data() == block && std::memcmp(three.data(), "abc", 3) == 0);
  OwnedBuffer& self = three;
  three = std::move(self);
  CHECK(three.data() == block && three.size() == 3);
}

TEST(buffer_refuses_sizes_that_overflow) {
  OwnedBuffer buffer;
  buffer.append("abc", 3);
  CHECK_THROWS(std::bad_alloc, "", buffer.append("abc", SIZE_MAX - 1));
  CHECK(buffer.size() == 3 && std::memcmp(buffer.data(), "abc", 3) == 0);
}
