// Fuzzes Session with bytes that a hostile or broken server might send.
//
// An input is eight bytes of setting and then the bytes:
//   0    how they are cut into pieces
//   1    the calls: two bits for how many, then, one bit each: compressed, large payloads, parsed
//        by ResponseReader, a sink that throws, the last call is given up half-way, the session is
//        one of many calls and every other call is a stream
//   2    how much of what the session has to send is taken at a time
//   3    seed of the cuts, where they are at random
//   4-7  what the streams do between the pieces; see Run::act()
//
// The bytes go through three sessions: at once and in pieces, which must come to the same, and in
// pieces while the session sends what it has to, and streams do this and that. What must hold is in
// Sink, Sent, Run and check_end().
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "require.hpp"
#include "triton_fast/bridge.hpp"
#include "triton_fast/http2/session.hpp"

namespace {

using memory::Measurement;
using triton_fast::ConstBuffer;
using triton_fast::MutableBuffer;
using triton_fast::ReaderSink;
using triton_fast::http2::CallSpec;
using triton_fast::http2::ConnectionError;
using triton_fast::http2::MessageSink;
using triton_fast::http2::Outcome;
using triton_fast::http2::Session;
using triton_fast::http2::Sharing;
using triton_fast::http2::Status;
using triton_fast::http2::Stream;
using triton_fast::wire::ResponseReader;

constexpr std::size_t kSettingSize = 8;
constexpr std::size_t kMostMessages = 5;  // that a stream sends
constexpr std::size_t kSmall = 20;
constexpr std::size_t kLarge = 70000;  // more than a window

// ---- Setting ------------------------------------------------------------------------------------

struct Setting {
  explicit Setting(const std::uint8_t* data)
      : cuts(data[0]),
        requests(data[1] & 3),
        compressed((data[1] & 4) != 0),
        large((data[1] & 8) != 0),
        parsed((data[1] & 16) != 0),
        throws((data[1] & 32) != 0),
        gives_up((data[1] & 64) != 0),
        streams((data[1] & 128) != 0),
        takes(data[2]),
        seed(data[3]) {
    std::copy_n(data + 4, sizeof actions, actions);
  }

  std::uint8_t cuts;
  std::size_t requests;
  bool compressed;
  bool large;
  bool parsed;
  bool throws;
  bool gives_up;
  bool streams;
  std::uint8_t takes;
  std::uint8_t seed;
  std::uint8_t actions[4];
};

/// Where the pieces end.
class Cuts {
 public:
  Cuts(std::uint8_t pattern, std::uint8_t seed) : pattern_(pattern % 8), random_(seed + 1u) {}

  std::size_t next(std::size_t left) {
    static constexpr std::size_t kSizes[] = {1, 2, 3, 5, 9, 17, 64};
    const std::size_t size = pattern_ < std::size(kSizes) ? kSizes[pattern_] : random_() % 24;
    return std::min(size, left);  // 0 now and then: an empty piece must do no harm
  }

 private:
  std::size_t pattern_;
  std::minstd_rand random_;
};

// ---- What must hold -----------------------------------------------------------------------------

struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Is told of one message, or of a stream's one after another, in the right order, and of no more
/// than was announced.
class Sink final : public MessageSink {
 public:
  Sink(const Setting& setting, bool streaming)
      : streaming_(streaming), throws_(setting.throws), parsed_(setting.parsed) {}

  void begin(std::uint64_t size) override {
    REQUIRE(!within_ && (streaming_ || count_ == 0));
    within_ = true;
    announced_ = size;
    message_.clear();
    if (!parsed_) return;
    next_.reset();
    reader_ = std::make_unique<ResponseReader>();
    if (streaming_) reader_->expect_envelope();
    next_ = std::make_unique<ReaderSink>(reader_.get());
    next_->begin(size);
  }
  void feed(ConstBuffer piece) override {
    REQUIRE(within_ && piece.size != 0);
    told_ += piece.size;
    REQUIRE(piece.size <= announced_ - message_.size());
    message_.append(reinterpret_cast<const char*>(piece.data), piece.size);
    if (throws_ && message_.size() > 10) throw Refusal("that is enough");
    if (next_ != nullptr) next_->feed(piece);
  }
  void finish() override {
    REQUIRE(within_ && message_.size() == announced_);
    if (next_ != nullptr) next_->finish();
    within_ = false;
    ++count_;
    all_ += std::to_string(message_.size()) + ':' + message_;
  }
  bool ready() const noexcept override { return streaming_ && taken_ != count_; }
  MutableBuffer landing() noexcept override {
    MutableBuffer place = next_ == nullptr ? MutableBuffer{} : next_->landing();
    if (place.size != 0) REQUIRE(within_ && place.size <= announced_ - message_.size());
    return place;
  }

