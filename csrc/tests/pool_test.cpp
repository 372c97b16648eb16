// Pool and Call over a Unix socket: many threads, few connections, and calls that end early.
#include "triton_fast/http2/pool.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
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
using test::receive_some;
using test::send_all;
using test::Server;
using test::Sink;
using test::wait_for;
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

  std::atomic<std::size_t> waiting{0};  // calls that are not answered

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

}  // namespace

TEST(pool_shares_few_connections_among_many_threads) {
  Echo server;
  const auto pool = pool_to(server, 3);
  std::atomic<std::size_t> right{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (std::size_t j = 0; j < 25; ++j) {
        const std::string message(i * 1000 + j, static_cast<char>('a' + i));
        Sink sink;
        const Outcome outcome = make(pool, message, sink);
        if (outcome.status == Status::kOk && sink.message == message) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 8 * 25);
  CHECK(server.listener.connections >= 1 && server.listener.connections <= 3);
  pool->close();
}

TEST(pool_replaces_connections_that_the_server_closes) {
  Echo server(2);
  const auto pool = pool_to(server, 1);
  for (std::size_t i = 0; i < 10; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk && sink.message == "x");
    wait_for(server.listener.closed, (i + 1) / 2);
  }
  CHECK(server.listener.connections == 5);
  pool->close();
}

TEST(pool_drops_connections_that_idled_too_long) {
  Echo server;
  const auto pool = pool_to(server, 1, 0);
  for (std::size_t i = 0; i < 3; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk);
  }
  CHECK(server.listener.connections == 3);
  pool->close();
}

TEST(pool_says_that_nobody_listens) {
  const auto pool = make_pool({"", "", "/nonexistent/socket"}, "localhost", 1, kMinute);
  Sink sink;
  CHECK(make(pool, "x", sink).status == Status::kUnavailable);
  CHECK(make(pool, "x", sink, 0).status == Status::kDeadlineExceeded);
}

TEST(pool_ends_what_runs_when_it_is_closed) {
  // One call waits for its answer, the others for a connection.
  Echo server;
  const auto pool = pool_to(server, 1);
  const std::string message = "wait";
  std::atomic<std::size_t> cancelled{0};
  Sink sinks[4];
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::thread> threads;
  for (Sink& sink : sinks) {
    calls.push_back(std::make_unique<Call>(pool, call_of(message), &sink, kNever, Keepalive(), 0));
    threads.emplace_back([&, call = calls.back().get()] {
      if (finish(*call).status == Status::kCancelled) ++cancelled;
    });
  }
  wait_for(server.waiting, 1);
  pool->close();
  for (std::thread& thread : threads) thread.join();
  CHECK(cancelled == 4);
  CHECK_THROWS(ClosedPool, "closed", make(pool, "x", sinks[0]));
}

TEST(calls_are_cancelled_by_other_threads) {
  Echo server;
  const auto pool = pool_to(server, 2);
  for (useconds_t delay = 0; delay < 4000; delay += 100) {
    Sink sink;
    const std::string message = "wait";
    Call call(pool, call_of(message), &sink, kNever, {}, 0);
    std::thread canceller([&] {
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

TEST(calls_keep_to_their_deadline_while_they_wait_for_a_connection) {
  Echo server;
  const auto pool = pool_to(server, 1);
  const std::string message = "wait";
  Sink sink;
  Call first(pool, call_of(message), &sink, kNever, {}, 0);
  std::thread runner([&] { finish(first); });
  wait_for(server.waiting, 1);
  const std::int64_t deadline = monotonic_ns() + 30 * kMillisecond;
  Sink other;
  const Outcome outcome = make(pool, "x", other, deadline);
  CHECK(monotonic_ns() >= deadline && outcome.status == Status::kDeadlineExceeded);
  CHECK(outcome.message.find("waiting for a connection") != std::string::npos);
  first.cancel();
  runner.join();
  CHECK(make(pool, "x", other).status == Status::kOk && other.message == "x");
  pool->close();
}

TEST(pool_of_a_parent_makes_no_calls_in_its_child) {
  Echo server;
  const auto pool = pool_to(server, 1);
  Sink sink;
  CHECK(make(pool, "x", sink).status == Status::kOk);
  const pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    bool refused = false;
    try {
      make(pool, "x", sink);
    } catch (const ClosedPool&) {
      refused = true;
    }
    pool->close();
    ::_exit(pool->inherited() && refused ? 0 : 1);
  }
  int status = -1;
  CHECK(::waitpid(child, &status, 0) == child && status == 0);
  // The parent's connection is as it was.
  CHECK(make(pool, "y", sink).status == Status::kOk && sink.message == "y");
  CHECK(server.listener.connections == 1);
  pool->close();
}
