// StreamCall over a Unix socket: a thread that sends, one that receives, and others that end it.
#include <poll.h>
#include <sys/wait.h>
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
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "http2_client.hpp"
#include "http2_listener.hpp"
#include "http2_server.hpp"
#include "triton_fast/http2/pool.hpp"

namespace {

using test::buffer;
using test::kMillisecond;
using test::Server;
using test::stream_call;
using test::text_of;
using test::wait_for;
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
///   "beat"      the time, every few milliseconds from now on
///   "hang up"   nothing: the connection is closed
///   "end"       nothing: the stream ends, and well
/// and ends a stream when the client has. Whatever else it is told, it keeps to itself.
class Service {
 public:
  /// One that holds takes no more than the first window of a connection, until it is released.
  explicit Service(bool holds = false)
      : holds_(holds), listener([this](int descriptor) { serve(descriptor); }) {}

  void release() { released_ = true; }

  std::atomic<std::size_t> streams{0};  // that have begun
  std::atomic<std::size_t> heard{0};    // messages
  std::atomic<std::size_t> resets{0};   // streams that the client has given up

 private:
  struct Answering {
    std::size_t read = 0;  // of the body
    bool open = true;
    bool beats = false;
    bool ended = false;
    bool reset = false;
  };

  void serve(int descriptor) {
    Server server({}, !holds_);
    std::map<std::int32_t, Answering> answering;
    for (;;) {
      if (!test::send_all(descriptor, server)) return;
      pollfd waiting{descriptor, POLLIN, 0};
      if (::poll(&waiting, 1, 4) == 1 && !test::receive_some(descriptor, server)) return;
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
        if (state.beats) server.say(id, with_prefix(std::to_string(monotonic_ns())));
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

  static void answer(Server& server, std::int32_t id, const std::string& message,
                     Answering& state) {
    if (message.rfind("echo", 0) == 0) {
      server.say(id, with_prefix(message));
    } else if (message.rfind("many ", 0) == 0) {
      const int count = std::stoi(message.substr(5));
      for (int i = 0; i < count; ++i) server.say(id, with_prefix(std::to_string(i)));
    } else if (message == "beat") {
      state.beats = true;
    } else if (message == "end") {
      state.ended = true;
      server.end(id);
    }
  }

  const bool holds_;
  std::atomic<bool> released_{false};

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

/// How long a thread lets another get to where it waits.
void breathe() { ::usleep(20000); }

}  // namespace

TEST(stream_call_sends_and_receives) {
  Service service;
  const auto pool = pool_to(service);
  for (const std::int64_t busy_ns : {std::int64_t{0}, 20 * kMillisecond}) {
    Streaming stream(pool, kNever, {}, busy_ns);
    for (int i = 0; i < 20; ++i) {
      const std::string message = "echo" + text_of(static_cast<std::size_t>(i * i * 2000), 1);
      CHECK(stream.send(message, i == 19));
      const std::vector<std::string> answers = stream.receive();
      CHECK(answers.size() == 1 && answers[0] == message);
      CHECK(!stream.call->over() || i == 19);
    }
    CHECK(stream.receive().empty() && stream.call->over());
    CHECK(stream.call->outcome().status == Status::kOk);
    CHECK(stream.receive().empty());
  }
  // The first one's connection was given back when it was over.
  CHECK(service.listener.connections == 1 && service.streams == 2 && service.resets == 0);
  pool->close();
}

TEST(stream_call_is_half_closed_by_itself) {
  Service service;
  const auto pool = pool_to(service);
  for (const bool begun : {true, false}) {
    Streaming stream(pool);
    if (begun) CHECK(stream.send("many 3") && stream.receive(3).size() == 3);
    stream.call->half_close();
    stream.call->half_close();
    CHECK(stream.receive().empty() && stream.call->outcome().status == Status::kOk);
    CHECK_THROWS(std::logic_error, "half closed", {
      Streaming other(pool);
      other.call->half_close();
      other.call->post({buffer("x")}, 1, false);
    });
  }
  // While another thread waits for messages.
  Streaming stream(pool);
  CHECK(stream.send("echo") && stream.receive(1).size() == 1);
  std::thread receiver([&] { CHECK(stream.receive().empty()); });
  breathe();
  stream.call->half_close();
  receiver.join();
  CHECK(stream.call->outcome().status == Status::kOk);
  pool->close();
}

TEST(stream_call_has_one_message_under_way) {
  Service service(true);
  const auto pool = pool_to(service);
  Streaming stream(pool);
  const std::string message = text_of(100000, 1);
  CHECK(!stream.send(message, false, monotonic_ns() + 20 * kMillisecond));
  CHECK_THROWS(std::logic_error, "one after another", stream.call->post({}, 0, false));
  service.release();
  while (stream.call->send(kNever) == Progress::kInterrupted) {
  }
  CHECK(stream.send("many 1", true) && stream.receive(1).size() == 1);
  CHECK(stream.receive().empty());
  stream.call->post({}, 0, false);  // nobody would read it
  CHECK(stream.call->send(kNever) == Progress::kDone && stream.call->over());
  pool->close();
}

TEST(stream_call_is_for_one_thread_that_sends_and_one_that_receives) {
  Service service;
  const auto pool = pool_to(service);
  for (const std::int64_t busy_ns : {std::int64_t{0}, kMillisecond}) {
    Streaming stream(pool, kNever, {}, busy_ns);
    constexpr std::size_t kCount = 300;
    const auto message_of = [](std::size_t i) {
      return "echo" + text_of(i % 50 == 0 ? 400000 : 10 * i, static_cast<unsigned>(i));
    };
    std::thread sender([&] {
      for (std::size_t i = 0; i < kCount; ++i) {
        const std::string message = message_of(i);
        CHECK(stream.send(message, i + 1 == kCount));
      }
    });
    const std::vector<std::string> answers = stream.receive(kCount + 1);
    sender.join();
    CHECK(answers.size() == kCount);
    for (std::size_t i = 0; i < kCount; ++i) CHECK(answers[i] == message_of(i));
    CHECK(stream.call->outcome().status == Status::kOk);
  }
  CHECK(service.listener.connections == 1);
  pool->close();
}

TEST(stream_call_receives_many_small_messages) {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  CHECK(stream.send("many 50000", true));
  const std::vector<std::string> answers = stream.receive(50001);
  CHECK(answers.size() == 50000);
  for (std::size_t i = 0; i < answers.size(); ++i) CHECK(answers[i] == std::to_string(i));
  pool->close();
}

TEST(stream_call_hands_messages_on_while_its_sender_is_held_up) {
  // Whoever comes first, the messages do not wait for the sender to give way by itself.
  for (const bool sender_first : {true, false}) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool);
    CHECK(stream.send("beat"));
    const std::string message = text_of(1000000, 1);
    std::atomic<bool> sent{false};
    const auto send = [&] {
      CHECK(stream.send(message));
      sent = true;
    };
    std::thread sender;
    if (sender_first) sender = std::thread(send);
    if (sender_first) breathe();
    std::vector<std::int64_t> delays;
    while (delays.size() < 60) {
      for (const std::string& beat : stream.receive()) {
        delays.push_back(monotonic_ns() - std::stoll(beat));
      }
      if (!sender.joinable()) sender = std::thread(send);
    }
    CHECK(!sent);
    std::sort(delays.begin(), delays.end());
    // The median: other processes want the processor too.
    CHECK(delays[30] < 60 * kMillisecond);
    service.release();
    sender.join();
    wait_for(service.heard, 2);
    stream.call->cancel();
    pool->close();
  }
}

TEST(stream_call_reads_no_more_than_its_sink_takes_while_it_sends) {
  // The one that sends is alone, and there is more to read than the sink is to keep.
  for (const std::int64_t busy_ns : {std::int64_t{0}, kMillisecond}) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool, kNever, {}, busy_ns);
    stream.sink.most = 10;
    CHECK(stream.send("many 100000"));
    const std::string message = text_of(1000000, 1);
    CHECK(!stream.send(message, false, monotonic_ns() + 200 * kMillisecond));
    // One more piece may have been read after it was full.
    const std::size_t kept = stream.sink.take().size();
    CHECK(kept > 10 && kept < 60000);
    // The rest comes when there is room.
    std::size_t rest = 0;
    while (kept + rest < 100000) rest += stream.receive().size();
    CHECK(kept + rest == 100000);
    stream.call->give_up();
    pool->close();
  }
}

