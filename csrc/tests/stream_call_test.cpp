// StreamCall over a Unix socket: a thread that sends, one that receives, and others that end it.
#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "forked.hpp"
#include "http2_client.hpp"
#include "http2_listener.hpp"
#include "http2_server.hpp"
#include "thread.hpp"
#include "triton_fast/http2/pool.hpp"

namespace {

using test::BesideThreads;
using test::buffer;
using test::Counter;
using test::in_child;
using test::kMillisecond;
using test::Report;
using test::Server;
using test::stream_call;
using test::text_of;
using test::Thread;
using test::with_prefix;
using triton_fast::ConstBuffer;
using triton_fast::http2::Call;
using triton_fast::http2::ClosedPool;
using triton_fast::http2::Keepalive;
using triton_fast::http2::kNever;
using triton_fast::http2::make_pool;
using triton_fast::http2::MessageSink;
using triton_fast::http2::monotonic_ns;
using triton_fast::http2::Outcome;
using triton_fast::http2::Pool;
using triton_fast::http2::Progress;
using triton_fast::http2::Status;
using triton_fast::http2::StreamCall;

constexpr std::int64_t kMinute = 60000 * kMillisecond;

/// Keeps a stream's messages; one thread receives, and any may take.
class Messages final : public MessageSink {
 public:
  void begin(std::uint64_t size) override {
    current_.clear();
    current_.reserve(size);
  }
  void feed(ConstBuffer piece) override {
    current_.append(reinterpret_cast<const char*>(piece.data), piece.size);
  }
  void finish() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_.push_back(std::move(current_));
    count_.store(messages_.size());
  }
  bool ready() const noexcept override { return count_.load() != 0; }
  bool full() const noexcept override { return count_.load() > most; }

  std::vector<std::string> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> taken(messages_.begin(), messages_.end());
    messages_.clear();
    count_.store(0);
    return taken;
  }

  std::size_t most = SIZE_MAX;

 private:
  std::mutex mutex_;
  std::deque<std::string> messages_;
  std::atomic<std::size_t> count_{0};
  std::string current_;
};

/// Answers the messages of streams, each with what it says:
///   "echo …"    the same message
///   "many N"    N messages, the numbers up to it
///   "beat"      the time, whenever beat() is called from now on
///   "hang up"   nothing: the connection is closed
///   "end"       nothing: the stream ends, and well
/// and ends a stream when the client has. Whatever else it is told, it keeps to itself.
class Service {
 public:
  /// One that holds takes no more than the first window of a connection, until it is released.
  explicit Service(bool holds = false)
      : holds_(holds), listener([this](int descriptor) { serve(descriptor); }) {}

  void release() { released_ = true; }
  void beat() { ++beats_; }

  Counter streams;  // that have begun
  Counter heard;    // messages
  Counter held_up;  // streams that have sent all they may
  Counter resets;   // streams that the client has given up

 private:
  struct Answering {
    std::size_t read = 0;  // of the body
    bool open = true;
    std::size_t beats = SIZE_MAX;  // as many as there were; none are asked for
    bool held_up = false;
    bool ended = false;
    bool reset = false;
  };

  void serve(int descriptor) {
    Server server({}, !holds_);
    std::map<std::int32_t, Answering> answering;
    for (;;) {
      // What a client that has gone had to say before is heard all the same.
      const bool gone = !test::send_all(descriptor, server);
      pollfd waiting{descriptor, POLLIN, 0};
      const bool come = ::poll(&waiting, 1, 4) == 1;
      if (come ? !test::receive_some(descriptor, server) : gone) return;
      for (const auto& [id, request] : server.requests) {
        if (answering.count(id) == 0) {
          ++streams;
          server.begin(id);
        }
        Answering& state = answering[id];
        if (holds_ && released_ && std::exchange(state.open, false)) {
          server.open_windows(id, 1 << 30);
        }
        for (std::string message; next(request.body, state.read, message);) {
          if (message == "hang up") return;
          answer(server, id, message, state);
          ++heard;
        }
        for (; state.beats < beats_; ++state.beats) {
          server.say(id, with_prefix(std::to_string(monotonic_ns())));
        }
        if (holds_ && request.body.size() == 65535 && !std::exchange(state.held_up, true)) {
          ++held_up;
        }
        if (request.complete && !std::exchange(state.ended, true)) server.end(id);
        if (request.closed && request.error_code != NGHTTP2_NO_ERROR &&
            !std::exchange(state.reset, true)) {
          ++resets;
        }
      }
    }
  }

