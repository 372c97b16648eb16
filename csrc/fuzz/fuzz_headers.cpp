// Fuzzes HeaderBlocks with header lists of all sizes, and with anything else.
//
// An input is read as a row of choices: header lists with names and values of all sizes, short and
// long, how they are encoded (by nghttp2, or by ourselves), cut into frames and mixed with others,
// and how the frames come. What nghttp2's own decoder then makes of what HeaderBlocks passes on
// must be the lists that went in. With the first byte odd, the rest is fed as it is, at once and in
// pieces, to the same end.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "require.hpp"
#include "triton_fast/http2/header_blocks.hpp"
#include "triton_fast/http2/nghttp2_compat.hpp"

namespace {

using triton_fast::ConstBuffer;
using triton_fast::http2::HeaderBlockError;
using triton_fast::http2::HeaderBlocks;

using Fields = std::vector<std::pair<std::string, std::string>>;

/// The input, a byte at a time; zeros when it is at its end.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  bool more() const { return size_ != 0; }
  std::size_t next(std::size_t limit = 256) {
    if (size_ == 0) return 0;
    --size_;
    return *data_++ % limit;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

std::uint8_t* bytes_of(const std::string& text) {
  return reinterpret_cast<std::uint8_t*>(const_cast<char*>(text.data()));
}

/// One of a few texts, each made once: making them takes longer than all the rest.
const std::string& text_of(Choices& choices) {
  static constexpr std::size_t kSizes[] = {0,    1,     10,    100,   1000,  2000,
                                           4096, 16384, 16385, 40000, 65536, 70000};
  static std::string texts[std::size(kSizes)][4][4];
  const std::size_t size = choices.next(std::size(kSizes));
  const std::size_t kind = choices.next(4);
  const std::size_t seed = choices.next(4);
  std::string& text = texts[size][kind][seed];
  if (!text.empty()) return text;
  std::minstd_rand random(static_cast<unsigned>(seed) + 1);
  text.assign(kSizes[size], 'a');
  for (char& c : text) {
    if (kind == 1) c = static_cast<char>('!' + random() % 90);
    if (kind == 2) c = static_cast<char>(random());
    if (kind == 3) c = static_cast<char>(0x80 | random());
  }
  return text;
}

std::string frame(std::size_t type, std::size_t flags, const std::string& payload) {
  std::string out;
  for (int shift = 16; shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(payload.size() >> shift));
  }
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(flags));
  return out + std::string("\0\0\0\1", 4) + payload;
}

std::string deflate(nghttp2_hd_deflater* deflater, const Fields& fields, std::uint8_t flags) {
  std::vector<nghttp2_nv> list;
  for (const auto& [name, value] : fields) {
    list.push_back({bytes_of(name), bytes_of(value), name.size(), value.size(), flags});
  }
  std::string out(nghttp2_hd_deflate_bound(deflater, list.data(), list.size()), '\0');
  const auto size =
      nghttp2_hd_deflate_hd(deflater, bytes_of(out), out.size(), list.data(), list.size());
  REQUIRE(size >= 0);
  out.resize(static_cast<std::size_t>(size));
  return out;
}

/// An encoder that puts long values in the table too, which nghttp2's never does. No Huffman code.
class Encoder {
 public:
  std::string block(const Fields& fields, Choices& choices) {
    std::string out;
    for (const auto& field : fields) {
      const auto whole = std::find(table_.begin(), table_.end(), field);
      const auto named = std::find_if(table_.begin(), table_.end(), [&](const auto& entry) {
        return entry.first == field.first;
      });
      const std::size_t kind = choices.next(4);
      if (whole != table_.end() && kind != 3) {
        number(out, 7, 0x80, index_of(whole));
        continue;
      }
      const bool indexed = kind <= 1;
      const std::uint8_t first = indexed ? 0x40 : kind == 2 ? 0x10 : 0x00;
      number(out, indexed ? 6 : 4, first, named == table_.end() ? 0 : index_of(named));
      if (named == table_.end()) text(out, field.first);
      text(out, field.second);
      if (indexed) add(field);
    }
    return out;
  }

