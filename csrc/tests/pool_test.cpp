// Pool and Call over a Unix socket: many threads, few connections, and calls that end early.
#include "triton_fast/http2/pool.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forked.hpp"
#include "http2_client.hpp"
#include "http2_listener.hpp"
#include "http2_server.hpp"
#include "thread.hpp"

namespace {

using test::BesideThreads;
using test::call_of;
using test::Counter;
using test::in_child;
using test::kHeaders;
using test::kMillisecond;
using test::kTrailers;
using test::receive_some;
using test::Report;
using test::send_all;
using test::Server;
using test::Sink;
using test::Thread;
using test::with_prefix;
using triton_fast::http2::Call;
using triton_fast::http2::CallSpec;
using triton_fast::http2::ClosedPool;
using triton_fast::http2::Keepalive;
using triton_fast::http2::kNever;
using triton_fast::http2::make_pool;
using triton_fast::http2::monotonic_ns;
using triton_fast::http2::Outcome;
using triton_fast::http2::Pool;
using triton_fast::http2::Progress;
using triton_fast::http2::Status;

constexpr std::int64_t kMinute = 60000 * kMillisecond;

/// Sends every message back, except "wait", and hangs up after as many calls as it is told.
class Echo {
 public:
  explicit Echo(std::size_t calls_each = SIZE_MAX)
      : calls_each_(calls_each), listener([this](int descriptor) { serve(descriptor); }) {}

  Counter waiting;  // calls that are not answered

 private:
  void serve(int descriptor) {
    Server server;
    std::int32_t answered = -1;
    for (std::size_t calls = 0;;) {
      if (!send_all(descriptor, server) || calls == calls_each_) return;
      if (!receive_some(descriptor, server)) return;
      for (const auto& [id, request] : server.requests) {
        if (!request.complete || id <= answered) continue;
        answered = id;
        if (request.body == with_prefix("wait")) {
          ++waiting;
          continue;
        }
        server.answer(id, kHeaders, request.body, kTrailers);
        ++calls;
      }
    }
  }

  const std::size_t calls_each_;

 public:
  test::Listener listener;  // the last: its threads use the others
};

std::shared_ptr<Pool> pool_to(const Echo& server, std::size_t most,
                              std::int64_t idle_ns = kMinute) {
  return make_pool({"", "", server.listener.path}, "localhost", most, idle_ns);
}

Outcome finish(Call& call) {
  while (call.run() == Progress::kInterrupted) {
  }
  return call.end();
}

Outcome make(const std::shared_ptr<Pool>& pool, const std::string& message, Sink& sink,
             std::int64_t deadline_ns = kNever) {
  Call call(pool, call_of(message), &sink, deadline_ns, {}, 0);
  return finish(call);
}

struct Pipe {
  Pipe() { REQUIRE(::pipe(ends) == 0); }
  ~Pipe() {
    close(0);
    close(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  void close(int end) {
    if (ends[end] >= 0) ::close(std::exchange(ends[end], -1));
  }

  int ends[2] = {-1, -1};
};

}  // namespace

TEST_CASE("pool shares few connections among many threads") {
  Echo server;
  const auto pool = pool_to(server, 3);
  std::atomic<std::size_t> right{0};
  std::vector<std::unique_ptr<Thread>> threads;
  for (std::size_t i = 0; i < 8; ++i) {
    const auto call = [&, i] {
      for (std::size_t j = 0; j < 25; ++j) {
        const std::string message(i * 1000 + j, static_cast<char>('a' + i));
        Sink sink;
        const Outcome outcome = make(pool, message, sink);
        if (outcome.status == Status::kOk && sink.message == message) ++right;
      }
    };
    threads.push_back(std::make_unique<Thread>(call, [&] { pool->close(); }));
  }
  for (const auto& thread : threads) thread->join();
  CHECK(right.load() == 8 * 25);
  CHECK(server.listener.connections.count() >= 1);
  CHECK(server.listener.connections.count() <= 3);
  pool->close();
}

TEST_CASE("pool uses its connections again") {
  Echo server;
  const auto pool = pool_to(server, 3);
  for (int i = 0; i < 10; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk);
  }
  CHECK(server.listener.connections.count() == 1);
  pool->close();
}

TEST_CASE("pool replaces connections that the server closes") {
  Echo server(2);
  const auto pool = pool_to(server, 1);
  for (std::size_t i = 0; i < 10; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk);
    CHECK(sink.message == "x");
    REQUIRE(server.listener.closed.reaches((i + 1) / 2));
  }
  CHECK(server.listener.connections.count() == 5);
  pool->close();
}

TEST_CASE("pool drops connections that idled too long") {
  Echo server;
  const auto pool = pool_to(server, 1, 0);
  for (std::size_t i = 0; i < 3; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk);
  }
  CHECK(server.listener.connections.count() == 3);
  pool->close();
}

TEST_CASE("pool says that nobody listens") {
  const auto pool = make_pool({"", "", "/nonexistent/socket"}, "localhost", 1, kMinute);
  Sink sink;
  CHECK(make(pool, "x", sink).status == Status::kUnavailable);
  CHECK(make(pool, "x", sink, 0).status == Status::kDeadlineExceeded);
}