  void take() { taken_ = count_; }
  /// How many bytes it has been told.
  std::uint64_t told() const { return told_; }
  /// Whether all that it has to be told before a good end was told.
  bool complete() const { return !within_ && (streaming_ || count_ == 1); }
  /// All messages, each with its length.
  const std::string& messages() const { return all_; }

 private:
  const bool streaming_;
  const bool throws_;
  const bool parsed_;
  bool within_ = false;
  std::size_t count_ = 0;
  std::size_t taken_ = 0;
  std::uint64_t announced_ = 0;
  std::uint64_t told_ = 0;
  std::string message_;
  std::string all_;
  std::unique_ptr<ResponseReader> reader_;
  std::unique_ptr<ReaderSink> next_;
};

/// A message in DATA frames. Made once: making it takes longer than all checks.
const std::string& message_of(std::size_t which, bool compressed, bool large) {
  static const auto table = [] {
    std::array<std::string, 16> made;
    for (std::size_t i = 0; i < made.size(); ++i) {
      const std::size_t size = (i & 8) != 0 ? kLarge + i % 4 : kSmall * (i % 4);
      made[i].push_back(static_cast<char>((i & 4) >> 2));
      for (int shift = 24; shift >= 0; shift -= 8) {
        made[i].push_back(static_cast<char>(size >> shift));
      }
      for (std::size_t at = 0; at < size; ++at) {
        made[i].push_back(static_cast<char>((at + i) * 7 >> 3));
      }
    }
    return made;
  }();
  return table[which % 4 + (compressed ? 4 : 0) + (large ? 8 : 0)];
}

/// What the session has sent: frames that are whole, and of each message no byte but its own.
class Sent {
 public:
  explicit Sent(const Setting& setting) : setting_(setting) {}

  /// Says what a call is going to send.
  void expect(std::size_t call, const std::string& message) { calls_[call].expected += message; }
  /// Says that it has no more, and whether its end comes with the last of it.
  void expect_end(std::size_t call, bool at_once) {
    calls_[call].may_end = true;
    calls_[call].at_once = at_once;
  }

  void add(const std::uint8_t* data, std::size_t size) {
    rest_.append(reinterpret_cast<const char*>(data), size);
    if (!preface_) {
      static const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
      if (rest_.size() < kPreface.size()) return;
      REQUIRE(rest_.compare(0, kPreface.size(), kPreface) == 0);
      rest_.erase(0, kPreface.size());
      preface_ = true;
    }
    std::size_t at = 0;
    while (rest_.size() - at >= 9) {
      const auto* const head = reinterpret_cast<const std::uint8_t*>(rest_.data()) + at;
      const std::size_t length = std::size_t{head[0]} << 16 | std::size_t{head[1]} << 8 | head[2];
      if (rest_.size() - at - 9 < length) break;
      const std::uint32_t id = std::uint32_t{head[5]} << 24 | std::uint32_t{head[6]} << 16 |
                               std::uint32_t{head[7]} << 8 | head[8];
      check(head[3], head[4], id, std::string_view(rest_).substr(at + 9, length));
      at += 9 + length;
    }
    rest_.erase(0, at);
  }

 private:
  void check(std::uint8_t type, std::uint8_t flags, std::uint32_t id, std::string_view payload) {
    if (first_) REQUIRE(type == 4);
    first_ = false;
    switch (type) {
      case 0: {  // DATA
        REQUIRE(id % 2 == 1 && id / 2 < setting_.requests);
        Call& call = calls_[id / 2];
        REQUIRE(!call.ended && payload.size() <= call.expected.size() - call.position);
        REQUIRE(call.expected.compare(call.position, payload.size(), payload) == 0);
        call.position += payload.size();
        call.ended = (flags & 1) != 0;
        const bool all = call.position == call.expected.size();
        REQUIRE(!call.ended || (call.may_end && all));
        REQUIRE(call.ended || !(call.at_once && all));
        REQUIRE(call.ended || !payload.empty());
        return;
      }
      case 1:  // HEADERS
        REQUIRE(id % 2 == 1 && id / 2 < setting_.requests && (flags & 0xd) == 4);
        return;
      case 3:  // RST_STREAM
        REQUIRE(id != 0 && payload.size() == 4);
        return;
      case 4:  // SETTINGS
        REQUIRE(id == 0 && payload.size() % 6 == 0);
        return;
      case 6:  // PING
        REQUIRE(id == 0 && payload.size() == 8);
        return;
      case 7:  // GOAWAY
        REQUIRE(id == 0 && payload.size() >= 8);
        return;
      case 8:  // WINDOW_UPDATE
        REQUIRE(payload.size() == 4);
        return;
      default:
        REQUIRE(false);
    }
  }

