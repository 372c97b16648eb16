// FrameHeads: what is DATA and how much of it is left, and where it stops.
#include "triton_fast/http2/frame_heads.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "http2_server.hpp"

namespace {

using test::frame;
using triton_fast::http2::FrameHeads;
using triton_fast::http2::kMostHeaderBytes;

/// Walks over bytes of which nothing beyond the piece may be read. @return how many passed
std::size_t walk(FrameHeads& heads, const std::string& bytes, std::size_t piece) {
  std::size_t passed = 0;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    const std::size_t size = std::min(piece, bytes.size() - at);
    const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size]);
    std::copy_n(bytes.data() + at, size, copy.get());
    const std::size_t sound = heads.walk({copy.get(), size});
    passed += sound;
    if (sound != size) break;
  }
  return passed;
}

/// How many heads of that frame fit until it has a fault.
std::size_t count_until_fault(const std::string& more) {
  FrameHeads heads;
  std::size_t count = 0;
  REQUIRE(walk(heads, frame(1, 0, 1, ""), 9) == 9);
  while (walk(heads, more, more.size()) == more.size()) REQUIRE(++count < 100000);
  CHECK(heads.fault() == FrameHeads::Fault::kLongBlock);
  CHECK(heads.stream_id() == 1);
  return count;
}

}  // namespace

TEST_CASE("frame heads know what is left of data") {
  const std::string before = frame(4, 0, 0, "") + frame(0, 0, 3, "") + frame(1, 4, 5, "\x88");
  const std::string data = frame(0, 1, 7, std::string(70000, 'x'));
  for (const std::size_t piece : {1u, 4u, 9u, 10u, 100000u}) {
    FrameHeads heads;
    CHECK(walk(heads, before, piece) == before.size());
    CHECK(heads.data_left() == 0);
    CHECK(walk(heads, data.substr(0, 8), piece) == 8);
    CHECK(heads.data_left() == 0);
    CHECK(walk(heads, data.substr(8, 1001), piece) == 1001);
    CHECK(heads.data_left() == 69000);
    CHECK(heads.stream_id() == 7);
    CHECK(walk(heads, data.substr(1009), piece) == 69000);
    CHECK(heads.data_left() == 0);
    // What is padded, or no data, looks the same and is not.
    CHECK(walk(heads, frame(0, 8, 7, std::string(50, '\1')).substr(0, 30), piece) == 30);
    CHECK(heads.data_left() == 0);
  }
}

TEST_CASE("frame heads stop at what nghttp2 would take without end") {
  const std::string sound = frame(7, 0, 0, std::string(16384, '\0')) + frame(9, 4, 1, "");
  const std::pair<std::string, FrameHeads::Fault> cases[] = {
      {frame(5, 4, 1, std::string(4, '\0')), FrameHeads::Fault::kPush},
      {frame(7, 0, 0, std::string(16385, '\0')), FrameHeads::Fault::kLongGoaway},
      {frame(1, 4, 1, std::string(kMostHeaderBytes, 'x')), FrameHeads::Fault::kLongBlock},
  };
  for (const auto& [bad, fault] : cases) {
    for (const std::size_t piece : {1u, 1000u, 1000000u}) {
      FrameHeads heads;
      // In pieces, a part of its head has gone by before it is known.
      const std::size_t passed = walk(heads, sound + bad, piece);
      CHECK(passed >= sound.size());
      CHECK(passed < sound.size() + 9);
      CHECK((piece != 1000000 || passed == sound.size()));
      CHECK(heads.fault() == fault);
    }
  }
}

TEST_CASE("frame heads stop at header blocks without end") {
  CHECK(count_until_fault(frame(9, 0, 1, "")) == kMostHeaderBytes / 9 - 1);
  CHECK(count_until_fault(frame(9, 0, 1, std::string(16384, 'x'))) == 7);
  // Blocks that end may follow each other for ever.
  FrameHeads heads;
  const std::string block = frame(1, 0, 1, std::string(1000, 'x')) + frame(9, 4, 1, "");
  for (int i = 0; i < 1000; ++i) REQUIRE(walk(heads, block, 100) == block.size());
}
