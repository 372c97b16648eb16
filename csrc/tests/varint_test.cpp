// Varints and tags, written.
#include "triton_fast/wire/varint.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

namespace {

using namespace triton_fast::wire;

std::string encoded(std::uint64_t value) {
  std::string out;
  append_varint(out, value);
  return out;
}

}  // namespace

TEST_CASE("varint edges") {
  CHECK(encoded(0) == std::string(1, '\0'));
  CHECK(encoded(1) == "\x01");
  CHECK(encoded(127) == "\x7f");
  CHECK(encoded(128) == "\x80\x01");
  CHECK(encoded(300) == "\xac\x02");
  CHECK(encoded(0xffffffff) == "\xff\xff\xff\xff\x0f");
  CHECK(encoded(UINT64_MAX) == "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
}

TEST_CASE("varint size is what is written") {
  for (unsigned bits = 0; bits < 64; ++bits) {
    const std::uint64_t power = std::uint64_t{1} << bits;
    for (const std::uint64_t value : {power - 1, power, power + 1}) {
      CHECK(encoded(value).size() == varint_size(value));
    }
  }
  CHECK(varint_size(UINT64_MAX) == 10);
  static_assert(varint_size(127) == 1 && varint_size(128) == 2);
}

TEST_CASE("tags hold field and wire type") {
  std::string out;
  append_tag(out, 1, kVarintType);
  append_tag(out, 16, kLengthType);
  append_tag(out, (1u << 29) - 1, kFixed32Type);
  CHECK(out == std::string("\x08\x82\x01\xfd\xff\xff\xff\x0f"));
}

TEST_CASE("length delimited") {
  std::string out;
  append_length_delimited(out, 2, std::string("a\0b", 3));
  append_length_delimited(out, 3, "");
  CHECK(out == std::string("\x12\x03"
                           "a\0b\x1a\0",
                           7));
}
