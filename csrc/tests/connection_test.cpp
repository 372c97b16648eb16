// Connection over a pair of sockets: deadlines, and memory that is the caller's again.
#include "triton_fast/http2/connection.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "http2_client.hpp"
#include "http2_listener.hpp"
#include "http2_server.hpp"

namespace {

using test::call_of;
using test::kHeaders;
using test::kMillisecond;
using test::kTrailers;
using test::Pair;
using test::Server;
using test::Sink;
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

}  // namespace

TEST(connection_makes_calls) {
  for (const std::int64_t busy_ns : {std::int64_t{0}, 50 * kMillisecond}) {
    Pair pair;
    const std::string answer(5000000, 'y');
    std::thread server(serve, pair.ends[1], answer);
    {
      Connection connection(Socket(pair.ends[0]), "x");
      const std::string payload(5000000, 'x');
      for (int i = 0; i < 3; ++i) {
        Sink sink;
        CHECK(connection.usable());
        const Outcome outcome = make(connection, call_of(payload), sink, kNever, busy_ns);
        CHECK(outcome.status == Status::kOk && sink.message == answer && connection.open());
      }
    }
    server.join();
  }
}

TEST(connection_keeps_to_deadlines) {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  for (const std::int64_t busy_ns : {std::int64_t{0}, 3 * kMillisecond}) {
    Sink sink;
    const std::int64_t deadline = monotonic_ns() + 30 * kMillisecond;
    const Outcome outcome = make(connection, call_of(""), sink, deadline, busy_ns);
    CHECK(monotonic_ns() >= deadline && monotonic_ns() < deadline + 2000 * kMillisecond);
    CHECK(outcome.status == Status::kDeadlineExceeded && connection.open());
  }
  Sink sink;
  CHECK(make(connection, call_of(""), sink, 0).status == Status::kDeadlineExceeded);
}

TEST(connection_ends_when_it_is_interrupted) {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  Sink sink;
  std::thread interrupter([&] {
    ::usleep(20000);
    connection.interrupt();
  });
  const Outcome outcome = make(connection, call_of(""), sink, kNever);
  interrupter.join();
  CHECK(outcome.status == Status::kCancelled && outcome.exception == nullptr);
  CHECK(connection.usable());
}

TEST(connection_reads_nothing_of_the_callers_after_the_call) {
  // The peer reads nothing, so most of the request is still to be sent when its time is up. Its
  // memory then cannot even be read any more.
  constexpr std::size_t kSize = std::size_t{8} << 20;
  for (const bool large_window : {false, true}) {
    Pair pair;
    void* const memory =
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    Server server({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}});
    if (large_window) {
      server.open_windows(0, 0x7fffffff - 65535);
      const std::string out = server.take();
      CHECK(::send(pair.ends[1], out.data(), out.size(), 0) == static_cast<ssize_t>(out.size()));
    }
    Connection connection(Socket(pair.ends[0]), "x");
    CHECK(connection.usable());
    Sink sink;
    const Outcome outcome =
        make(connection, call_of(memory, kSize), sink, monotonic_ns() + 20 * kMillisecond);
    CHECK(outcome.status == Status::kDeadlineExceeded);
    CHECK(outcome.message.find("while the request was being sent") != std::string::npos);
    CHECK(::mprotect(memory, kSize, PROT_NONE) == 0);
    // With what is borrowed still to be sent it is of no use; with only a window missing it is.
    CHECK(connection.usable() == !large_window && connection.open() == !large_window);
    if (connection.open()) {
      CHECK(make(connection, call_of(""), sink, monotonic_ns() + kMillisecond).status ==
            Status::kDeadlineExceeded);
    }
    ::munmap(memory, kSize);
  }
}

