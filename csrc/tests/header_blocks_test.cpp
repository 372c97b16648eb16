// HeaderBlocks against nghttp2's own HPACK: what goes in comes out, of any size and in any pieces.
#include "triton_fast/http2/header_blocks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "http2_server.hpp"
#include "triton_fast/http2/nghttp2_compat.hpp"

namespace {

using test::Fields;
using test::frame;
using triton_fast::ConstBuffer;
using triton_fast::http2::decode_huffman;
using triton_fast::http2::HeaderBlockError;
using triton_fast::http2::HeaderBlocks;

const std::uint8_t* bytes_of(const std::string& text) {
  return reinterpret_cast<const std::uint8_t*>(text.data());
}

const std::string kSettings = frame(4, 0, 0, "");

/// HEADERS and CONTINUATION with at most `size` bytes each.
std::string frames(const std::string& block, std::size_t size, std::uint8_t flags = 0) {
  std::string out;
  std::size_t at = 0;
  do {
    const std::string part = block.substr(at, size);
    const bool first = at == 0;
    at += part.size();
    const bool last = at == block.size();
    out += frame(first ? 1 : 9, static_cast<std::uint8_t>((first ? flags : 0) | (last ? 4 : 0)), 1,
                 part);
  } while (at < block.size());
  return out;
}

class Deflater {
 public:
  Deflater() { nghttp2_hd_deflate_new(&deflater_, 4096); }
  ~Deflater() { nghttp2_hd_deflate_del(deflater_); }
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;

  std::string block(const Fields& fields, std::uint8_t flags) {
    std::vector<nghttp2_nv> list;
    for (const auto& [name, value] : fields) {
      list.push_back({const_cast<std::uint8_t*>(bytes_of(name)),
                      const_cast<std::uint8_t*>(bytes_of(value)), name.size(), value.size(),
                      flags});
    }
    std::string out(nghttp2_hd_deflate_bound(deflater_, list.data(), list.size()), '\0');
    const auto size = nghttp2_hd_deflate_hd(deflater_, reinterpret_cast<std::uint8_t*>(out.data()),
                                            out.size(), list.data(), list.size());
    REQUIRE(size >= 0);
    out.resize(static_cast<std::size_t>(size));
    return out;
  }

 private:
  nghttp2_hd_deflater* deflater_ = nullptr;
};

/// What nghttp2 makes of the frames that come out: fields, with the long values put back.
class Reader {
 public:
  Reader() { nghttp2_hd_inflate_new(&inflater_); }
  ~Reader() { nghttp2_hd_inflate_del(inflater_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  void feed(const std::string& sent, std::size_t piece) {
    for (std::size_t at = 0; at < sent.size(); at += piece) {
      // A block of its own, so that nothing beyond the piece can be read unnoticed.
      const std::size_t size = std::min(piece, sent.size() - at);
      const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size]);
      std::copy_n(bytes_of(sent) + at, size, copy.get());
      ConstBuffer bytes{copy.get(), size};
      for (ConstBuffer part; (part = blocks.next(bytes)).size != 0;) {
        passed.append(reinterpret_cast<const char*>(part.data), part.size);
        inflate();
      }
      REQUIRE(bytes.size == 0);
    }
  }

  HeaderBlocks blocks;
  std::string passed;
  std::vector<Fields> lists;
  std::vector<std::uint8_t> flags;
  std::size_t frames = 0;

 private:
  void inflate() {
    for (;;) {
      if (passed.size() - at_ < 9) return;
      const std::uint8_t* const head = bytes_of(passed) + at_;
      const std::size_t size = std::size_t{head[0]} << 16 | std::size_t{head[1]} << 8 | head[2];
      if (passed.size() - at_ - 9 < size) return;
      ++frames;
      if (head[3] == 1) {
        lists.emplace_back();
        flags.push_back(head[4]);
      }
      if (head[3] == 1 || head[3] == 9) inflate(head + 9, size, (head[4] & 4) != 0);
      at_ += 9 + size;
    }
  }