TEST(stream_call_is_cancelled_by_any_thread) {
  Service service(true);
  const auto pool = pool_to(service, 2);
  const auto message = std::make_unique<std::string>(text_of(1000000, 1));
  for (useconds_t delay = 0; delay < 6000; delay += 200) {
    Streaming stream(pool);
    // One receives, one sends more than the server takes, one cancels.
    std::thread receiver([&] { CHECK(stream.receive().empty()); });
    std::thread sender([&] {
      auto copy = std::make_unique<std::string>(*message);
      CHECK(!stream.send(*copy));
      copy.reset();  // for the address sanitizer
      CHECK(stream.call->over());
    });
    std::thread canceller([&] {
      ::usleep(delay);
      stream.call->cancel();
    });
    receiver.join();
    sender.join();
    canceller.join();
    CHECK(stream.call->over() && stream.call->outcome().status == Status::kCancelled);
    stream.call->post({}, 0, true);
    CHECK(stream.call->send(kNever) == Progress::kDone);
  }
  pool->close();
}

TEST(stream_call_is_cancelled_when_nobody_is_at_it) {
  Service service;
  const auto pool = pool_to(service);
  for (const bool begun : {false, true}) {
    Streaming stream(pool);
    if (begun) CHECK(stream.send("echo") && stream.receive(1).size() == 1);
    CHECK(!stream.call->over());
    stream.call->cancel();
    CHECK(stream.call->over() && stream.call->outcome().status == Status::kCancelled);
    CHECK(stream.call->outcome().message == "the call was cancelled");
    CHECK(stream.receive().empty());
  }
  wait_for(service.resets, 1);
  // Or by being dropped, with messages that nobody has read.
  {
    Streaming stream(pool);
    CHECK(stream.send("many 1000") && stream.receive(1).size() != 0);
  }
  wait_for(service.resets, 2);
  CHECK(service.streams == 2);
  pool->close();
}

