// Connection over a pair of sockets: deadlines, and memory that is the caller's again.
#include "triton_fast/http2/connection.hpp"

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "http2_client.hpp"
#include "http2_listener.hpp"
#include "http2_server.hpp"
#include "thread.hpp"

namespace {

using test::call_of;
using test::kHeaders;
using test::kMillisecond;
using test::kTrailers;
using test::Pair;
using test::Server;
using test::Sink;
using test::Thread;
using test::with_prefix;
using triton_fast::http2::CallSpec;
using triton_fast::http2::Connection;
using triton_fast::http2::kNever;
using triton_fast::http2::monotonic_ns;
using triton_fast::http2::Outcome;
using triton_fast::http2::Progress;
using triton_fast::http2::Socket;
using triton_fast::http2::Status;
using triton_fast::http2::Wants;

/// Serves the other end until it is closed.
void serve(int descriptor, const std::string& answer) {
  Server server;
  std::int32_t answered = -1;
  while (test::send_all(descriptor, server) && test::receive_some(descriptor, server)) {
    for (const auto& [id, request] : server.requests) {
      if (!request.complete || id <= answered) continue;
      server.answer(id, kHeaders, with_prefix(answer), kTrailers);
      answered = id;
    }
  }
}

Outcome make(Connection& connection, const CallSpec& call, Sink& sink, std::int64_t deadline,
             std::int64_t busy_ns = 0) {
  connection.begin_call(call, &sink, deadline, {});
  while (connection.run(busy_ns) == Progress::kInterrupted) {
  }
  return connection.end_call();
}

CallSpec call_of(const void* payload, std::size_t size) {
  return test::call_of({static_cast<const char*>(payload), size});
}

/// Goes on with a call for a moment: sends what there is to send, at least.
Progress go_on(Connection& connection, std::int64_t ns = kMillisecond) {
  Wants wants;
  wants.until_ns = monotonic_ns() + ns;
  return connection.run(0, wants);
}

/// Goes on until all is read that has been sent to it.
void read_all(Connection& connection, const Pair& pair) {
  for (int left = 1; left != 0;) {
    REQUIRE(go_on(connection) == Progress::kInterrupted);
    REQUIRE(::ioctl(pair.ends[0], FIONREAD, &left) == 0);
  }
}

}  // namespace

TEST_CASE("connection makes calls") {
  for (const std::int64_t busy_ns : {std::int64_t{0}, 50 * kMillisecond}) {
    Pair pair;
    const std::string answer(5000000, 'y');
    Thread server([&] { serve(pair.ends[1], answer); }, [&] { pair.wake(); });
    {
      Connection connection(Socket(pair.ends[0]), "x");
      const std::string payload(5000000, 'x');
      for (int i = 0; i < 3; ++i) {
        Sink sink;
        CHECK(connection.usable());
        const Outcome outcome = make(connection, call_of(payload), sink, kNever, busy_ns);
        CHECK(outcome.status == Status::kOk);
        CHECK((sink.message == answer));
        CHECK(connection.open());
      }
    }
    server.join();
  }
}

TEST_CASE("connection keeps to deadlines") {
  for (const std::int64_t busy_ns : {std::int64_t{0}, 3 * kMillisecond}) {
    for (const bool speaks : {false, true}) {
      Pair pair;
      Connection connection(Socket(pair.ends[0]), "x");
      if (speaks) {
        Server server;
        const std::string out = server.take();
        REQUIRE(::send(pair.ends[1], out.data(), out.size(), 0) ==
                static_cast<ssize_t>(out.size()));
      }
      Sink sink;
      const std::int64_t deadline = monotonic_ns() + 30 * kMillisecond;
      const Outcome outcome = make(connection, call_of(""), sink, deadline, busy_ns);
      CHECK(monotonic_ns() >= deadline);
      CHECK(outcome.status == Status::kDeadlineExceeded);
      // One on which nothing at all has come is not used again.
      CHECK(connection.open() == speaks);
    }
  }
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  Sink sink;
  CHECK(make(connection, call_of(""), sink, 0).status == Status::kDeadlineExceeded);
}

