// A walk over frames, and over the header fields of the blocks that nghttp2 might refuse.
//
// Source: RFC 9113 sections 4.1, 6.2, 6.6, 6.10; RFC 7541 sections 4.4, 5, 6 and appendix B.
#include "triton_fast/http2/header_blocks.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace triton_fast::http2 {
namespace {

constexpr std::size_t kHead = 9;
constexpr std::uint8_t kData = 0;
constexpr std::uint8_t kHeaders = 1;
constexpr std::uint8_t kSettings = 4;
constexpr std::uint8_t kPushPromise = 5;
constexpr std::uint8_t kGoaway = 7;
constexpr std::uint8_t kContinuation = 9;
constexpr std::uint8_t kEndHeaders = 0x4;
constexpr std::uint8_t kPadded = 0x8;
constexpr std::uint8_t kPriority = 0x20;

// No value that nghttp2 refuses fits in a frame of this size.
constexpr std::size_t kPlainFrame = std::size_t{64} << 10;
// Longer than any entry of the dynamic table can be: we announce no table but the default one.
constexpr std::size_t kLongValue = std::size_t{16} << 10;
constexpr std::size_t kTableSize = 4096;
// What a peer may always send, whether or not it has seen our settings.
constexpr std::size_t kFrameSize = 16384;
// Of one block; frames of 256 bytes can still make kMostHeaderBytes.
constexpr std::size_t kMostFrames = std::size_t{64} << 10;

constexpr std::string_view kMark = "a long value was here: ";
constexpr std::size_t kDigits = 8;

// ---- Huffman code -------------------------------------------------------------------------------

constexpr std::size_t kSymbols = 257;  // the last one is the end, which is never sent
constexpr std::size_t kLongestCode = 30;
constexpr std::uint8_t kCodeLengths[kSymbols] = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6,  10, 10, 12, 13, 6,  8,  11, 10, 10, 8,  11, 8,  6,  6,  6,
    5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8,  15, 6,  12, 10, 13, 6,  7,  7,  7,  7,  7,  7,
    7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8,  13, 19, 13, 14, 6,
    15, 5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,  5,  6,  7,  7,
    7,  7,  7,  15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30};

// The code is canonical: codes of one length follow each other, in the order of their symbols, and
// those of the next length follow them. Bits are held to the left of a 32-bit word.
struct Length {
  std::uint8_t bits = 0;
  std::uint32_t first = 0;     // the first code of this length
  std::uint64_t beyond = 0;    // the first word that is not of this length or a shorter one
  std::uint16_t position = 0;  // of the first code's symbol
};

struct Code {
  std::array<std::uint16_t, kSymbols> symbols{};
  std::array<Length, kLongestCode> lengths{};
  std::size_t count = 0;
};

constexpr Code make_code() {
  Code code;
  std::uint64_t next = 0;
  std::uint16_t position = 0;
  for (std::size_t bits = 1; bits <= kLongestCode; ++bits) {
    const std::uint16_t before = position;
    for (std::uint16_t symbol = 0; symbol < kSymbols; ++symbol) {
      if (kCodeLengths[symbol] == bits) code.symbols[position++] = symbol;
    }
    if (position == before) continue;
    Length& length = code.lengths[code.count++];
    length.bits = static_cast<std::uint8_t>(bits);
    length.first = static_cast<std::uint32_t>(next);
    length.position = before;
    next += static_cast<std::uint64_t>(position - before) << (32 - bits);
    length.beyond = next;
  }
  return code;
}

constexpr Code kCode = make_code();
static_assert(kCode.lengths[kCode.count - 1].beyond == std::uint64_t{1} << 32,
              "the lengths make a code that is complete");

// ---- Fields -------------------------------------------------------------------------------------

std::uint32_t read_number(const std::uint8_t* bytes, std::size_t size) {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < size; ++i) number = number << 8 | bytes[i];
  return number;
}

void append_number(std::string& out, std::uint32_t number, std::size_t size) {
  while (size-- != 0) out.push_back(static_cast<char>(number >> (8 * size)));
}

/// Reads a block's fields one after the other.
class Walk {
 public:
  explicit Walk(std::string_view block) : block_(block) {}

  std::size_t at() const noexcept { return at_; }
  bool more() const noexcept { return at_ < block_.size(); }
  std::uint8_t peek() const noexcept { return static_cast<std::uint8_t>(block_[at_]); }

  /// RFC 7541, 5.1. @return false if it is cut off or too large to be anything
  bool integer(unsigned prefix, std::size_t& value) {
    if (!more()) return false;
    const std::size_t most = (std::size_t{1} << prefix) - 1;
    value = peek() & most;
    ++at_;
    if (value < most) return true;
    for (unsigned shift = 0; shift < 32; shift += 7) {
      if (!more()) return false;
      const std::uint8_t octet = peek();
      ++at_;
      value += static_cast<std::size_t>(octet & 0x7f) << shift;
      if ((octet & 0x80) == 0) return true;
    }
    return false;
  }