  struct Call {
    std::string expected;
    std::size_t position = 0;
    bool may_end = false;
    bool at_once = false;
    bool ended = false;
  };

  const Setting& setting_;
  Call calls_[4];
  bool preface_ = false;
  bool first_ = true;
  std::string rest_;
};

/// What came of one request.
struct Result {
  Status status = Status::kUnknown;
  std::string text;
  std::string encoding;
  std::string message;
  std::string thrown;
  bool safe_to_retry = false;
  bool compressed = false;
  bool by_content = false;  // ended by us, for what was in the body

  bool operator==(const Result& other) const {
    return status == other.status && text == other.text && encoding == other.encoding &&
           message == other.message && thrown == other.thrown &&
           safe_to_retry == other.safe_to_retry && compressed == other.compressed;
  }
};

Result check_end(const Stream& stream, const Sink& sink, const Setting& setting) {
  REQUIRE(stream.done());
  const Outcome& outcome = stream.outcome();
  REQUIRE(static_cast<unsigned>(outcome.status) <= 16);
  Result result;
  result.status = outcome.status;
  result.text = outcome.message;
  result.encoding = outcome.encoding;
  // How much of a message came before a sink threw is up to the pieces.
  if (outcome.status == Status::kOk) result.message = sink.messages();
  result.safe_to_retry = outcome.safe_to_retry;
  result.compressed = outcome.status == Status::kOk && outcome.compressed;
  result.by_content =
      outcome.exception != nullptr || outcome.message.rfind("the server sent ", 0) == 0;
  if (outcome.exception != nullptr) {
    REQUIRE(outcome.status != Status::kOk);
    try {
      std::rethrow_exception(outcome.exception);
    } catch (const std::exception& error) {
      // Which of the two that may throw comes first is up to the pieces as well.
      result.thrown = setting.throws ? "something" : error.what();
    }
  } else if (outcome.status == Status::kOk) {
    REQUIRE(sink.complete());
  }
  // What is sent again must not have been answered.
  REQUIRE(!outcome.safe_to_retry || (!stream.answered() && outcome.status == Status::kUnavailable));
  REQUIRE(!outcome.compressed || setting.compressed);
  return result;
}

/// Whether the same came of all requests. But nghttp2 finds a body that is longer than its
/// content-length before it hands on any of the piece, so only in pieces what is in it is seen.
/// Then both must be errors.
bool alike(const std::vector<Result>& whole, const std::vector<Result>& pieces) {
  const auto is_alike = [](const Result& one, const Result& two) {
    return one == two || (two.by_content && one.status != Status::kOk &&
                          two.status != Status::kOk && !one.safe_to_retry);
  };
  return std::equal(whole.begin(), whole.end(), pieces.begin(), pieces.end(), is_alike);
}

/// Memory is in proportion to what has come, and to the payload, and to what streams have sent.
void check_memory(std::size_t come, std::size_t sent, const Setting& setting) {
  constexpr std::size_t kFactor = 2048;
  const std::size_t base = (std::size_t{256} << 10) + (setting.large ? 4 * kLarge : 0);
  // The eager memory of a parser, for each request.
  const std::size_t eager = setting.parsed ? (std::size_t{33} << 20) * setting.requests : 0;
  const std::size_t most = base + kFactor * come + eager + 4 * sent;
  if (memory::peak > most) std::fprintf(stderr, "%zu bytes, at most %zu\n", memory::peak, most);
  REQUIRE(memory::peak <= most);
}

// ---- Running ------------------------------------------------------------------------------------

class Run {
 public:
  /// With `sends`, the session sends what it has to, streams do something, and calls are given up.
  Run(const Setting& setting, bool pieces, bool sends)
      : setting_(setting), pieces_(pieces), sends_(sends), sent_(setting) {}