  void inflate(const std::uint8_t* data, std::size_t size, bool last) {
    for (;;) {
      nghttp2_nv field{};
      int state = 0;
#if NGHTTP2_VERSION_NUM < 0x013c00
      const auto taken =
          nghttp2_hd_inflate_hd2(inflater_, &field, &state, data, size, last ? 1 : 0);
#else
      const auto taken =
          nghttp2_hd_inflate_hd3(inflater_, &field, &state, data, size, last ? 1 : 0);
#endif
      REQUIRE(taken >= 0);
      data += taken;
      size -= static_cast<std::size_t>(taken);
      if ((state & NGHTTP2_HD_INFLATE_EMIT) != 0) {
        std::string value(reinterpret_cast<const char*>(field.value), field.valuelen);
        if (const std::string* const whole = blocks.taken_out(value)) value = *whole;
        lists.back().emplace_back(
            std::string(reinterpret_cast<const char*>(field.name), field.namelen), value);
      }
      if ((state & NGHTTP2_HD_INFLATE_FINAL) != 0) {
        nghttp2_hd_inflate_end_headers(inflater_);
        return;
      }
      if ((state & NGHTTP2_HD_INFLATE_EMIT) == 0 && size == 0) return;
    }
  }

  nghttp2_hd_inflater* inflater_ = nullptr;
  std::size_t at_ = 0;
};

std::string text_of(std::size_t size, unsigned seed, bool binary = false) {
  std::minstd_rand random(seed + 1);
  std::string text(size, '\0');
  for (char& c : text) c = static_cast<char>(binary ? random() : 'a' + random() % 26);
  return text;
}

}  // namespace

TEST_CASE("header blocks of any size in any pieces") {
  const std::vector<Fields> lists = {
      {{":status", "200"}, {"content-type", "application/grpc"}},
      {{"grpc-status", "13"}, {"grpc-message", text_of(100000, 1)}, {"x-last", "1"}},
      {{"x-last", "1"}, {"x-first", text_of(20000, 2)}, {"x-last", "2"}},
      {{"x-1", text_of(300000, 3)}, {"x-2", text_of(70000, 4)}, {"x-1", text_of(70000, 5, true)}},
      {{"x-last", "1"}, {"x-last", "2"}, {"x-medium", text_of(3000, 6)}},
      {{"x-medium", text_of(3000, 6)}, {"x-4", text_of(16385, 7)}, {"x-5", text_of(16384, 8)}},
      {{"x-medium", text_of(3000, 6)}, {"x-last", "1"}},
  };
  for (const std::uint8_t flags : {NGHTTP2_NV_FLAG_NONE, NGHTTP2_NV_FLAG_NO_INDEX}) {
    for (const std::size_t size : {std::size_t{5000}, std::size_t{16384}, std::size_t{1} << 20}) {
      Deflater deflater;
      std::string sent = kSettings;
      for (const Fields& fields : lists) {
        sent += frames(deflater.block(fields, flags), size);
        sent += frame(0, 0, 1, text_of(100, 9));
      }
      for (const std::size_t piece : {std::size_t{7}, std::size_t{10000}, std::size_t{10} << 20}) {
        Reader reader;
        reader.feed(sent, piece);
        CHECK(reader.lists == lists);
      }
    }
  }
}

TEST_CASE("header blocks that fit pass as they are") {
  Deflater deflater;
  const std::string small = deflater.block({{"x-1", text_of(60000, 1)}}, NGHTTP2_NV_FLAG_NONE);
  std::string sent = kSettings + frame(6, 0, 0, "12345678") + frames(small, 70000, 1);
  sent += frame(0, 1, 1, text_of(70000, 2)) + frame(0xbe, 0xff, 9, "odd") + frame(9, 0, 1, "");
  for (std::size_t piece = 1; piece < 30; ++piece) {
    Reader reader;
    reader.feed(sent, piece);
    CHECK((reader.passed == sent));
  }
}

TEST_CASE("header blocks keep flags and drop padding") {
  Deflater deflater;
  const std::string block = deflater.block({{"x-1", text_of(90000, 1)}}, NGHTTP2_NV_FLAG_NONE);
  const std::string with_padding =
      std::string("\x03") + std::string(5, 'p') + block + std::string(3, '\0');
  for (const int end : {0, 1}) {
    Reader reader;
    reader.feed(kSettings + frame(1, static_cast<std::uint8_t>(0x2c | end), 1, with_padding), 999);
    REQUIRE(reader.lists.size() == 1);
    CHECK((reader.lists[0][0].second == text_of(90000, 1)));
    CHECK((reader.flags[0] & ~4) == end);
  }
}