  static bool next(const std::string& body, std::size_t& read, std::string& message) {
    if (body.size() < read + 5) return false;
    std::size_t size = 0;
    for (std::size_t i = 1; i < 5; ++i) {
      size = size << 8 | static_cast<std::uint8_t>(body[read + i]);
    }
    if (body.size() < read + 5 + size) return false;
    message = body.substr(read + 5, size);
    read += 5 + size;
    return true;
  }

  void answer(Server& server, std::int32_t id, const std::string& message, Answering& state) {
    if (message.rfind("echo", 0) == 0) {
      server.say(id, with_prefix(message));
    } else if (message.rfind("many ", 0) == 0) {
      const int count = std::stoi(message.substr(5));
      for (int i = 0; i < count; ++i) server.say(id, with_prefix(std::to_string(i)));
    } else if (message == "beat") {
      state.beats = beats_;
    } else if (message == "end") {
      state.ended = true;
      server.end(id);
    }
  }

  const bool holds_;
  std::atomic<bool> released_{false};
  std::atomic<std::size_t> beats_{0};

 public:
  test::Listener listener;  // the last: its threads use the others
};

std::shared_ptr<Pool> pool_to(const Service& service, std::size_t most = 4) {
  return make_pool({"", "", service.listener.path}, "localhost", most, kMinute);
}

/// A stream and what its callers do until they have what they want.
struct Streaming {
  explicit Streaming(const std::shared_ptr<Pool>& pool, std::int64_t deadline_ns = kNever,
                     const Keepalive& keepalive = {}, std::int64_t busy_ns = 0)
      : call(std::make_unique<StreamCall>(pool, stream_call(), &sink, deadline_ns, keepalive,
                                          busy_ns)) {}

  /// Returns whether it was sent by then. The message is borrowed until the call is over if not.
  bool send(const std::string& message, bool last = false, std::int64_t until_ns = kNever) {
    call->post({buffer(message)}, message.size(), last);
    while (call->send(until_ns) == Progress::kInterrupted) {
      if (monotonic_ns() >= until_ns) return false;
    }
    return call->sent();
  }

  /// Returns what has come, but for the end; nothing at the end.
  std::vector<std::string> receive() {
    for (;;) {
      const Progress progress = call->receive(kNever);
      std::vector<std::string> taken = sink.take();
      if (!taken.empty()) return taken;
      if (progress == Progress::kDone && call->over()) return sink.take();
    }
  }

  /// Returns at least as many messages, or all there are.
  std::vector<std::string> receive(std::size_t least) {
    std::vector<std::string> all;
    while (all.size() < least) {
      const std::vector<std::string> taken = receive();
      if (taken.empty()) break;
      all.insert(all.end(), taken.begin(), taken.end());
    }
    return all;
  }

  Messages sink;
  std::unique_ptr<StreamCall> call;
};

/// A thread of the callers', which ends when the call does.
struct Caller : Thread {
  Caller(Streaming& stream, std::function<void()> body)
      : Thread(std::move(body), [&] { stream.call->cancel(); }) {}
};

}  // namespace

