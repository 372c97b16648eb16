// OwnedBuffer: growth and ownership.
#include "triton_fast/wire/buffer.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

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

TEST_CASE("buffer appends and grows") {
  OwnedBuffer buffer;
  for (int i = 0; i < 1000; ++i) {
    const auto byte = static_cast<std::uint8_t>(i);
    buffer.append(&byte, 1);
  }
  CHECK(buffer.size() == 1000);
  CHECK(buffer.capacity() < 4096);
  for (int i = 0; i < 1000; ++i) REQUIRE(buffer.data()[i] == static_cast<std::uint8_t>(i));
  buffer.append(nullptr, 0);
  CHECK(buffer.size() == 1000);
}

TEST_CASE("buffer reserves just that and never shrinks") {
  OwnedBuffer buffer;
  buffer.reserve(100);
  CHECK(buffer.capacity() == 100);
  CHECK(buffer.size() == 0);
  buffer.reserve(10);
  CHECK(buffer.capacity() == 100);
  buffer.set_size(100);
  buffer.clear();
  CHECK(buffer.size() == 0);
  CHECK(buffer.capacity() == 100);
}

TEST_CASE("buffer moves") {
  OwnedBuffer one;
  one.append("abc", 3);
  const std::uint8_t* const block = one.data();
  OwnedBuffer two = std::move(one);
  CHECK(two.data() == block);
  CHECK(two.size() == 3);
  CHECK(one.data() == nullptr);
  CHECK(one.size() == 0);
  CHECK(one.capacity() == 0);
  OwnedBuffer three;
  three.append("longer", 6);
  three = std::move(two);
  CHECK(three.data() == block);
  CHECK(std::memcmp(three.data(), "abc", 3) == 0);
  OwnedBuffer& self = three;
  three = std::move(self);
  CHECK(three.data() == block);
  CHECK(three.size() == 3);
}

TEST_CASE("buffer refuses sizes that overflow") {
  OwnedBuffer buffer;
  buffer.append("abc", 3);
  CHECK_THROWS_AS(buffer.append("abc", SIZE_MAX - 1), std::bad_alloc);
  CHECK(buffer.size() == 3);
  CHECK(std::memcmp(buffer.data(), "abc", 3) == 0);
}

#ifdef REALLOC_REMAPS
TEST_CASE("buffer grows without a second block") {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  OwnedBuffer buffer;
  for (const std::size_t size : {3 * kMiB, 64 * kMiB}) {  // small pages are enough for the first
    buffer.reserve(size);
    std::memset(buffer.data(), 'x', size);
    buffer.set_size(size);
  }
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  REQUIRE((statm >> pages));
  // Room for what is added, and not for a block of the new size beside the old one.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_AS, &before) == 0);
  rlimit tight = before;
  tight.rlim_cur = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + 48 * kMiB;
  REQUIRE(::setrlimit(RLIMIT_AS, &tight) == 0);
  bool grown = true;
  try {
    buffer.reserve(96 * kMiB);
  } catch (const std::bad_alloc&) {
    grown = false;
  }
  REQUIRE(::setrlimit(RLIMIT_AS, &before) == 0);
  CHECK(grown);
  CHECK(buffer.capacity() == 96 * kMiB);
  for (std::size_t i = 0; i < buffer.size(); i += 4096) REQUIRE(buffer.data()[i] == 'x');
}
#endif