TEST_CASE("header blocks of empty frames") {
  Deflater deflater;
  const std::string block = deflater.block({{"x-1", "1"}}, NGHTTP2_NV_FLAG_NONE);
  std::string sent = kSettings + frame(1, 0, 1, "");
  for (int i = 0; i < 1000; ++i) sent += frame(9, 0, 1, "");
  sent += frame(9, 0, 1, block) + frame(9, 4, 1, "");
  Reader reader;
  reader.feed(sent, 100);
  CHECK(reader.lists == std::vector<Fields>{Fields({{"x-1", "1"}})});
  CHECK(reader.frames == 2);
  Reader empty;
  empty.feed(kSettings + frame(1, 0, 1, "") + frame(9, 4, 1, ""), 1);
  REQUIRE(empty.lists.size() == 1);
  CHECK(empty.lists[0].empty());
}

TEST_CASE("header blocks without end") {
  const auto reads = [](const std::string& more, std::size_t times) {
    Reader reader;
    reader.feed(kSettings + frame(1, 0, 1, "\x88\x88"), 100);
    for (std::size_t i = 0; i < times; ++i) reader.feed(more, more.size());
  };
  const std::string empty = frame(9, 0, 1, "");
  reads(empty, 60000);
  CHECK_THROWS_WITH_AS(reads(empty, 70000), doctest::Contains("16 MiB"), HeaderBlockError);
  const std::string full = frame(9, 0, 1, std::string(16384, '\x88'));
  reads(full, 1000);
  CHECK_THROWS_WITH_AS(reads(full, 1100), doctest::Contains("16 MiB"), HeaderBlockError);
  // Refused when it is announced, and not when it has come.
  CHECK_THROWS_WITH_AS(reads(frame(9, 0, 1, std::string(0xffffff, 'x')).substr(0, 9), 2),
                       doctest::Contains("16 MiB"), HeaderBlockError);
  // Only once they are decoded are these more than they may be.
  const std::string value = "a0xe";  // five bits, five, seven and five
  Deflater deflater;
  std::string text;
  while (text.size() < (std::size_t{17} << 20)) text += value;
  const std::string block = deflater.block({{"x", text}}, NGHTTP2_NV_FLAG_NO_INDEX);
  CHECK(block.size() < std::size_t{15} << 20);
  Reader reader;
  CHECK_THROWS_WITH_AS(reader.feed(kSettings + frames(block, 100000), 1 << 20),
                       doctest::Contains("16 MiB"), HeaderBlockError);
}

TEST_CASE("header blocks that are broken") {
  const auto read = [](const std::string& sent) {
    HeaderBlocks blocks;
    const std::string all = kSettings + sent;
    ConstBuffer bytes{bytes_of(all), all.size()};
    std::string passed;
    for (ConstBuffer part; (part = blocks.next(bytes)).size != 0;) {
      passed.append(reinterpret_cast<const char*>(part.data), part.size);
    }
    return passed;
  };
  CHECK_THROWS_WITH_AS(read(frame(5, 4, 1, std::string(4, '\0'))), doctest::Contains("pushes"),
                       HeaderBlockError);
  const std::string farewell(16384, '\0');
  CHECK((read(frame(7, 0, 0, farewell)) == kSettings + frame(7, 0, 0, farewell)));
  CHECK_THROWS_WITH_AS(read(frame(7, 0, 0, farewell + "x")), doctest::Contains("GOAWAY"),
                       HeaderBlockError);
  CHECK_THROWS_WITH_AS(read(frame(1, 0, 1, "") + frame(0, 0, 1, "")),
                       doctest::Contains("interrupted"), HeaderBlockError);
  CHECK_THROWS_WITH_AS(read(frame(1, 0, 1, "") + frame(9, 0, 3, "")),
                       doctest::Contains("interrupted"), HeaderBlockError);
  CHECK_THROWS_WITH_AS(read(frame(1, 8, 1, "\x05xxxx")), doctest::Contains("padding"),
                       HeaderBlockError);
  CHECK_THROWS_WITH_AS(read(frame(1, 8, 1, "")), doctest::Contains("padding"), HeaderBlockError);
  CHECK_THROWS_WITH_AS(read(frame(1, 0x20, 1, "1234")), doctest::Contains("padding"),
                       HeaderBlockError);
  // What cannot be read to its end is left to nghttp2, which says what is wrong.
  for (const char* end :
       {"\xff", "\xff\xff\xff\xff\xff\xff\xff\xff", "\x40", "\x3f\xff", "\x40\x7f"}) {
    const std::string block = "\x88" + std::string(end);
    CHECK(read(frame(1, 0, 1, "") + frame(9, 4, 1, block)) == kSettings + frame(1, 4, 1, block));
  }
  // A frame before the settings is for nghttp2 to refuse, and whatever follows it.
  HeaderBlocks blocks;
  const std::string odd = frame(1, 0, 1, "") + frame(5, 0, 0, "");
  ConstBuffer bytes{bytes_of(odd), odd.size()};
  CHECK(blocks.next(bytes).size == odd.size());
}