TEST_CASE("stream call sends and receives") {
  Service service;
  const auto pool = pool_to(service);
  for (const std::int64_t busy_ns : {std::int64_t{0}, 20 * kMillisecond}) {
    Streaming stream(pool, kNever, {}, busy_ns);
    for (int i = 0; i < 20; ++i) {
      const std::string message = "echo" + text_of(static_cast<std::size_t>(i * i * 2000), 1);
      REQUIRE(stream.send(message, i == 19));
      const std::vector<std::string> answers = stream.receive();
      REQUIRE(answers.size() == 1);
      CHECK((answers[0] == message));
      CHECK((!stream.call->over() || i == 19));
    }
    CHECK(stream.receive().empty());
    CHECK(stream.call->over());
    CHECK(stream.call->outcome().status == Status::kOk);
    CHECK(stream.receive().empty());
  }
  // The first one's connection was given back when it was over.
  CHECK(service.listener.connections.count() == 1);
  CHECK(service.streams.count() == 2);
  CHECK(service.resets.count() == 0);
  pool->close();
}

TEST_CASE("stream call is half closed by itself") {
  Service service;
  const auto pool = pool_to(service);
  for (const bool begun : {true, false}) {
    Streaming stream(pool);
    if (begun) REQUIRE((stream.send("many 3") && stream.receive(3).size() == 3));
    stream.call->half_close();
    stream.call->half_close();
    CHECK(stream.receive().empty());
    CHECK(stream.call->outcome().status == Status::kOk);
    CHECK_THROWS_WITH_AS(
        [&] {
          Streaming other(pool);
          other.call->half_close();
          other.call->post({buffer("x")}, 1, false);
        }(),
        doctest::Contains("half closed"), std::logic_error);
  }
  // While another thread waits for messages.
  Streaming stream(pool);
  REQUIRE(stream.send("echo"));
  REQUIRE(stream.receive(1).size() == 1);
  Caller receiver(stream, [&] { CHECK(stream.receive().empty()); });
  stream.call->half_close();
  receiver.join();
  CHECK(stream.call->outcome().status == Status::kOk);
  pool->close();
}

TEST_CASE("stream call has one message under way") {
  Service service(true);
  const auto pool = pool_to(service);
  Streaming stream(pool);
  const std::string message = text_of(100000, 1);
  REQUIRE(!stream.send(message, false, monotonic_ns() + 20 * kMillisecond));
  CHECK_THROWS_WITH_AS(stream.call->post({}, 0, false), doctest::Contains("one after another"),
                       std::logic_error);
  service.release();
  while (stream.call->send(kNever) == Progress::kInterrupted) {
  }
  REQUIRE(stream.send("many 1", true));
  REQUIRE(stream.receive(1).size() == 1);
  CHECK(stream.receive().empty());
  stream.call->post({}, 0, false);  // nobody would read it
  REQUIRE(stream.call->send(kNever) == Progress::kDone);
  CHECK(stream.call->over());
  pool->close();
}

TEST_CASE("stream call is for one thread that sends and one that receives") {
  Service service;
  const auto pool = pool_to(service);
  for (const std::int64_t busy_ns : {std::int64_t{0}, kMillisecond}) {
    Streaming stream(pool, kNever, {}, busy_ns);
    constexpr std::size_t kCount = 300;
    const auto message_of = [](std::size_t i) {
      return "echo" + text_of(i % 50 == 0 ? 400000 : 10 * i, static_cast<unsigned>(i));
    };
    Caller sender(stream, [&] {
      for (std::size_t i = 0; i < kCount; ++i) {
        const std::string message = message_of(i);
        REQUIRE(stream.send(message, i + 1 == kCount));
      }
    });
    const std::vector<std::string> answers = stream.receive(kCount + 1);
    sender.join();
    REQUIRE(answers.size() == kCount);
    for (std::size_t i = 0; i < kCount; ++i) REQUIRE((answers[i] == message_of(i)));
    CHECK(stream.call->outcome().status == Status::kOk);
  }
  CHECK(service.listener.connections.count() == 1);
  pool->close();
}

TEST_CASE("stream call receives many small messages") {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  REQUIRE(stream.send("many 50000", true));
  const std::vector<std::string> answers = stream.receive(50001);
  REQUIRE(answers.size() == 50000);
  for (std::size_t i = 0; i < answers.size(); ++i) REQUIRE((answers[i] == std::to_string(i)));
  pool->close();
}

