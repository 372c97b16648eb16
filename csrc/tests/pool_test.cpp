// Pool and Call over a Unix socket: many threads, few connections, and calls that end early.
#include "triton_fast/http2/pool.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "http2_server.hpp"

namespace {

using test::kHeaders;
using test::kTrailers;
using test::Server;
using test::with_prefix;
using triton_fast::ConstBuffer;
using triton_fast::http2::Call;
using triton_fast::http2::CallSpec;
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

constexpr std::int64_t kMillisecond = 1000000;
constexpr std::int64_t kMinute = 60000 * kMillisecond;

struct Sink final : MessageSink {
  void begin(std::uint64_t) override { message.clear(); }
  void feed(ConstBuffer piece) override {
    message.append(reinterpret_cast<const char*>(piece.data), piece.size);
  }
  void finish() override {}
  std::string message;
};

/// Sends every message back, except "wait", and hangs up after as many calls as it is told.
class Listener {
 public:
  explicit Listener(std::size_t calls_each = SIZE_MAX) : calls_each_(calls_each) {
    char folder[] = "/tmp/triton_fast_testXXXXXX";
    CHECK(::mkdtemp(folder) != nullptr);
    folder_ = folder;
    path = folder_ + "/socket";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    descriptor_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(::bind(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(::listen(descriptor_, 100) == 0);
    acceptor_ = std::thread([this] { accept(); });
  }
  ~Listener() {
    ::shutdown(descriptor_, SHUT_RDWR);  // wakes accept()
    acceptor_.join();
    for (std::thread& server : servers_) server.join();
    ::close(descriptor_);
    ::unlink(path.c_str());
    ::rmdir(folder_.c_str());
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  std::string path;
  std::atomic<std::size_t> connections{0};
  std::atomic<std::size_t> closed{0};   // of them
  std::atomic<std::size_t> waiting{0};  // calls that are not answered

 private:
  void accept() {
    for (;;) {
      const int descriptor = ::accept(descriptor_, nullptr, nullptr);
      if (descriptor < 0) return;
      ++connections;
      servers_.emplace_back([this, descriptor] {
        serve(descriptor);
        ::close(descriptor);
        ++closed;
      });
    }
  }

  void serve(int descriptor) {
    Server server;
    std::vector<std::uint8_t> bytes(100000);
    std::int32_t answered = -1;
    for (std::size_t calls = 0;;) {
      const std::string out = server.take();
      if (!out.empty() && ::send(descriptor, out.data(), out.size(), MSG_NOSIGNAL) < 0) return;
      if (calls == calls_each_) return;
      const ssize_t size = ::recv(descriptor, bytes.data(), bytes.size(), 0);
      if (size <= 0) return;
      server.feed({bytes.data(), static_cast<std::size_t>(size)});
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
  std::string folder_;
  int descriptor_ = -1;
  std::thread acceptor_;
  std::vector<std::thread> servers_;  // the acceptor's until it has ended
};

std::shared_ptr<Pool> pool_to(const Listener& listener, std::size_t most,
                              std::int64_t idle_ns = kMinute) {
  return make_pool({"", "", listener.path}, "localhost", most, idle_ns);
}

/// Borrows the message.
CallSpec call_of(const std::string& message) {
  CallSpec call;
  call.path = "/a.B/C";
  call.segments = {{reinterpret_cast<const std::uint8_t*>(message.data()), message.size()}};
  call.message_size = message.size();
  return call;
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

void wait_for(const std::atomic<std::size_t>& value, std::size_t least) {
  while (value < least) ::usleep(1000);
}

}  // namespace

TEST(pool_shares_few_connections_among_many_threads) {
  Listener listener;
  const auto pool = pool_to(listener, 3);
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
  CHECK(listener.connections >= 1 && listener.connections <= 3);
  pool->close();
}

TEST(pool_replaces_connections_that_the_server_closes) {
  Listener listener(2);
  const auto pool = pool_to(listener, 1);
  for (std::size_t i = 0; i < 10; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk && sink.message == "x");
    wait_for(listener.closed, (i + 1) / 2);
  }
  CHECK(listener.connections == 5);
  pool->close();
}

TEST(pool_drops_connections_that_idled_too_long) {
  Listener listener;
  const auto pool = pool_to(listener, 1, 0);
  for (std::size_t i = 0; i < 3; ++i) {
    Sink sink;
    CHECK(make(pool, "x", sink).status == Status::kOk);
  }
  CHECK(listener.connections == 3);
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
  Listener listener;
  const auto pool = pool_to(listener, 1);
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
  wait_for(listener.waiting, 1);
  pool->close();
  for (std::thread& thread : threads) thread.join();
  CHECK(cancelled == 4);
  CHECK_THROWS(ClosedPool, "closed", make(pool, "x", sinks[0]));
}

TEST(calls_are_cancelled_by_other_threads) {
  Listener listener;
  const auto pool = pool_to(listener, 2);
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
  Listener listener;
  const auto pool = pool_to(listener, 1);
  const std::string message = "wait";
  Sink sink;
  Call first(pool, call_of(message), &sink, kNever, {}, 0);
  std::thread runner([&] { finish(first); });
  wait_for(listener.waiting, 1);
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
  Listener listener;
  const auto pool = pool_to(listener, 1);
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
  CHECK(listener.connections == 1);
  pool->close();
}