TEST(stream_call_that_is_given_up_has_its_message_back) {
  // The one that sends gives up, while the one that receives is at the connection.
  for (int turn = 0; turn < 10; ++turn) {
    Service service(true);
    const auto pool = pool_to(service);
    Streaming stream(pool);
    CHECK(stream.send("echo") && stream.receive(1).size() == 1);
    std::thread receiver([&] { CHECK(stream.receive().empty()); });
    auto message = std::make_unique<std::string>(text_of(1000000, 1));
    CHECK(!stream.send(*message, false, monotonic_ns() + turn * 3 * kMillisecond));
    stream.call->give_up();
    CHECK(stream.call->over());
    message.reset();
    receiver.join();
    CHECK(stream.call->outcome().status == Status::kCancelled);
    pool->close();
  }
}

TEST(streams_end_when_their_pool_is_closed) {
  Service service(true);
  const auto pool = pool_to(service, 3);
  const std::string message = text_of(1000000, 1);
  std::vector<std::unique_ptr<Streaming>> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(std::make_unique<Streaming>(pool));
  std::vector<std::thread> threads;
  // Two that are at it, one that is not, one that waits for a connection, one that never began.
  threads.emplace_back([&] { CHECK(streams[0]->receive().empty()); });
  threads.emplace_back([&] { CHECK(!streams[1]->send(message)); });
  CHECK(streams[2]->send("echo") && streams[2]->receive(1).size() == 1);
  wait_for(service.streams, 3);
  threads.emplace_back([&] { CHECK(!streams[3]->send(message)); });
  breathe();
  pool->close();
  for (std::thread& thread : threads) thread.join();
  for (const auto& stream : streams) {
    CHECK(stream->call->over() && stream->call->outcome().status == Status::kCancelled);
    CHECK(stream->receive().empty());
  }
  CHECK_THROWS(ClosedPool, "closed", Streaming(pool, kNever));
}

TEST(stream_call_keeps_to_its_deadline_in_every_phase) {
  Service service(true);
  const auto pool = pool_to(service, 1);
  const std::string message = text_of(1000000, 1);
  struct Case {
    std::function<void(Streaming&)> act;
    const char* text;
  };
  const Case cases[] = {
      {[](Streaming& stream) { CHECK(stream.receive().empty()); }, "while the answer was arriving"},
      {[&](Streaming& stream) { CHECK(!stream.send(message)); },
       "while the request was being sent"},
      {[](Streaming& stream) {
         CHECK(stream.send("echo") && stream.receive(1).size() == 1);
         CHECK(stream.receive().empty());
       },
       "while the answer was arriving"},
      // Nobody is at it when the time comes.
      {[](Streaming& stream) {
         CHECK(stream.send("echo") && stream.receive(1).size() == 1);
         ::usleep(150000);
         CHECK(stream.receive().empty());
       },
       "the deadline passed"},
  };
  for (const Case& one : cases) {
    const std::int64_t deadline = monotonic_ns() + 120 * kMillisecond;
    Streaming stream(pool, deadline);
    one.act(stream);
    CHECK(monotonic_ns() >= deadline && stream.call->over());
    CHECK(stream.call->outcome().status == Status::kDeadlineExceeded);
    CHECK(stream.call->outcome().message.find(one.text) != std::string::npos);
  }
  // While another stream has the only connection.
  Streaming first(pool);
  CHECK(first.send("echo") && first.receive(1).size() == 1);
  Streaming second(pool, monotonic_ns() + 30 * kMillisecond);
  CHECK(!second.send("echo"));
  CHECK(second.call->outcome().status == Status::kDeadlineExceeded);
  CHECK(second.call->outcome().message.find("waiting for a connection") != std::string::npos);
  CHECK(first.send("echo") && first.receive(1).size() == 1);
  first.call->cancel();
  pool->close();
}