TEST_CASE("stream call hands messages on while its sender is held up") {
  // Whoever comes first, the messages do not wait for the sender to give way by itself, as it does
  // every 200 ms. A busy machine may make any of them wait, but not all.
  for (const bool sender_first : {true, false}) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool);
    REQUIRE(stream.send("beat"));
    REQUIRE(service.heard.reaches(1));
    const std::string message = text_of(1000000, 1);
    std::atomic<bool> sent{false};
    Counter turns;  // at the connection
    Caller sender(stream, [&] {
      stream.call->post({buffer(message)}, message.size(), false);
      while (stream.call->send(kNever) == Progress::kInterrupted) ++turns;
      sent = true;
    });
    if (sender_first) REQUIRE(service.held_up.reaches(1));
    int prompt = 0;
    for (int beat = 0; prompt < 3; ++beat) {
      REQUIRE(beat < 40);
      if (sender_first) {
        REQUIRE(turns.reaches(turns.count() + 1));
        ::usleep(5000);  // by now it has begun another, most likely
      }
      service.beat();
      const std::vector<std::string> beats = stream.receive();
      REQUIRE(beats.size() == 1);
      prompt += monotonic_ns() - std::stoll(beats[0]) < 100 * kMillisecond;
    }
    CHECK(!sent.load());
    service.release();
    sender.join();
    CHECK(sent.load());
    CHECK(service.heard.reaches(2));
    stream.call->cancel();
    pool->close();
  }
}

TEST_CASE("stream call reads no more than its sink takes while it sends") {
  // The one that sends is alone, and there is more to read than the sink is to keep.
  for (const std::int64_t busy_ns : {std::int64_t{0}, kMillisecond}) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool, kNever, {}, busy_ns);
    stream.sink.most = 10;
    REQUIRE(stream.send("many 100000"));
    const std::string message = text_of(1000000, 1);
    stream.call->post({buffer(message)}, message.size(), false);
    const auto go_on = [&] {
      REQUIRE(stream.call->send(monotonic_ns() + 10 * kMillisecond) == Progress::kInterrupted);
    };
    while (!stream.sink.full()) go_on();
    for (int i = 0; i < 20; ++i) go_on();
    // One more piece may have been read after it was full.
    const std::size_t kept = stream.sink.take().size();
    CHECK(kept > 10);
    CHECK(kept < 60000);
    // The rest comes when there is room.
    std::size_t rest = 0;
    while (kept + rest < 100000) rest += stream.receive().size();
    CHECK(kept + rest == 100000);
    stream.call->give_up();
    pool->close();
  }
}

TEST_CASE("stream call is cancelled by any thread") {
  Service service(true);
  const auto pool = pool_to(service, 2);
  const auto message = std::make_unique<std::string>(text_of(1000000, 1));
  for (useconds_t delay = 0; delay < 6000; delay += 200) {
    Streaming stream(pool);
    // One receives, one sends more than the server takes, one cancels.
    Caller receiver(stream, [&] { CHECK(stream.receive().empty()); });
    Caller sender(stream, [&] {
      auto copy = std::make_unique<std::string>(*message);
      CHECK(!stream.send(*copy));
      copy.reset();  // for the address sanitizer
      CHECK(stream.call->over());
    });
    Caller canceller(stream, [&] {
      ::usleep(delay);
      stream.call->cancel();
    });
    receiver.join();
    sender.join();
    canceller.join();
    CHECK(stream.call->over());
    CHECK(stream.call->outcome().status == Status::kCancelled);
    stream.call->post({}, 0, true);
    REQUIRE(stream.call->send(kNever) == Progress::kDone);
  }
  pool->close();
}

TEST_CASE("stream call is cancelled when nobody is at it") {
  Service service;
  const auto pool = pool_to(service);
  for (const bool begun : {false, true}) {
    Streaming stream(pool);
    if (begun) REQUIRE((stream.send("echo") && stream.receive(1).size() == 1));
    CHECK(!stream.call->over());
    stream.call->cancel();
    CHECK(stream.call->over());
    CHECK(stream.call->outcome().status == Status::kCancelled);
    CHECK(stream.call->outcome().message == "the call was cancelled");
    CHECK(stream.receive().empty());
  }
  REQUIRE(service.resets.reaches(1));
  // Or by being dropped, with messages that nobody has read.
  {
    Streaming stream(pool);
    REQUIRE(stream.send("many 1000"));
    REQUIRE(stream.receive(1).size() != 0);
  }
  REQUIRE(service.resets.reaches(2));
  CHECK(service.streams.count() == 2);
  pool->close();
}