TEST(connection_takes_an_answer_from_a_peer_that_has_gone) {
  // It answers in the midst of the request, and closes without reading the rest.
  Pair pair;
  Server server;
  Connection connection(Socket(pair.ends[0]), "x");
  const std::vector<std::uint8_t> payload(std::size_t{4} << 20);
  std::thread peer([&] {
    std::vector<std::uint8_t> bytes(1000);
    while (server.requests.empty()) {
      const ssize_t size = ::recv(pair.ends[1], bytes.data(), bytes.size(), 0);
      CHECK(size > 0);
      server.feed({bytes.data(), static_cast<std::size_t>(size)});
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
  CHECK(outcome.status == Status::kResourceExhausted && outcome.message == "too large");
}

TEST(connection_notices_a_peer_that_has_gone) {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  CHECK(connection.usable());
  pair.hang_up();
  CHECK(!connection.usable());
}

TEST(connection_may_be_tried_again_if_nothing_was_sent) {
  Pair pair;
  Connection connection(Socket(pair.ends[0]), "x");
  pair.hang_up();
  Sink sink;
  const Outcome outcome = make(connection, call_of(""), sink, kNever);
  CHECK(outcome.status == Status::kUnavailable && outcome.unseen && !connection.open());
}

TEST(connection_waits_for_pings_only_while_somebody_listens) {
  // The server is pinged, and answers: after a message, with which whoever listens goes away for
  // longer than any ping may take.
  Pair pair;
  Server server;
  Connection connection(Socket(pair.ends[0]), "x");
  Sink sink;
  connection.begin_call(test::stream_call(), &sink, kNever, {20 * kMillisecond, 40 * kMillisecond});
  Wants wants;
  wants.until_ns = monotonic_ns() + kMillisecond;
  CHECK(connection.run(0, wants) == Progress::kInterrupted);
  CHECK(test::receive_some(pair.ends[1], server));
  server.begin(1);
  CHECK(test::send_all(pair.ends[1], server));
  const auto pings = [&] {
    return std::count_if(server.frames.begin(), server.frames.end(),
                         [](const auto& frame) { return frame.type == NGHTTP2_PING; });
  };
  std::string answer;
  for (int turn = 1; turn <= 3; ++turn) {
    wants.until_ns = monotonic_ns() + 30 * kMillisecond;
    CHECK(connection.run(0, wants) == Progress::kInterrupted);
    CHECK(test::receive_some(pair.ends[1], server) && pings() == turn);
    answer = server.take();
    server.say(1, with_prefix("x"));
    CHECK(test::send_all(pair.ends[1], server));
    wants.until_ns = monotonic_ns() + kMillisecond;
    CHECK(connection.run(0, wants) == Progress::kInterrupted && sink.finished == turn);
    CHECK(::send(pair.ends[1], answer.data(), answer.size(), 0) > 0);
    ::usleep(60000);
  }
  // With somebody who listens and no answer, it is over in time.
  wants = {};
  for (int i = 0; connection.run(0, wants) == Progress::kInterrupted; ++i) CHECK(i < 100);
  const Outcome outcome = connection.end_call();
  CHECK(outcome.status == Status::kUnavailable);
  CHECK(outcome.message.find("did not answer a ping") != std::string::npos);
}

TEST(connection_does_not_ping_while_its_sink_is_full) {
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
  Wants wants;
  wants.until_ns = monotonic_ns() + 60 * kMillisecond;
  while (monotonic_ns() < wants.until_ns) {
    CHECK(connection.run(0, wants) == Progress::kInterrupted);
  }
  CHECK(!connection.done() && connection.end_call().status == Status::kCancelled);
}

TEST(connection_is_closed_when_an_answer_is_given_up) {
  // Whoever gives it up: somebody who interrupts, or the one who makes the call. But for an answer
  // that has not begun, it goes on.
  for (const bool interrupted : {false, true}) {
    for (const bool answered : {false, true}) {
      Pair pair;
      Server server;
      Connection connection(Socket(pair.ends[0]), "x");
      Sink sink;
      connection.begin_call(test::stream_call(), &sink, kNever, {});
      Wants wants;
      wants.until_ns = monotonic_ns() + kMillisecond;
      CHECK(connection.run(0, wants) == Progress::kInterrupted);
      CHECK(test::receive_some(pair.ends[1], server));
      if (answered) server.begin(1);
      CHECK(test::send_all(pair.ends[1], server));
      wants.until_ns = monotonic_ns() + kMillisecond;
      CHECK(connection.run(0, wants) == Progress::kInterrupted);
      if (interrupted) connection.interrupt();
      if (interrupted) CHECK(connection.run(0) == Progress::kDone);
      CHECK(connection.end_call().status == Status::kCancelled);
      CHECK(connection.open() == !answered && connection.usable() == !answered);
    }
  }
}