  std::vector<Result> operator()(const std::uint8_t* data, std::size_t size) {
    const Measurement measurement;
    Session session("localhost:8001", setting_.streams ? Sharing::kManyCalls : Sharing::kOneCall);
    calls_.resize(setting_.requests);
    for (std::size_t i = 0; i < calls_.size(); ++i) open(session, i);
    send(session, SIZE_MAX, true);

    Cuts cuts(setting_.cuts, setting_.seed);
    bool ended = false;
    std::size_t step = 0;
    for (std::size_t at = 0; at != size && !ended; ++step) {
      const std::size_t part = pieces_ ? cuts.next(size - at) : size - at;
      // Nothing beyond the piece may be read, and nothing of it afterwards.
      const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[part]);
      std::copy_n(data + at, part, copy.get());
      // What comes in pieces is received where it belongs, as far as that is known.
      const MutableBuffer place = pieces_ ? session.landing() : MutableBuffer{};
      const std::size_t landed = std::min(part, place.size);
      std::copy_n(copy.get(), landed, place.data);
      if (landed != 0) {
        const std::uint64_t before = told();
        ended = !feed(session, {place.data, landed});
        // All or nothing: nghttp2 drops what comes after a fault that ends the stream, or all.
        REQUIRE(ended || told() == before + landed || told() == before);
      }
      if (!ended && landed != part) ended = !feed(session, {copy.get() + landed, part - landed});
      at += part;
      if (sends_ && !ended) {
        if (setting_.streams && !calls_.empty()) act(session, step);
        send(session, setting_.takes, false);
        static_cast<void>(session.usable());
        if (setting_.gives_up && at > size / 2) {
          const auto known = [](const Call& call) { return call.stream != nullptr; };
          const auto last = std::find_if(calls_.rbegin(), calls_.rend(), known);
          if (last != calls_.rend()) forget(session, *last);
        }
      }
    }
    if (!ended) session.end("the server closed the connection");
    hear(session);
    std::vector<Result> results;
    for (const Call& call : calls_) {
      if (call.stream == nullptr) continue;
      results.push_back(check_end(*call.stream, *call.sink, setting_));
      REQUIRE(!setting_.streams || news_.count(call.stream->id()) != 0);
    }
    check_memory(size, handed_over_, setting_);
    for (Call& call : calls_) forget(session, call);
    // Whatever is left to be sent is lent until it is.
    if (sends_) send(session, SIZE_MAX, false);
    return results;
  }

 private:
  struct Call {
    Stream* stream = nullptr;  // null once it is forgotten
    std::unique_ptr<Sink> sink;
    bool streaming = false;
    bool half_closed = false;
    std::size_t messages = 0;  // that it has sent
    // In a block of its own, which must not be read from once it is not lent any more.
    std::unique_ptr<std::string> lent;
  };

  void open(Session& session, std::size_t index) {
    Call& call = calls_[index];
    call.streaming = setting_.streams && index % 2 == 0;
    CallSpec spec;
    spec.path = "/inference.GRPCInferenceService/ModelInfer";
    spec.streaming = call.streaming;
    if (!call.streaming) {
      const std::string& message = message_of(index, setting_.compressed, setting_.large);
      if (sends_) call.lent = std::make_unique<std::string>(message, 5);
      spec.segments = {
          {reinterpret_cast<const std::uint8_t*>(sends_ ? call.lent->data() : message.data() + 5),
           message.size() - 5}};
      spec.message_size = message.size() - 5;
      if (setting_.compressed) spec.encoding = "gzip";
      sent_.expect(index, message);
      sent_.expect_end(index, true);
    }
    call.sink = std::make_unique<Sink>(setting_, call.streaming);
    call.stream = session.open(spec, 1000000000, call.sink.get());
  }

  std::uint64_t told() const {
    std::uint64_t sum = 0;
    for (const Call& call : calls_) sum += call.sink == nullptr ? 0 : call.sink->told();
    return sum;
  }

  static bool feed(Session& session, ConstBuffer bytes) {
    try {
      session.feed(bytes);
      return true;
    } catch (const ConnectionError& error) {
      session.end(error.what());
      return false;
    }
  }

  /// Does to one of the calls what the setting has for this step.
  void act(Session& session, std::size_t step) {
    const auto action = setting_.actions[step / 2 % 4] >> (step % 2 * 4) & 15;
    const std::size_t index = (step + static_cast<std::size_t>(action >> 3)) % calls_.size();
    Call& call = calls_[index];
    if (call.stream == nullptr) return;
    switch (action & 7) {
      case 1:
        return say(session, index);
      case 2:
        return half_close(session, index);
      case 3:
        call.sink->take();
        return session.taken(call.stream);
      case 4:
        return session.cancel(call.stream);
      case 5:
        return hear(session);
      case 6:
        say(session, index);
        return half_close(session, index);
      case 7:
        return forget(session, call);
      default:
        return;
    }
  }