TEST_CASE("stream call that is given up has its message back") {
  // The one that sends gives up, while the one that receives is at the connection.
  for (int turn = 0; turn < 10; ++turn) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool);
    REQUIRE(stream.send("echo"));
    REQUIRE(stream.receive(1).size() == 1);
    Caller receiver(stream, [&] { CHECK(stream.receive().empty()); });
    auto message = std::make_unique<std::string>(text_of(1000000, 1));
    REQUIRE(!stream.send(*message, false, monotonic_ns() + turn * 3 * kMillisecond));
    stream.call->give_up();
    CHECK(stream.call->over());
    message.reset();
    receiver.join();
    CHECK(stream.call->outcome().status == Status::kCancelled);
    pool->close();
  }
}

TEST_CASE("streams end when their pool is closed") {
  Service service(true);
  const auto pool = pool_to(service, 3);
  const std::string message = text_of(1000000, 1);
  std::vector<std::unique_ptr<Streaming>> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(std::make_unique<Streaming>(pool));
  // Two that are at it, one that is not, one that waits for a connection, one that never began.
  Caller first(*streams[0], [&] { CHECK(streams[0]->receive().empty()); });
  Caller second(*streams[1], [&] { CHECK(!streams[1]->send(message)); });
  REQUIRE(streams[2]->send("echo"));
  REQUIRE(streams[2]->receive(1).size() == 1);
  REQUIRE(service.streams.reaches(3));
  Caller third(*streams[3], [&] { CHECK(!streams[3]->send(message)); });
  pool->close();
  for (Caller* const caller : {&first, &second, &third}) caller->join();
  for (const auto& stream : streams) {
    CHECK(stream->call->over());
    CHECK(stream->call->outcome().status == Status::kCancelled);
    CHECK(stream->receive().empty());
  }
  CHECK_THROWS_WITH_AS(Streaming(pool, kNever), doctest::Contains("closed"), ClosedPool);
}

TEST_CASE("stream call keeps to its deadline in every phase") {
  Service service(true);
  const auto pool = pool_to(service, 1);
  const std::string message = text_of(1000000, 1);
  const auto echoes = [](Streaming& stream) {
    return stream.send("echo") && stream.receive(1).size() == 1;
  };
  // The deadline may pass before a call comes to the phase that it is to end in: then there is more
  // time.
  const auto ends = [&](const std::string& text, const auto& act) {
    std::string told;
    for (std::int64_t ms = 50; told.find(text) == std::string::npos; ms *= 2) {
      REQUIRE_MESSAGE(ms < 10000, told);
      const std::int64_t deadline = monotonic_ns() + ms * kMillisecond;
      Streaming stream(pool, deadline);
      act(stream, deadline);
      CHECK(monotonic_ns() >= deadline);
      CHECK(stream.call->over());
      CHECK(stream.call->outcome().status == Status::kDeadlineExceeded);
      told = stream.call->outcome().message;
    }
  };
  ends("while the answer was arriving",
       [](Streaming& stream, std::int64_t) { CHECK(stream.receive().empty()); });
  ends("while the request was being sent",
       [&](Streaming& stream, std::int64_t) { CHECK(!stream.send(message)); });
  ends("while the answer was arriving", [&](Streaming& stream, std::int64_t) {
    if (echoes(stream)) CHECK(stream.receive().empty());
  });
  // Nobody is at it when the time comes.
  ends("the deadline passed", [&](Streaming& stream, std::int64_t deadline) {
    if (echoes(stream)) {
      while (monotonic_ns() < deadline) ::usleep(1000);
      CHECK(stream.receive().empty());
    }
  });
  // Another stream has the only connection.
  Streaming first(pool);
  REQUIRE(echoes(first));
  ends("waiting for a connection",
       [](Streaming& stream, std::int64_t) { CHECK(!stream.send("echo")); });
  CHECK(echoes(first));
  first.call->cancel();
  pool->close();
}