  /// RFC 7541, 5.2.
  bool text(bool& huffman, std::string_view& value) {
    if (!more()) return false;
    huffman = (peek() & 0x80) != 0;
    std::size_t size = 0;
    if (!integer(7, size) || size > block_.size() - at_) return false;
    value = block_.substr(at_, size);
    at_ += size;
    return true;
  }

 private:
  std::string_view block_;
  std::size_t at_ = 0;
};

}  // namespace

bool decode_huffman(std::string_view encoded, std::size_t most, std::string& decoded) {
  decoded.clear();
  decoded.reserve(std::min(most, encoded.size() + encoded.size() / 2));
  std::uint64_t window = 0;  // to the left
  unsigned bits = 0;         // of it that count
  std::size_t at = 0;
  for (;;) {
    while (bits <= 56 && at < encoded.size()) {
      window |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(encoded[at++])) << (56 - bits);
      bits += 8;
    }
    if (bits == 0) return true;
    const auto word = static_cast<std::uint32_t>(window >> 32);
    const Length* length = kCode.lengths.data();
    while (word >= length->beyond) ++length;
    if (length->bits > bits) {
      // What is left must be padding: the beginning of a code that is all ones.
      return bits < 8 && (window >> (64 - bits)) == (std::uint64_t{1} << bits) - 1;
    }
    const std::uint16_t symbol =
        kCode.symbols[length->position + ((word - length->first) >> (32 - length->bits))];
    if (symbol == kSymbols - 1 || decoded.size() == most) return false;
    decoded.push_back(static_cast<char>(symbol));
    window <<= length->bits;
    bits -= length->bits;
  }
}

ConstBuffer HeaderBlocks::next(ConstBuffer& bytes) {
  const auto take = [&bytes](std::size_t size) {
    const ConstBuffer front{bytes.data, size};
    bytes.data += size;
    bytes.size -= size;
    return front;
  };
  if (!rewritten_.empty()) {
    rewritten_ = {};  // and its memory
    values_ = {};
  }
  while (bytes.size != 0) {
    if (const std::size_t size = passing(bytes); size != 0) return take(size);
    if (left_ != 0) {
      const ConstBuffer part = take(std::min(left_, bytes.size));
      block_.append(reinterpret_cast<const char*>(part.data), part.size);
      left_ -= part.size;
    } else {
      const ConstBuffer part = take(std::min(kHead - head_size_, bytes.size));
      std::memcpy(head_ + head_size_, part.data, part.size);
      head_size_ += part.size;
      if (head_size_ < kHead) break;
      head_size_ = 0;
      if (!gathering_ && passes(head_)) {
        pass(head_);
        return {head_, kHead};
      }
      begin_frame(head_);
    }
    if (left_ == 0) end_frame();
    if (!rewritten_.empty()) {
      return {reinterpret_cast<const std::uint8_t*>(rewritten_.data()), rewritten_.size()};
    }
  }
  return {};
}

/// How much of `bytes` is nghttp2's as it is. A frame's head is left until it has come whole.
std::size_t HeaderBlocks::passing(ConstBuffer bytes) {
  if (gathering_ || head_size_ != 0) return 0;
  std::size_t at = 0;
  while (at < bytes.size) {
    if (foreign_) return bytes.size;
    if (left_ != 0) {
      const std::size_t size = std::min(left_, bytes.size - at);
      at += size;
      left_ -= size;
    } else {
      if (bytes.size - at < kHead || !passes(bytes.data + at)) break;
      pass(bytes.data + at);
      at += kHead;
    }
  }
  return at;
}

bool HeaderBlocks::passes(const std::uint8_t* head) {
  const std::uint8_t type = head[3];
  if (first_) {
    first_ = false;
    foreign_ = type != kSettings;
  }
  if (foreign_) return true;
  if (type == kPushPromise) return false;
  // nghttp2 takes the memory for all of it when it begins.
  if (type == kGoaway && read_number(head, 3) > kFrameSize) return false;
  return type != kHeaders || (read_number(head + 5, 4) & 0x7fffffff) == 0 ||
         ((head[4] & kEndHeaders) != 0 && read_number(head, 3) <= kPlainFrame);
}

/// Takes note of a frame that is nghttp2's as it is.
void HeaderBlocks::pass(const std::uint8_t* head) {
  left_ = read_number(head, 3);
  const bool plain = head[3] == kData && (head[4] & kPadded) == 0;
  data_stream_id_ = plain ? static_cast<std::int32_t>(read_number(head + 5, 4) & 0x7fffffff) : 0;
}