TEST_CASE("connection ends when it is interrupted") {
  // Once the request has come, which is before the caller waits, or when it does.
  for (int turn = 0; turn < 20; ++turn) {
    Pair pair;
    Connection connection(Socket(pair.ends[0]), "x");
    Sink sink;
    Thread interrupter([&] {
      Server server;
      const bool came = test::receive_some(pair.ends[1], server);
      connection.interrupt();
      REQUIRE(came);
    });
    const Outcome outcome = make(connection, call_of(""), sink, kNever);
    interrupter.join();
    CHECK(outcome.status == Status::kCancelled);
    CHECK(outcome.exception == nullptr);
    CHECK(connection.usable());
  }
}

TEST_CASE("connection reads nothing of the callers after the call") {
  // The peer reads nothing, so most of the request is still to be sent when its time is up. Its
  // memory then cannot even be read any more.
  constexpr std::size_t kSize = std::size_t{8} << 20;
  for (const bool large_window : {false, true}) {
    Pair pair;
    void* const memory =
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    Server server({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}});
    if (large_window) server.open_windows(0, 0x7fffffff - 65535);
    const std::string out = server.take();
    REQUIRE(::send(pair.ends[1], out.data(), out.size(), 0) == static_cast<ssize_t>(out.size()));
    Connection connection(Socket(pair.ends[0]), "x");
    if (large_window) CHECK(connection.usable());  // it is known before the call begins
    Sink sink;
    const Outcome outcome =
        make(connection, call_of(memory, kSize), sink, monotonic_ns() + 20 * kMillisecond);
    CHECK(outcome.status == Status::kDeadlineExceeded);
    CHECK(outcome.message.find("while the request was being sent") != std::string::npos);
    REQUIRE(::mprotect(memory, kSize, PROT_NONE) == 0);
    // With what is borrowed still to be sent it is of no use; with only a window missing it is.
    CHECK(connection.usable() == !large_window);
    CHECK(connection.open() == !large_window);
    if (connection.open()) {
      CHECK(make(connection, call_of(""), sink, monotonic_ns() + kMillisecond).status ==
            Status::kDeadlineExceeded);
    }
    ::munmap(memory, kSize);
  }
}

TEST_CASE("connection takes an answer from a peer that has gone") {
  // It answers in the midst of the request, and closes without reading the rest.
  Pair pair;
  Server server;
  Connection connection(Socket(pair.ends[0]), "x");
  const std::vector<std::uint8_t> payload(std::size_t{4} << 20);
  Thread peer([&] {
    std::vector<std::uint8_t> bytes(1000);
    for (ssize_t size = 1; size > 0 && server.requests.empty();) {
      size = ::recv(pair.ends[1], bytes.data(), bytes.size(), 0);
      if (size > 0) server.feed({bytes.data(), static_cast<std::size_t>(size)});
    }
    server.open_windows(0, 1 << 30);
    server.open_windows(1, 1 << 30);
    server.answer(1, {{":status", "200"}, {"grpc-status", "8"}, {"grpc-message", "too large"}});
    const std::string out = server.take();
    ::send(pair.ends[1], out.data(), out.size(), 0);
    pair.hang_up();
  });
  Sink sink;
  const Outcome outcome = make(connection, call_of(payload.data(), payload.size()), sink, kNever);
  peer.join();
  CHECK(outcome.status == Status::kResourceExhausted);
  CHECK(outcome.message == "too large");
}

TEST_CASE("connection notices a peer that has gone") {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  CHECK(connection.usable());
  pair.hang_up();
  CHECK(!connection.usable());
}

TEST_CASE("connection may be tried again if nothing was sent") {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  pair.hang_up();
  Sink sink;
  const Outcome outcome = make(connection, call_of(""), sink, kNever);
  CHECK(outcome.status == Status::kUnavailable);
  CHECK(outcome.safe_to_retry);
  CHECK(!connection.open());
}