TEST_CASE("stream call goes on after a wait that was too short") {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  REQUIRE(stream.send("nothing"));
  for (int i = 0; i < 3; ++i) {
    const std::int64_t until = monotonic_ns() + 5 * kMillisecond;
    while (monotonic_ns() < until) REQUIRE(stream.call->receive(until) == Progress::kInterrupted);
    CHECK(!stream.call->over());
    CHECK(stream.sink.take().empty());
  }
  REQUIRE(stream.send("echo"));
  REQUIRE(stream.receive(1).size() == 1);
  stream.call->cancel();
  pool->close();
}

TEST_CASE("stream call hands on what came before the server hung up") {
  Service service;
  const auto pool = pool_to(service);
  {
    Streaming stream(pool);
    REQUIRE(stream.send("many 5"));
    REQUIRE(service.heard.reaches(1));
    REQUIRE(stream.send("hang up"));
    REQUIRE(stream.receive(6).size() == 5);
    CHECK(stream.call->over());
    CHECK(stream.call->outcome().status == Status::kUnavailable);
    CHECK(!stream.send("more"));
  }
  // While the one that sends is held up, and while nothing can be read for want of room.
  for (const std::size_t most : {SIZE_MAX, std::size_t{0}}) {
    Service holding(true);
    const auto other = pool_to(holding);
    Streaming stream(other);
    stream.sink.most = most;
    REQUIRE(stream.send("many 1"));
    REQUIRE(stream.send("hang up"));
    const std::string large = text_of(1000000, 1);
    CHECK(!stream.send(large));
    CHECK(stream.call->over());
    CHECK(stream.call->outcome().status == Status::kUnavailable);
    other->close();
  }
  // The next one has a connection of its own.
  Streaming stream(pool);
  REQUIRE(stream.send("many 2", true));
  REQUIRE(stream.receive(3).size() == 2);
  CHECK(service.listener.connections.count() == 2);
  pool->close();
}

TEST_CASE("stream call ends well when the server says so") {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  REQUIRE(stream.send("many 2"));
  REQUIRE(stream.send("end"));
  REQUIRE(stream.receive(3).size() == 2);
  CHECK(stream.call->over());
  CHECK(stream.call->outcome().status == Status::kOk);
  CHECK(!stream.send("more"));
  pool->close();
}

TEST_CASE("stream call of a parent does nothing in its child") {
  Service service;
  const auto pool = pool_to(service);
  auto stream = std::make_unique<Streaming>(pool);
  REQUIRE(stream->send("echo"));
  REQUIRE(stream->receive(1).size() == 1);
  // Another thread is at it, and has its lock now and then.
  std::atomic<bool> stop{false};
  Thread receiver(
      [&] {
        while (!stop) stream->call->receive(monotonic_ns() + 1000);
      },
      [&] { stop = true; });
  for (int turn = 0; turn < 20; ++turn) {
    const std::string wrong = in_child(BesideThreads::kYes, [&](Report& report) {
      StreamCall& call = *stream->call;
      call.post({}, 0, false);
      report.expect(call.send(kNever) == Progress::kDone, "it sends");
      report.expect(call.over(), "it can be sent on");
      call.half_close();
      call.cancel();
      call.give_up();
      report.expect(call.receive(kNever) == Progress::kDone, "it receives");
      report.expect(call.over(), "it goes on");
      triton_fast::http2::dispose(stream->call.release());
    });
    REQUIRE(wrong == "");
  }
  stop = true;
  receiver.join();
  REQUIRE(stream->send("echo", true));
  REQUIRE(stream->receive(1).size() == 1);
  CHECK(stream->receive().empty());
  CHECK(stream->call->outcome().status == Status::kOk);
  CHECK(service.listener.connections.count() == 1);
  CHECK(service.resets.count() == 0);
  pool->close();
}
