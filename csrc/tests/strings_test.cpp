// BYTES tensors and UTF-8.
#include "triton_fast/wire/strings.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "triton_fast/error.hpp"

namespace {

using namespace triton_fast;
using namespace triton_fast::wire;

ConstBuffer view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string text_of(const OwnedBuffer& buffer) {
  return {reinterpret_cast<const char*>(buffer.data()), buffer.size()};
}

std::string prefixed(const std::string& element) {
  std::string out(4, '\0');
  for (int i = 0; i < 4; ++i) {
    out[static_cast<std::size_t>(i)] = static_cast<char>(element.size() >> 8 * i);
  }
  return out + element;
}

std::string encoded_ucs4(const std::vector<std::uint32_t>& characters, std::size_t width) {
  const OwnedBuffer encoded = encode_fixed_ucs4(
      reinterpret_cast<const std::uint8_t*>(characters.data()), characters.size() / width, width);
  REQUIRE(encoded.size() <= encoded.capacity());
  return text_of(encoded);
}

}  // namespace

TEST_CASE("elements encode") {
  const std::string elements[] = {"", std::string("a\0b", 3), std::string(300, 'x'), "größer"};
  std::vector<ConstBuffer> views;
  std::string expected;
  for (const std::string& element : elements) {
    views.push_back(view(element));
    expected += prefixed(element);
  }
  CHECK(text_of(encode_elements(views.data(), views.size())) == expected);
  CHECK(encode_elements(nullptr, 0).size() == 0);

  std::size_t count = 0;
  REQUIRE(count_elements(view(expected), count));
  CHECK(count == 4);
  ConstBuffer rest = view(expected);
  for (const std::string& element : elements) {
    const ConstBuffer taken = next_element(rest);
    CHECK(taken.size == element.size());
    CHECK((taken.size == 0 || std::memcmp(taken.data, element.data(), taken.size) == 0));
  }
  CHECK(rest.size == 0);
}

TEST_CASE("elements of four gibibytes are refused") {
  // The size alone is looked at: there is no memory behind it.
  const std::uint8_t byte = 0;
  const ConstBuffer elements[] = {{&byte, 1}, {&byte, std::size_t{1} << 32}};
  CHECK_THROWS_WITH_AS(encode_elements(elements, 2),
                       doctest::Contains("element 1 has 4294967296 bytes"), TensorError);
}

TEST_CASE("count stops at the first broken element") {
  const std::string whole = prefixed("ab") + prefixed("") + prefixed("cde");
  std::size_t count = 0;
  REQUIRE(count_elements({nullptr, 0}, count));
  CHECK(count == 0);
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    const bool at_an_end = size == 0 || size == 6 || size == 10 || size == whole.size();
    REQUIRE(count_elements({view(whole).data, size}, count) == at_an_end);
    CHECK(count == (size < 6 ? 0u : size < 10 ? 1u : size < whole.size() ? 2u : 3u));
  }
  REQUIRE(!count_elements(view("\xff\xff\xff\xff"), count));
  REQUIRE(!count_elements(view(std::string("\x01\0\0\0", 4)), count));
}

TEST_CASE("fixed bytes lose their padding only") {
  const std::string array("ab\0\0\0a\0b\0\0\0\0", 12);
  const OwnedBuffer encoded = encode_fixed_bytes(view(array).data, 3, 4);
  CHECK(text_of(encoded) == prefixed("ab") + prefixed(std::string("\0a\0b", 4)) + prefixed(""));
  CHECK(encode_fixed_bytes(nullptr, 0, 4).size() == 0);
}

TEST_CASE("fixed ucs4 becomes utf8") {
  // One character at each end of each length.
  CHECK(encoded_ucs4({0x41, 0x7f, 0x80, 0x7ff, 0x800, 0xffff, 0x10000, 0x10ffff}, 8) ==
        prefixed("A\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
  CHECK(encoded_ucs4({0, 'a', 'b', 0, 0, 0}, 3) == prefixed(std::string("\0ab", 3)) + prefixed(""));
  CHECK(encode_fixed_ucs4(nullptr, 0, 3).size() == 0);
}

TEST_CASE("fixed ucs4 may be unaligned") {
  std::uint8_t bytes[9] = {};
  const std::uint32_t characters[] = {0xe9, 'x'};
  std::memcpy(bytes + 1, characters, 8);
  CHECK(text_of(encode_fixed_ucs4(bytes + 1, 2, 1)) == prefixed("\xc3\xa9") + prefixed("x"));
}

TEST_CASE("fixed ucs4 refuses what utf8 cannot hold") {
  CHECK_THROWS_WITH_AS(encoded_ucs4({'a', 'b', 0xd800, 'c'}, 2),
                       doctest::Contains("element 1 holds U+D800"), TensorError);
  CHECK_THROWS_WITH_AS(encoded_ucs4({0xdfff}, 1), doctest::Contains("U+DFFF"), TensorError);
  CHECK_THROWS_WITH_AS(encoded_ucs4({0x110000}, 1), doctest::Contains("U+110000"), TensorError);
  CHECK_THROWS_WITH_AS(encoded_ucs4({0xffffffff}, 1), doctest::Contains("U+FFFFFFFF"), TensorError);
  CHECK(encoded_ucs4({0xd7ff, 0xe000}, 1) == prefixed("\xed\x9f\xbf") + prefixed("\xee\x80\x80"));
}

TEST_CASE("utf8 table") {
  const char* const good[] = {"",
                              "plain",
                              "größer",
                              "\xc2\x80",
                              "\xdf\xbf",
                              "\xe0\xa0\x80",
                              "\xed\x9f\xbf",
                              "\xee\x80\x80",
                              "\xef\xbf\xbf",
                              "\xf0\x90\x80\x80",
                              "\xf4\x8f\xbf\xbf"};
  for (const char* text : good) REQUIRE(is_utf8(view(text)));
  CHECK(is_utf8(view(std::string("a\0b", 3))));
  const char* const bad[] = {"\x80",              // continues nothing
                             "\xc3",              // ends too soon
                             "\xe2\x82",          //
                             "\xf0\x9f\x98",      //
                             "\xc3(",             // is not continued
                             "\xe2\x82(",         //
                             "\xc0\x80",          // overlong
                             "\xc1\xbf",          //
                             "\xe0\x9f\xbf",      //
                             "\xf0\x8f\xbf\xbf",  //
                             "\xed\xa0\x80",      // surrogates
                             "\xed\xbf\xbf",      //
                             "\xf4\x90\x80\x80",  // past the last character
                             "\xf5\x80\x80\x80",  //
                             "\xff"};
  for (const char* text : bad) {
    CHECK(!is_utf8(view(text)));
    CHECK(!is_utf8(view(std::string("before ") + text)));
    CHECK(!is_utf8(view(text + std::string(" after"))));
  }
}