TEST(stream_call_goes_on_after_a_wait_that_was_too_short) {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  CHECK(stream.send("nothing"));
  for (int i = 0; i < 3; ++i) {
    const std::int64_t until = monotonic_ns() + 5 * kMillisecond;
    while (monotonic_ns() < until) CHECK(stream.call->receive(until) == Progress::kInterrupted);
    CHECK(!stream.call->over() && stream.sink.take().empty());
  }
  CHECK(stream.send("echo") && stream.receive(1).size() == 1);
  stream.call->cancel();
  pool->close();
}

TEST(stream_call_hands_on_what_came_before_the_server_hung_up) {
  Service service;
  const auto pool = pool_to(service);
  {
    Streaming stream(pool);
    CHECK(stream.send("many 5"));
    wait_for(service.heard, 1);
    breathe();
    CHECK(stream.send("hang up"));
    CHECK(stream.receive(6).size() == 5 && stream.call->over());
    CHECK(stream.call->outcome().status == Status::kUnavailable);
    CHECK(!stream.send("more"));
  }
  // While the one that sends is held up, and while nothing can be read for want of room.
  for (const std::size_t most : {SIZE_MAX, std::size_t{0}}) {
    Service holding(true);
    const auto other = pool_to(holding);
    Streaming stream(other);
    stream.sink.most = most;
    CHECK(stream.send("many 1"));
    const std::string message = "hang up";
    std::thread sender([&] {
      CHECK(stream.send(message));
      const std::string large = text_of(1000000, 1);
      CHECK(!stream.send(large));
    });
    sender.join();
    CHECK(stream.call->over() && stream.call->outcome().status == Status::kUnavailable);
    other->close();
  }
  // The next one has a connection of its own.
  Streaming stream(pool);
  CHECK(stream.send("many 2", true) && stream.receive(3).size() == 2);
  CHECK(service.listener.connections == 2);
  pool->close();
}

TEST(stream_call_ends_well_when_the_server_says_so) {
  Service service;
  const auto pool = pool_to(service);
  Streaming stream(pool);
  CHECK(stream.send("many 2") && stream.send("end"));
  CHECK(stream.receive(3).size() == 2 && stream.call->over());
  CHECK(stream.call->outcome().status == Status::kOk);
  CHECK(!stream.send("more"));
  pool->close();
}

TEST(stream_call_of_a_parent_does_nothing_in_its_child) {
  Service service;
  const auto pool = pool_to(service);
  auto stream = std::make_unique<Streaming>(pool);
  CHECK(stream->send("echo") && stream->receive(1).size() == 1);
  // Another thread is at it, and has its lock now and then.
  std::atomic<bool> stop{false};
  std::thread receiver([&] {
    while (!stop) stream->call->receive(monotonic_ns() + 1000);
  });
  for (int turn = 0; turn < 20; ++turn) {
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
      ::alarm(10);
      StreamCall& call = *stream->call;
      call.post({buffer("x")}, 1, false);
      bool right = call.send(kNever) == Progress::kDone && call.over();
      call.half_close();
      call.cancel();
      call.give_up();
      right = right && call.receive(kNever) == Progress::kDone && call.over();
      triton_fast::http2::dispose(stream->call.release());
      ::_exit(right ? 0 : 1);
    }
    int status = -1;
    CHECK(::waitpid(child, &status, 0) == child && status == 0);
  }
  stop = true;
  receiver.join();
  CHECK(stream->send("echo", true) && stream->receive(1).size() == 1);
  CHECK(stream->receive().empty() && stream->call->outcome().status == Status::kOk);
  CHECK(service.listener.connections == 1 && service.resets == 0);
  pool->close();
}