  void say(Session& session, std::size_t index) {
    Call& call = calls_[index];
    if (!call.streaming || call.messages == kMostMessages) return;
    const std::string& message = message_of(call.messages, false, setting_.large);
    auto lent = std::make_unique<std::string>(message, 5);
    const bool over = call.stream->done();
    const bool may = over || (call.stream->listed() && !call.stream->lent() && !call.half_closed);
    bool refused = false;
    try {
      session.send(call.stream,
                   {{reinterpret_cast<const std::uint8_t*>(lent->data()), lent->size()}},
                   lent->size());
    } catch (const ConnectionError&) {
      refused = true;
    }
    REQUIRE(refused == !may);
    if (refused || over) return;
    handed_over_ += message.size();
    sent_.expect(index, message);
    ++call.messages;
    call.lent = std::move(lent);
  }

  void half_close(Session& session, std::size_t index) {
    Call& call = calls_[index];
    if (!call.streaming) return;
    if (!call.stream->done()) sent_.expect_end(index, false);
    call.half_closed = true;
    session.half_close(call.stream);
  }

  /// Takes the news, which are about calls that are still known.
  void hear(Session& session) {
    for (const std::int32_t id : session.news()) {
      REQUIRE(setting_.streams);
      REQUIRE(std::any_of(calls_.begin(), calls_.end(), [&](const Call& call) {
        return call.stream != nullptr && call.stream->id() == id;
      }));
      news_.insert(id);
    }
  }

  /// Takes what the session has to send: all of it, or a bit.
  void send(Session& session, std::size_t most, bool first) {
    iovec pieces[8];
    try {
      for (std::size_t round = 0; most == SIZE_MAX || round < 3; ++round) {
        give_back(session);
        const std::size_t count = session.gather(pieces, std::size(pieces));
        if (count == 0) return;
        std::size_t taken = 0;
        for (std::size_t i = 0; i < count && taken < most; ++i) {
          const std::size_t size = std::min(pieces[i].iov_len, most - taken);
          sent_.add(static_cast<const std::uint8_t*>(pieces[i].iov_base), size);
          taken += size;
        }
        session.sent(taken);
      }
    } catch (const ConnectionError&) {
      REQUIRE(!first);
    }
  }

  /// Lets the memory go that is not lent any more.
  void give_back(const Session& session) {
    for (Call& call : calls_) {
      if (call.lent == nullptr) continue;
      const bool lent = call.stream == nullptr ? session.borrows()
                                               : call.stream->lent() || !(call.stream->listed() ||
                                                                          call.stream->done());
      REQUIRE(!lent || call.stream == nullptr || !call.stream->lent() || session.borrows());
      if (!lent) call.lent.reset();
    }
  }

  /// Closes a call. What is in the session's list of it stays lent.
  static void forget(Session& session, Call& call) {
    if (call.stream == nullptr) return;
    if (!call.stream->lent()) call.lent.reset();
    session.close(call.stream);
    call.stream = nullptr;
    call.sink.reset();
  }

  const Setting& setting_;
  const bool pieces_;
  const bool sends_;
  std::vector<Call> calls_;
  std::set<std::int32_t> news_;
  std::size_t handed_over_ = 0;
  Sent sent_;
};

void print(const char* how, const std::vector<Result>& results) {
  for (const Result& result : results) {
    std::fprintf(stderr, "%s: status %d, \"%s\", encoding \"%s\", %zu bytes, threw \"%s\"%s%s\n",
                 how, static_cast<int>(result.status), result.text.c_str(), result.encoding.c_str(),
                 result.message.size(), result.thrown.c_str(),
                 result.safe_to_retry ? ", safe_to_retry" : "",
                 result.compressed ? ", compressed" : "");
  }
}

// ---- How much of it gets through ----------------------------------------------------------------

std::uint64_t calls = 0;
std::uint64_t answered = 0;

void print_share() {
  std::fprintf(stderr, "calls that were answered with OK: %llu of %llu\n",
               static_cast<unsigned long long>(answered), static_cast<unsigned long long>(calls));
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  static_cast<void>(message_of(0, false, false));  // or making them would count
  memory::install();
  std::atexit(print_share);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < kSettingSize) return -1;
  const Setting setting(data);
  data += kSettingSize;
  size -= kSettingSize;
  const std::vector<Result> whole = Run(setting, false, false)(data, size);
  const std::vector<Result> pieces = Run(setting, true, false)(data, size);
  if (!alike(whole, pieces)) {
    print("at once", whole);
    print("in pieces", pieces);
  }
  REQUIRE(alike(whole, pieces));
  for (const Result& result : Run(setting, true, true)(data, size)) {
    ++calls;
    if (result.status == Status::kOk) ++answered;
  }
  return 0;
}