void HeaderBlocks::begin_frame(const std::uint8_t* head) {
  if (!gathering_ && head[3] == kPushPromise) {
    throw HeaderBlockError("it pushes, and was told not to", 0, false);
  }
  if (!gathering_ && head[3] == kGoaway) {
    throw HeaderBlockError("a GOAWAY of its is longer than 16 KiB", 0, false);
  }
  const std::uint32_t length = read_number(head, 3);
  const auto id = static_cast<std::int32_t>(read_number(head + 5, 4) & 0x7fffffff);
  flags_ = head[4];
  if (!gathering_) {
    gathering_ = true;
    stream_id_ = id;
    first_flags_ = flags_;
    frames_ = 0;
  } else if (head[3] != kContinuation || id != stream_id_) {
    throw HeaderBlockError("a header block of its is interrupted by another frame", 0, false);
  }
  if (block_.size() + length > kMostHeaderBytes || ++frames_ > kMostFrames) {
    throw HeaderBlockError("the server sends more than 16 MiB of headers", stream_id_, true);
  }
  left_ = length;
}

void HeaderBlocks::end_frame() {
  if (frames_ == 1) {
    // Padding and the priority that nobody uses any more are the first frame's.
    std::size_t front = (first_flags_ & kPadded) != 0 ? 1 : 0;
    const std::size_t back =
        front != 0 && !block_.empty() ? static_cast<std::uint8_t>(block_[0]) : 0;
    if ((first_flags_ & kPriority) != 0) front += 5;
    if (front + back > block_.size()) {
      throw HeaderBlockError("a header block of its is shorter than its padding", 0, false);
    }
    block_.resize(block_.size() - back);
    block_.erase(0, front);
  }
  if ((flags_ & kEndHeaders) == 0) return;
  gathering_ = false;
  rewrite();
  block_ = {};
}

void HeaderBlocks::rewrite() {
  std::string block;
  std::size_t kept = 0;  // where that begins which is yet to be copied
  std::size_t room = kMostHeaderBytes;
  Walk walk(block_);
  while (walk.more()) {
    const std::uint8_t octet = walk.peek();
    std::size_t number = 0;
    if ((octet & 0x80) != 0) {
      if (!walk.integer(7, number)) break;
      continue;
    }
    if ((octet & 0xe0) == 0x20) {
      if (!walk.integer(5, number)) break;
      continue;
    }
    const bool indexed = (octet & 0x40) != 0;
    bool huffman = false;
    std::string_view text;
    if (!walk.integer(indexed ? 6 : 4, number)) break;
    if (number == 0 && !walk.text(huffman, text)) break;
    const std::size_t value_at = walk.at();
    if (!walk.text(huffman, text)) break;
    if (text.size() <= kLongValue) continue;

    std::string value;
    if (!huffman) {
      if (text.size() > room) {
        throw HeaderBlockError("the server sends more than 16 MiB of headers", stream_id_, true);
      }
      value = text;
    } else if (!decode_huffman(text, room, value)) {
      if (value.size() == room) {
        throw HeaderBlockError("the server sends more than 16 MiB of headers", stream_id_, true);
      }
      break;
    }
    room -= value.size();
    // A mark that goes to the dynamic table must do there what the value does: empty it.
    std::string mark(kMark);
    const std::string digits = std::to_string(values_.size());
    mark.append(kDigits - std::min(kDigits, digits.size()), '0').append(digits);
    mark.append(kTableSize, '.');
    values_.push_back(std::move(value));
    block.append(block_, kept, value_at - kept);
    kept = walk.at();
    block.push_back(0x7f);
    for (std::size_t rest = mark.size() - 0x7f;; rest >>= 7) {
      block.push_back(static_cast<char>(rest < 0x80 ? rest : (rest & 0x7f) | 0x80));
      if (rest < 0x80) break;
    }
    block.append(mark);
  }
  // If the walk broke off, the rest is for nghttp2 to complain of.
  if (kept == 0) {
    emit(block_);
  } else {
    emit(block.append(block_, kept));
  }
}

void HeaderBlocks::emit(std::string_view block) {
  const auto flags = static_cast<std::uint8_t>(first_flags_ & ~(kPadded | kPriority | kEndHeaders));
  rewritten_.reserve(block.size() + kHead * (block.size() / kFrameSize + 1));
  std::size_t at = 0;
  do {
    const std::size_t size = std::min(kFrameSize, block.size() - at);
    const bool last = at + size == block.size();
    append_number(rewritten_, static_cast<std::uint32_t>(size), 3);
    rewritten_.push_back(static_cast<char>(at == 0 ? kHeaders : kContinuation));
    rewritten_.push_back(static_cast<char>((at == 0 ? flags : 0) | (last ? kEndHeaders : 0)));
    append_number(rewritten_, static_cast<std::uint32_t>(stream_id_), 4);
    rewritten_.append(block, at, size);
    at += size;
  } while (at < block.size());
}

const std::string* HeaderBlocks::taken_out(std::string_view mark) const noexcept {
  if (values_.empty() || mark.size() != kMark.size() + kDigits + kTableSize ||
      mark.substr(0, kMark.size()) != kMark) {
    return nullptr;
  }
  std::size_t index = 0;
  for (const char c : mark.substr(kMark.size(), kDigits)) {
    index = 10 * index + static_cast<std::size_t>(c - '0');
  }
  return index < values_.size() ? &values_[index] : nullptr;
}

}  // namespace triton_fast::http2