TEST_CASE("marks are only those that were made") {
  Deflater deflater;
  Reader reader;
  reader.feed(kSettings + frames(deflater.block({{"x", text_of(70000, 1)}}, 0), 16384), 1 << 20);
  CHECK(reader.blocks.taken_out("x") == nullptr);
  // The mark that nghttp2 was given, as a server might send it itself.
  const std::size_t at = reader.passed.find("a long value was here: ");
  const std::string mark = reader.passed.substr(at, 23 + 8 + 4096);
  const Fields forged = {{"x", mark}};
  reader.feed(frames(deflater.block(forged, NGHTTP2_NV_FLAG_NO_INDEX), 16384), 1 << 20);
  CHECK(reader.lists.back() == forged);
}

TEST_CASE("huffman code") {
  std::string all;
  for (int i = 0; i < 256; ++i) all += std::string(3, static_cast<char>(i));
  for (const std::string& text :
       {std::string(), std::string("a"), std::string("www.example.com"), all, text_of(5000, 3)}) {
    // nghttp2 codes a value if that makes it shorter.
    const std::string padded = text + std::string(6 * text.size() + 9, 'a');
    Deflater deflater;
    const std::string block = deflater.block({{"x", padded}}, NGHTTP2_NV_FLAG_NO_INDEX);
    // 0x10, the name, and then the value with its length.
    std::size_t at = 1 + 1 + ((static_cast<unsigned char>(block[1]) & 0x7f));
    CHECK((static_cast<unsigned char>(block[at]) & 0x80) != 0);
    std::size_t size = static_cast<unsigned char>(block[at++]) & 0x7f;
    if (size == 0x7f) {
      for (unsigned shift = 0;; shift += 7) {
        const auto octet = static_cast<unsigned char>(block[at++]);
        size += static_cast<std::size_t>(octet & 0x7f) << shift;
        if (octet < 0x80) break;
      }
    }
    CHECK(at + size == block.size());
    std::string decoded;
    REQUIRE(decode_huffman(std::string_view(block).substr(at), padded.size(), decoded));
    CHECK((decoded == padded));
    REQUIRE(!decode_huffman(std::string_view(block).substr(at), padded.size() - 1, decoded));
  }
  std::string decoded;
  REQUIRE(decode_huffman("", 0, decoded));
  CHECK(decoded.empty());
  // RFC 7541, C.4.1.
  REQUIRE(decode_huffman("\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", 99, decoded));
  CHECK(decoded == "www.example.com");
  REQUIRE(!decode_huffman("\xff", 99, decoded));  // padding of a whole byte
  REQUIRE(!decode_huffman("\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xfe", 99, decoded));
  REQUIRE(!decode_huffman("\xff\xff\xff\xff", 99, decoded));  // the end, which is never sent
  REQUIRE(!decode_huffman(std::string(1, '\0') + "\xff\xff", 99, decoded));
}
