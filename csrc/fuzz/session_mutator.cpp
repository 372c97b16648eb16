// A mutator that knows frames: it takes a server's bytes apart, changes a frame or two, and puts
// them together with lengths that are right again, mostly. Left to libFuzzer's own mutations alone,
// nearly every input dies of its first broken length.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

constexpr std::size_t kSettingSize = 8;

struct Frame {
  std::uint8_t type = 0;
  std::uint8_t flags = 0;
  std::uint32_t id = 0;
  std::string payload;
  std::int32_t length_error = 0;  // what to add to its length
};
using Frames = std::vector<Frame>;

std::uint32_t number(const std::string& from, std::size_t at, std::size_t size) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value = value << 8 | static_cast<std::uint8_t>(from[at + i]);
  }
  return value;
}

std::string bytes_of(std::uint32_t value, std::size_t size) {
  std::string out;
  while (size-- != 0) out.push_back(static_cast<char>(value >> (8 * size)));
  return out;
}

Frames parse(const std::string& from) {
  Frames frames;
  for (std::size_t at = 0; from.size() - at >= 9;) {
    Frame frame;
    const std::size_t length = number(from, at, 3);
    frame.type = static_cast<std::uint8_t>(from[at + 3]);
    frame.flags = static_cast<std::uint8_t>(from[at + 4]);
    frame.id = number(from, at + 5, 4);
    frame.payload = from.substr(at + 9, length);
    at += 9 + frame.payload.size();
    frames.push_back(std::move(frame));
  }
  return frames;
}

std::string render(const Frames& frames) {
  std::string out;
  for (const Frame& frame : frames) {
    const auto size = static_cast<std::int32_t>(frame.payload.size());
    out += bytes_of(static_cast<std::uint32_t>(size + frame.length_error), 3);
    out.push_back(static_cast<char>(frame.type));
    out.push_back(static_cast<char>(frame.flags));
    out += bytes_of(frame.id, 4) + frame.payload;
  }
  return out;
}

std::string literal(const std::string& name, const std::string& value, char kind) {
  std::string out(1, kind);
  for (const std::string& text : {name, value}) {
    out.push_back(static_cast<char>(text.size()));  // all of them are short
    out += text;
  }
  return out;
}

class Mutation {
 public:
  Mutation(Frames& frames, unsigned seed) : frames_(frames), random_(seed) {}

  void apply() {
    if (frames_.empty()) return insert();
    switch (below(14)) {
      case 0:
        frames_.erase(frames_.begin() + static_cast<std::ptrdiff_t>(below(frames_.size())));
        return;
      case 1: {
        const Frame copy = some();
        frames_.insert(place(), copy);
        return;
      }
      case 2:
        std::swap(some(), some());
        return;
      case 3:
        some().flags ^= static_cast<std::uint8_t>(1u << below(6));
        return;
      case 4:
        some().id = static_cast<std::uint32_t>(below(8));
        return;
      case 5:
        some().length_error = static_cast<std::int32_t>(below(9)) - 4;
        return;
      case 6:
        return split();
      case 7:
        return add_field();
      case 8:
      case 9:
        return insert();
      case 10:
        return answer();
      case 11:
        // What comes after the end of a connection counts for nothing.
        frames_.resize(1 + below(frames_.size()));
        return;
      default:
        return change();
    }
  }

 private:
  std::size_t below(std::size_t limit) { return random_() % limit; }
  Frame& some() { return frames_[below(frames_.size())]; }
  Frames::iterator place() {
    return frames_.begin() + static_cast<std::ptrdiff_t>(below(frames_.size() + 1));
  }

  /// DATA into two, or HEADERS into HEADERS and CONTINUATION.
  void split() {
    const std::size_t which = below(frames_.size());
    Frame& first = frames_[which];
    if (first.type != 0 && first.type != 1 && first.type != 9) return;
    Frame second = first;
    const std::size_t at = below(first.payload.size() + 1);
    second.payload.erase(0, at);
    first.payload.resize(at);
    if (first.type == 0) {
      first.flags &= 0xfe;
    } else {
      first.flags &= 0xfb;
      second.type = 9;
      second.flags &= 4;
    }
    frames_.insert(frames_.begin() + static_cast<std::ptrdiff_t>(which) + 1, second);
  }

  std::string field() {
    static const char* const kNames[] = {":status",      "content-type",   "grpc-status",
                                         "grpc-message", "grpc-encoding",  "x-other",
                                         "X-Capital",    "content-length", "connection"};
    static const char* const kValues[] = {"200",       "100",      "502",     "application/grpc",
                                          "text/html", "0",        "5",       "99",
                                          "gzip",      "identity", "a b",     "%41",
                                          "5%",        "",         " blank ", "\x01"};
    static constexpr char kKinds[] = {0x00, 0x10, 0x40};
    return literal(kNames[below(std::size(kNames))], kValues[below(std::size(kValues))],
                   kKinds[below(std::size(kKinds))]);
  }