namespace {

/// The server is pinged, and answers: after a message, with which whoever listens goes away for
/// longer than any ping may take. Returns false if this thread was held up for as long while it
/// listened, so that it has not seen what it was to see.
bool answers_pings_late() {
  constexpr std::int64_t kAfter = 20 * kMillisecond;
  constexpr std::int64_t kTimeout = 200 * kMillisecond;
  Pair pair;
  Server server;
  Sink sink;
  Connection connection(Socket(pair.ends[0]), "x");
  connection.begin_call(test::stream_call(), &sink, kNever, {kAfter, kTimeout});
  std::int64_t before = 0;    // how long it listened for the ping before, at most
  std::int64_t listened = 0;  // and for this one
  const auto listen = [&](std::int64_t ns) {
    const std::int64_t begin = monotonic_ns();
    const Progress progress = go_on(connection, ns);
    listened += monotonic_ns() - begin;
    if (progress == Progress::kInterrupted) return true;
    REQUIRE(before + listened >= kTimeout);
    connection.end_call();
    return false;
  };
  const auto hear = [&] {
    for (pollfd come{pair.ends[1], POLLIN, 0}; ::poll(&come, 1, 0) == 1;) {
      REQUIRE(test::receive_some(pair.ends[1], server));
    }
    return std::count_if(server.frames.begin(), server.frames.end(),
                         [](const auto& frame) { return frame.type == NGHTTP2_PING; });
  };
  if (!listen(kMillisecond)) return false;
  hear();
  server.begin(1);
  REQUIRE(test::send_all(pair.ends[1], server));
  for (int turn = 1; turn <= 3; ++turn) {
    before = std::exchange(listened, 0);
    while (hear() < turn) {
      if (!listen(kAfter)) return false;
    }
    const std::string answer = server.take();
    server.say(1, with_prefix("x"));
    REQUIRE(test::send_all(pair.ends[1], server));
    while (sink.finished < turn) {
      if (!listen(kMillisecond)) return false;
    }
    REQUIRE(::send(pair.ends[1], answer.data(), answer.size(), 0) > 0);
    ::usleep(static_cast<useconds_t>((kTimeout + kAfter) / 1000));
  }
  // With somebody who listens and no answer, it is over in time.
  const std::int64_t begin = monotonic_ns();
  while (go_on(connection, kTimeout) == Progress::kInterrupted) {
    REQUIRE(monotonic_ns() - begin < std::chrono::nanoseconds(test::kPatience).count());
  }
  const Outcome outcome = connection.end_call();
  CHECK(outcome.status == Status::kUnavailable);
  CHECK(outcome.message.find("did not answer a ping") != std::string::npos);
  return true;
}

}  // namespace

TEST_CASE("connection waits for pings only while somebody listens") {
  for (int tries = 0; !answers_pings_late(); ++tries) REQUIRE(tries < 20);
}

TEST_CASE("connection does not ping while its sink is full") {
  struct FullSink final : triton_fast::http2::MessageSink {
    void begin(std::uint64_t) override {}
    void feed(triton_fast::ConstBuffer) override {}
    void finish() override {}
    bool full() const noexcept override { return true; }
  };
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  FullSink sink;
  connection.begin_call(test::stream_call(), &sink, kNever, {5 * kMillisecond, 5 * kMillisecond});
  for (int turn = 0; turn < 6; ++turn) {
    REQUIRE(go_on(connection, 10 * kMillisecond) == Progress::kInterrupted);
  }
  CHECK(!connection.done());
  Server server;
  REQUIRE(test::receive_some(pair.ends[1], server));
  CHECK(std::none_of(server.frames.begin(), server.frames.end(),
                     [](const auto& frame) { return frame.type == NGHTTP2_PING; }));
  CHECK(connection.end_call().status == Status::kCancelled);
}

TEST_CASE("connection is closed when an answer is given up") {
  // Whoever gives it up: somebody who interrupts, or the one who makes the call. But for an answer
  // that has not begun, it goes on.
  for (const bool interrupted : {false, true}) {
    for (const bool answered : {false, true}) {
      Pair pair;
      Server server;
      Connection connection(Socket(pair.ends[0]), "x");
      Sink sink;
      connection.begin_call(test::stream_call(), &sink, kNever, {});
      REQUIRE(go_on(connection) == Progress::kInterrupted);
      REQUIRE(test::receive_some(pair.ends[1], server));
      if (answered) server.begin(1);
      REQUIRE(test::send_all(pair.ends[1], server));
      read_all(connection, pair);
      if (interrupted) connection.interrupt();
      if (interrupted) REQUIRE(connection.run(0) == Progress::kDone);
      CHECK(connection.end_call().status == Status::kCancelled);
      CHECK(connection.open() == !answered);
      CHECK(connection.usable() == !answered);
    }
  }
}
