// OwnedBuffer: growth and ownership.
#include "triton_fast/wire/buffer.hpp"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "check.hpp"

// Sanitizers have a realloc() of their own, which always copies.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OTHER_REALLOC 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define OTHER_REALLOC 1
#endif
#endif
#if defined(__linux__) && !defined(OTHER_REALLOC)
#include <sys/resource.h>
#include <unistd.h>
#define REALLOC_REMAPS 1
#endif

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

#ifdef REALLOC_REMAPS
TEST(buffer_grows_without_a_second_block) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  OwnedBuffer buffer;
  for (const std::size_t size : {3 * kMiB, 64 * kMiB}) {  // small pages are enough for the first
    buffer.reserve(size);
    std::memset(buffer.data(), 'x', size);
    buffer.set_size(size);
  }
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  CHECK(statm >> pages);
  // Room for what is added, and not for a block of the new size beside the old one.
  rlimit before{};
  CHECK(::getrlimit(RLIMIT_AS, &before) == 0);
  rlimit tight = before;
  tight.rlim_cur = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + 48 * kMiB;
  CHECK(::setrlimit(RLIMIT_AS, &tight) == 0);
  bool grown = true;
  try {
    buffer.reserve(96 * kMiB);
  } catch (const std::bad_alloc&) {
    grown = false;
  }
  CHECK(::setrlimit(RLIMIT_AS, &before) == 0);
  CHECK(grown && buffer.capacity() == 96 * kMiB);
  for (std::size_t i = 0; i < buffer.size(); i += 4096) CHECK(buffer.data()[i] == 'x');
}
#endif