  void add_field() {
    for (std::size_t tries = 0; tries < 5; ++tries) {
      Frame& frame = some();
      if (frame.type != 1 && frame.type != 9) continue;
      const std::string added =
          below(4) == 0 ? std::string(1, static_cast<char>(0x80 + below(0x45))) : field();
      frame.payload.insert(below(2) == 0 ? 0 : frame.payload.size(), added);
      return;
    }
  }

  /// A call's whole answer, from a place on: otherwise few inputs get beyond what is broken.
  void answer() {
    const auto id = static_cast<std::uint32_t>(1 + 2 * below(3));
    const std::string message = "\x0a\x01m" + std::string(below(3), ' ');
    Frames added(3);
    for (Frame& frame : added) frame.id = id;
    added[0].type = added[2].type = 1;
    added[0].flags = 4;
    added[0].payload = "\x88" + literal("content-type", "application/grpc", 0x40);
    if (below(2) == 0) added[0].payload += field();
    added[1].payload =
        std::string(1, '\0') + bytes_of(static_cast<std::uint32_t>(message.size()), 4) + message;
    added[2].flags = 5;
    added[2].payload = literal("grpc-status", below(4) == 0 ? "13" : "0", 0);
    frames_.insert(place(), added.begin(), added.end());
  }

  void insert() {
    static constexpr std::uint32_t kNumbers[] = {0,     1,      2,       5,          100,
                                                 16384, 65535,  1 << 20, 0x7fffffff, 0x80000000,
                                                 0xff,  0xffff, 1 << 24, 0xffffffff};
    const auto some_number = [&] { return kNumbers[below(std::size(kNumbers))]; };
    Frame frame;
    frame.type = static_cast<std::uint8_t>(below(11));
    frame.id = static_cast<std::uint32_t>(1 + 2 * below(3));
    switch (frame.type) {
      case 0:
        frame.payload = std::string(1, static_cast<char>(below(2))) +
                        bytes_of(static_cast<std::uint32_t>(below(20)), 4) +
                        std::string(below(20), '\n');
        break;
      case 1:
        frame.flags = static_cast<std::uint8_t>(below(2) * 4 + below(2));
        frame.payload = field() + field();
        break;
      case 3:
        frame.payload = bytes_of(static_cast<std::uint32_t>(below(15)), 4);
        break;
      case 4:
        frame.id = 0;
        frame.flags = static_cast<std::uint8_t>(below(4) == 0);
        for (std::size_t i = below(3); frame.flags == 0 && i != 0; --i) {
          frame.payload += bytes_of(static_cast<std::uint32_t>(1 + below(6)), 2);
          frame.payload += bytes_of(some_number(), 4);
        }
        break;
      case 6:
        frame.id = 0;
        frame.flags = static_cast<std::uint8_t>(below(2));
        frame.payload = "12345678";
        break;
      case 7:
        frame.id = 0;
        frame.payload = bytes_of(static_cast<std::uint32_t>(below(6)), 4) + bytes_of(0, 4) + "why";
        break;
      case 8:
        frame.id *= static_cast<std::uint32_t>(below(2));
        frame.payload = bytes_of(some_number(), 4);
        break;
      default:
        frame.payload = std::string(below(30), 'x');
        break;
    }
    frames_.insert(place(), frame);
  }

  void change() {
    Frame& frame = some();
    const std::size_t size = frame.payload.size();
    frame.payload.resize(size + 16);
    frame.payload.resize(
        LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(frame.payload.data()), size, size + 16));
  }

  Frames& frames_;
  std::minstd_rand random_;
};

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (size < kSettingSize || max_size < 16 || random() % 8 == 0) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  if (random() % 8 == 0) {
    data[random() % kSettingSize] = static_cast<std::uint8_t>(random());
    return size;
  }
  Frames frames =
      parse(std::string(reinterpret_cast<char*>(data) + kSettingSize, size - kSettingSize));
  Mutation mutation(frames, static_cast<unsigned>(random()));
  do {
    mutation.apply();
  } while (random() % 3 == 0);
  std::string rendered = render(frames);
  rendered.resize(std::min(rendered.size(), max_size - kSettingSize));
  std::memcpy(data + kSettingSize, rendered.data(), rendered.size());
  return kSettingSize + rendered.size();
}