 private:
  using Table = std::deque<Fields::value_type>;
  static constexpr std::size_t kMost = 4096;

  std::size_t index_of(Table::const_iterator entry) const {
    return 62 + static_cast<std::size_t>(entry - table_.begin());
  }

  static void number(std::string& out, unsigned prefix, std::uint8_t first, std::size_t value) {
    const std::size_t most = (std::size_t{1} << prefix) - 1;
    out.push_back(static_cast<char>(first | std::min(value, most)));
    if (value < most) return;
    for (value -= most; value >= 0x80; value >>= 7) {
      out.push_back(static_cast<char>((value & 0x7f) | 0x80));
    }
    out.push_back(static_cast<char>(value));
  }

  static void text(std::string& out, const std::string& value) {
    number(out, 7, 0, value.size());
    out += value;
  }

  void add(const Fields::value_type& field) {
    const auto size_of = [](const Fields::value_type& entry) {
      return entry.first.size() + entry.second.size() + 32;
    };
    size_ += size_of(field);
    table_.push_front(field);
    while (size_ > kMost) {
      size_ -= size_of(table_.back());
      table_.pop_back();
    }
  }

  Table table_;
  std::size_t size_ = 0;
};

/// HEADERS and CONTINUATION, padded perhaps.
std::string frames_of(const std::string& block, Choices& choices) {
  static constexpr std::size_t kSizes[] = {16384, 100000, 1, 50, 3000, 16777000};
  std::size_t most = kSizes[choices.next(std::size(kSizes))];
  most = std::max(most, block.size() / 1000);
  std::string out;
  std::size_t at = 0;
  do {
    std::string part = block.substr(at, most);
    const bool first = at == 0;
    at += part.size();
    std::size_t flags = at == block.size() ? 4 : 0;
    if (first) {
      flags |= choices.next(2);
      const std::size_t extra = choices.next(8);
      std::string front;
      if (extra == 1 || extra == 3) {
        const std::size_t padding = choices.next();
        flags |= 8;
        front.push_back(static_cast<char>(padding));
        part += std::string(padding, '\0');
      }
      if (extra == 2 || extra == 3) {
        flags |= 0x20;
        front += "prior";
      }
      part = front + part;
    }
    out += frame(first ? 1 : 9, flags, part);
  } while (at < block.size());
  return out;
}

/// Everything that comes out, and the lists in it.
class Reader {
 public:
  Reader() { REQUIRE(nghttp2_hd_inflate_new(&inflater_) == 0); }
  ~Reader() { nghttp2_hd_inflate_del(inflater_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// @return whether it was taken
  bool feed(const std::uint8_t* data, std::size_t size, bool decodes) {
    const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size]);
    std::copy_n(data, size, copy.get());
    ConstBuffer bytes{copy.get(), size};
    try {
      for (ConstBuffer part; (part = blocks_.next(bytes)).size != 0;) {
        passed.append(reinterpret_cast<const char*>(part.data), part.size);
        if (decodes) decode();
      }
    } catch (const HeaderBlockError& raised) {
      error = raised.what();
      return false;
    }
    REQUIRE(bytes.size == 0);
    return true;
  }

  std::string passed;
  std::string error;
  std::vector<Fields> lists;

 private:
  void decode() {
    while (passed.size() - at_ >= 9) {
      const std::uint8_t* const head = bytes_of(passed) + at_;
      const std::size_t size = std::size_t{head[0]} << 16 | std::size_t{head[1]} << 8 | head[2];
      if (passed.size() - at_ - 9 < size) return;
      if (head[3] == 1) lists.emplace_back();
      if (head[3] == 1 || head[3] == 9) {
        // What was small enough has passed with its padding.
        const bool padded = (head[4] & 8) != 0;
        const std::size_t front = (padded ? 1 : 0) + ((head[4] & 0x20) != 0 ? 5 : 0);
        const std::size_t back = padded ? head[9] : 0;
        inflate(head + 9 + front, size - front - back, (head[4] & 4) != 0);
      }
      at_ += 9 + size;
    }
  }

