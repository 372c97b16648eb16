// What a protobuf message has in it, counted without its schema.
#include "triton_fast/wire/entries.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <string>

#include "triton_fast/wire/varint.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;

std::string field(std::uint32_t number, const std::string& value) {
  std::string out;
  append_length_delimited(out, number, value);
  return out;
}

std::string times(std::size_t count, const std::string& text) {
  std::string all;
  for (std::size_t i = 0; i < count; ++i) all += text;
  return all;
}

std::size_t entries(const std::string& message, std::size_t most = 1000000) {
  return count_entries({reinterpret_cast<const std::uint8_t*>(message.data()), message.size()},
                       most);
}

}  // namespace

TEST_CASE("entries of a message and of those in it") {
  CHECK(entries("") == 0);
  CHECK(entries(times(1000, field(1, ""))) == 1000);
  CHECK(entries(field(1, times(1000, field(7, "")))) == 1001);
  CHECK(entries(times(10, field(1, times(10, field(2, field(3, "")))))) == 210);
  // Numbers of all kinds are none, and nor is what is in a group.
  const std::string numbers("\x08\x96\x01\x11........\x1d....\x0b\x08\x01\x0c", 21);
  CHECK(entries(numbers) == 0);
  CHECK(entries(numbers + field(1, numbers)) == 1);
  // Where the messages of the protocol end, and not on the word of a peer for ever.
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested = field(1, nested);
  CHECK(entries(nested) == 9);
}

TEST_CASE("entries are counted as far as somebody wants to know") {
  const std::string many = times(100, field(1, times(100, field(1, ""))));
  CHECK(entries(many) == 10100);
  CHECK(entries(many, 10100) == 10100);
  CHECK(entries(many, 10099) == 10100);
  CHECK(entries(many, 5000) == 5001);
  CHECK(entries(many, 0) == 1);
}

TEST_CASE("entries of what is broken are those before that") {
  const std::string sound = times(3, field(1, ""));
  for (const std::string& broken : {
           std::string("\xff"),
           std::string("\x0a"),
           std::string("\x0a\x05one"),
           std::string(11, '\x80'),
           std::string("\x0f"),
           std::string("\0\0", 2),
           std::string("\x09short"),
           std::string("\x08\xff"),
       }) {
    CHECK(entries(sound + broken) <= 4);
    CHECK(entries(sound + broken) >= 3);
    CHECK(entries(broken) <= 1);
  }
}