TEST_CASE("pool ends what runs when it is closed") {
  // One call waits for its answer, the others for a connection.
  Echo server;
  const auto pool = pool_to(server, 1);
  const std::string message = "wait";
  std::atomic<std::size_t> cancelled{0};
  Sink sinks[4];
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::unique_ptr<Thread>> threads;
  for (Sink& sink : sinks) {
    calls.push_back(std::make_unique<Call>(pool, call_of(message), &sink, kNever, Keepalive(), 0));
    const auto run = [&, call = calls.back().get()] {
      if (finish(*call).status == Status::kCancelled) ++cancelled;
    };
    threads.push_back(std::make_unique<Thread>(run, [&] { pool->close(); }));
  }
  REQUIRE(server.waiting.reaches(1));
  pool->close();
  for (const auto& thread : threads) thread->join();
  CHECK(cancelled.load() == 4);
  CHECK_THROWS_WITH_AS(make(pool, "x", sinks[0]), doctest::Contains("closed"), ClosedPool);
}

TEST_CASE("calls are cancelled by other threads") {
  // At any time: while the call connects, is sent or waits.
  Echo server;
  const auto pool = pool_to(server, 2);
  for (useconds_t delay = 0; delay < 4000; delay += 100) {
    Sink sink;
    const std::string message = "wait";
    Call call(pool, call_of(message), &sink, kNever, {}, 0);
    Thread canceller([&] {
      ::usleep(delay);
      call.cancel();
    });
    CHECK(finish(call).status == Status::kCancelled);
    canceller.join();
  }
  Sink sink;
  CHECK(make(pool, "x", sink).status == Status::kOk);
  pool->close();
}

TEST_CASE("calls keep to their deadline while they wait for a connection") {
  Echo server;
  const auto pool = pool_to(server, 1);
  const std::string message = "wait";
  Sink sink;
  Call first(pool, call_of(message), &sink, kNever, {}, 0);
  Thread runner([&] { finish(first); }, [&] { first.cancel(); });
  REQUIRE(server.waiting.reaches(1));
  Sink other;
  // The deadline may pass before the call comes to wait: then it is given more time.
  std::string told;
  for (std::int64_t ms = 30; told.find("waiting for a connection") == std::string::npos; ms *= 2) {
    REQUIRE_MESSAGE(ms < 10000, told);
    const std::int64_t deadline = monotonic_ns() + ms * kMillisecond;
    const Outcome outcome = make(pool, "x", other, deadline);
    CHECK(monotonic_ns() >= deadline);
    CHECK(outcome.status == Status::kDeadlineExceeded);
    told = outcome.message;
  }
  first.cancel();
  runner.join();
  CHECK(make(pool, "x", other).status == Status::kOk);
  CHECK(other.message == "x");
  pool->close();
}

TEST_CASE("pool of a parent makes no calls in its child") {
  const auto pool = make_pool({"", "", "/nonexistent/socket"}, "localhost", 1, kMinute);
  const std::string wrong = in_child(BesideThreads::kNo, [&](Report& report) {
    Sink sink;
    report.expect(pool->inherited(), "it does not know that it is a copy");
    try {
      make(pool, "x", sink);
      report.say("it makes calls");
    } catch (const ClosedPool&) {
    }
  });
  CHECK(wrong == "");
}

TEST_CASE("connections of a parent are as they were when its child has ended") {
  Echo server;
  const auto pool = pool_to(server, 1);
  Sink sink;
  REQUIRE(make(pool, "x", sink).status == Status::kOk);
  const std::string wrong = in_child(BesideThreads::kYes, [&](Report& report) {
    report.expect(pool->inherited(), "it does not know that it is a copy");
    pool->close();
    dispose(pool.get());
  });
  CHECK(wrong == "");
  CHECK(make(pool, "y", sink).status == Status::kOk);
  CHECK(sink.message == "y");
  CHECK(server.listener.connections.count() == 1);
  pool->close();
}

TEST_CASE("connections of a parent end when it ends them") {
  // Though a child lives on, which has closed what it has inherited of them.
  Echo server;
  const auto pool = pool_to(server, 1);
  Sink sink;
  REQUIRE(make(pool, "x", sink).status == Status::kOk);
  Pipe lives;
  Pipe held;
  bool closed = false;
  Thread parent(
      [&] {
        char byte;
        REQUIRE(::read(lives.ends[0], &byte, 1) == 1);
        pool->close();
        closed = server.listener.closed.reaches(1);
        held.close(1);
      },
      [&] { lives.close(1); });
  const std::string wrong = in_child(BesideThreads::kYes, [&](Report& report) {
    held.close(1);
    char byte = 0;
    report.expect(::write(lives.ends[1], &byte, 1) == 1, "nobody hears that it lives");
    report.expect(::read(held.ends[0], &byte, 1) == 0, "it is told more than the end");
  });
  lives.close(1);
  CHECK(wrong == "");
  parent.join();
  CHECK(closed);
}