  void inflate(const std::uint8_t* data, std::size_t size, bool last) {
    for (;;) {
      nghttp2_nv field{};
      int state = 0;
#if NGHTTP2_VERSION_NUM < 0x013c00
      const auto taken = nghttp2_hd_inflate_hd2(inflater_, &field, &state, data, size, last);
#else
      const auto taken = nghttp2_hd_inflate_hd3(inflater_, &field, &state, data, size, last);
#endif
      REQUIRE(taken >= 0);
      data += taken;
      size -= static_cast<std::size_t>(taken);
      if ((state & NGHTTP2_HD_INFLATE_EMIT) != 0) {
        std::string value(reinterpret_cast<const char*>(field.value), field.valuelen);
        if (const std::string* const whole = blocks_.taken_out(value)) value = *whole;
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

  HeaderBlocks blocks_;
  nghttp2_hd_inflater* inflater_ = nullptr;
  std::size_t at_ = 0;
};

void feed_lists(Choices& choices) {
  static const char* const kNames[] = {"grpc-message", ":status", "x-a", "x-b", "set-cookie"};
  // Long and short pieces take turns, so that heads are cut in two.
  static constexpr std::size_t kPieces[] = {1 << 20, 3000, 10000, 16384, 65545, 100000};
  const std::size_t pieces[] = {kPieces[choices.next(std::size(kPieces))], choices.next(20)};
  const bool ours = choices.next(2) == 1;
  Encoder encoder;
  nghttp2_hd_deflater* deflater = nullptr;
  REQUIRE(nghttp2_hd_deflate_new(&deflater, 4096) == 0);
  std::vector<Fields> lists;
  std::string sent = frame(4, 0, "");
  while (choices.more() && sent.size() < 200000) {
    if (choices.next(4) == 0) {
      static constexpr std::size_t kTypes[] = {0, 6, 8, 3, 0xbe};
      sent += frame(kTypes[choices.next(std::size(kTypes))], choices.next(),
                    std::string(choices.next(), 'x'));
    }
    if (!ours && choices.next(16) == 0) {
      nghttp2_hd_deflate_change_table_size(deflater, choices.next(17) * 256);
    }
    Fields fields;
    for (std::size_t count = choices.next(5); count != 0; --count) {
      fields.emplace_back(kNames[choices.next(std::size(kNames))], text_of(choices));
    }
    const auto flags = static_cast<std::uint8_t>(choices.next(2) * NGHTTP2_NV_FLAG_NO_INDEX);
    sent += frames_of(ours ? encoder.block(fields, choices) : deflate(deflater, fields, flags),
                      choices);
    lists.push_back(std::move(fields));
  }
  nghttp2_hd_deflate_del(deflater);
  Reader reader;
  std::size_t at = 0;
  for (std::size_t round = 0; at < sent.size(); ++round) {
    const std::size_t size = std::min(pieces[round % 2], sent.size() - at);
    REQUIRE(reader.feed(bytes_of(sent) + at, size, true));
    at += size;
  }
  REQUIRE(reader.lists == lists);
}

void feed_bytes(const std::uint8_t* data, std::size_t size, std::size_t piece) {
  const std::string settings = frame(4, 0, "");
  Reader whole;
  Reader pieces;
  whole.feed(bytes_of(settings), settings.size(), false);
  pieces.feed(bytes_of(settings), settings.size(), false);
  whole.feed(data, size, false);
  for (std::size_t at = 0; at < size; at += piece) {
    if (!pieces.feed(data + at, std::min(piece, size - at), false)) break;
  }
  // A head that has not come whole is held back, in one piece or in several.
  REQUIRE(whole.passed == pieces.passed && whole.error == pieces.error);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return -1;
  if (data[0] % 2 == 1) {
    feed_bytes(data + 2, size - 2, static_cast<std::size_t>(data[1]) % 32 + 1);
  } else {
    Choices choices(data + 1, size - 1);
    feed_lists(choices);
  }
  return 0;
}
