// Multiplexer over a pair of sockets, with both ends on one thread: nothing here waits.
#include "triton_fast/http2/multiplexer.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>
#ifdef __linux__
#include <linux/sockios.h>
#include <sys/ioctl.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "forked.hpp"
#include "http2_client.hpp"
#include "http2_server.hpp"

namespace {

using test::BesideThreads;
using test::buffer;
using test::call_of;
using test::in_child;
using test::kHeaders;
using test::kTrailers;
using test::Pair;
using test::Report;
using test::Server;
using test::Sink;
using test::stream_call;
using test::text_of;
using test::with_prefix;
using triton_fast::ConstBuffer;
using triton_fast::http2::ConnectionError;
using triton_fast::http2::dispose;
using triton_fast::http2::MessageSink;
using triton_fast::http2::Multiplexer;
using triton_fast::http2::Outcome;
using triton_fast::http2::Socket;
using triton_fast::http2::Status;

/// Counts messages, and keeps the last one.
struct Count final : MessageSink {
  void begin(std::uint64_t) override { last.clear(); }
  void feed(ConstBuffer piece) override {
    last.append(reinterpret_cast<const char*>(piece.data), piece.size);
  }
  void finish() override { ++messages; }
  bool ready() const noexcept override { return messages != taken; }

  std::size_t messages = 0;
  std::size_t taken = 0;
  std::string last;
};

/// A multiplexer and the server at the other end.
struct Line {
  explicit Line(std::vector<nghttp2_settings_entry> settings = {}, bool updates = true,
                int family = AF_UNIX)
      : pair(family),
        multiplexer(new Multiplexer(Socket(pair.ends[0]), "x")),
        server(std::move(settings), updates) {}
  ~Line() { dispose(multiplexer); }

  /// Gives the server what has come, at most so much.
  std::size_t serve(std::size_t most = SIZE_MAX) {
    std::size_t total = 0;
    std::vector<std::uint8_t> bytes(100000);
    while (total < most) {
      const ssize_t size =
          ::recv(pair.ends[1], bytes.data(), std::min(bytes.size(), most - total), MSG_DONTWAIT);
      if (size <= 0) break;
      server.feed({bytes.data(), static_cast<std::size_t>(size)});
      total += static_cast<std::size_t>(size);
    }
    return total;
  }

  /// Sends what the server has to send, as far as the kernel takes it. Returns whether it did.
  bool answer() {
    unsent += server.take();
    if (unsent.empty()) return false;
    const ssize_t size =
        ::send(pair.ends[1], unsent.data(), unsent.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (size <= 0) return false;
    unsent.erase(0, static_cast<std::size_t>(size));
    return true;
  }

  /// Goes on until neither side has anything.
  void settle() {
    for (bool moved = true; moved;) {
      multiplexer->flush();
      moved = serve() != 0;
      moved = answer() || moved;
      const std::uint64_t before = multiplexer->received();
      multiplexer->receive();
      for (const std::int32_t id : multiplexer->news()) news.insert(id);
      moved = moved || multiplexer->received() != before;
    }
  }

  std::set<std::int32_t> take_news() { return std::exchange(news, {}); }

  Pair pair;
  Multiplexer* multiplexer;
  Server server;
  std::string unsent;
  std::set<std::int32_t> news;
};

}  // namespace

TEST_CASE("multiplexer makes many calls at once") {
  Line line({{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000}});
  Multiplexer& multiplexer = *line.multiplexer;
  CHECK(multiplexer.usable());
  CHECK(multiplexer.descriptor() == line.pair.ends[0]);
  std::vector<std::string> messages;
  std::vector<std::unique_ptr<Sink>> sinks;
  std::vector<std::int32_t> calls;
  for (unsigned i = 0; i < 300; ++i) messages.push_back(text_of(i * 97, i));
  for (const std::string& message : messages) {
    sinks.push_back(std::make_unique<Sink>());
    calls.push_back(multiplexer.open(call_of(message), sinks.back().get(), -1));
    CHECK(multiplexer.lent(calls.back()));
    CHECK(!multiplexer.done(calls.back()));
  }
  line.settle();
  CHECK(line.take_news().empty());
  CHECK(!multiplexer.wants_write());
  for (std::size_t i = calls.size(); i-- != 0;) {
    CHECK((line.server.requests[calls[i]].body == with_prefix(messages[i])));
    CHECK(!multiplexer.lent(calls[i]));
    line.server.answer(calls[i], kHeaders, with_prefix(messages[i]), kTrailers);
  }
  line.settle();
  CHECK(line.take_news() == std::set<std::int32_t>(calls.begin(), calls.end()));
  for (std::size_t i = 0; i < calls.size(); ++i) {
    REQUIRE(multiplexer.done(calls[i]));
    CHECK(multiplexer.outcome(calls[i]).status == Status::kOk);
    CHECK((sinks[i]->message == messages[i]));
    CHECK(!multiplexer.outcome(calls[i]).safe_to_retry);
    multiplexer.close(calls[i]);
    multiplexer.close(calls[i]);  // it is known no more
    CHECK_THROWS_AS(multiplexer.done(calls[i]), std::out_of_range);
  }
  line.settle();
  CHECK(multiplexer.usable());
  CHECK(line.take_news().empty());
}

TEST_CASE("multiplexer sends what the kernel takes") {
  // Far more than a socket holds, in pieces as the peer reads; small calls get between.
  Line line({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}});
  line.server.open_windows(0, 0x7fffffff - 65535);
  Multiplexer& multiplexer = *line.multiplexer;
  line.settle();
  const std::string large = text_of(24000000, 1);
  Sink first;
  Sink second;
  const std::int32_t id = multiplexer.open(call_of(large), &first, -1);
  multiplexer.flush();
  CHECK(multiplexer.wants_write());
  CHECK(multiplexer.lent(id));
  const std::int32_t other = multiplexer.open(call_of("small"), &second, -1);
  for (std::size_t rounds = 0; !line.server.requests[id].complete; ++rounds) {
    REQUIRE(rounds < 100000);
    line.serve(200000);
    multiplexer.flush();
    if (line.server.requests[other].complete && second.begun == 0) {
      CHECK(!line.server.requests[id].complete);
      CHECK(multiplexer.lent(id));
      line.server.answer(other, kHeaders, with_prefix("answer"), kTrailers);
      line.answer();
      multiplexer.receive();
      CHECK(multiplexer.done(other));
      CHECK(second.message == "answer");
    }
  }
  CHECK((line.server.requests[id].body == with_prefix(large)));
  CHECK(second.finished == 1);
  CHECK(!multiplexer.lent(id));
  CHECK(!multiplexer.wants_write());
}

#ifdef __linux__
TEST_CASE("multiplexer sends a megabyte at a time") {
  // TCP's buffers take more at once.
  Line line({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}}, true, AF_INET);
  line.server.open_windows(0, 0x7fffffff - 65535);
  Multiplexer& multiplexer = *line.multiplexer;
  line.settle();
  const std::string large = text_of(8000000, 1);
  Sink sink;
  const std::int32_t id = multiplexer.open(call_of(large), &sink, -1);
  std::size_t most = 0;
  for (std::size_t rounds = 0; !line.server.requests[id].complete; ++rounds) {
    REQUIRE(rounds < 100000);
    multiplexer.flush();
    // All that the kernel has taken, however late it brings it.
    std::size_t taken = 0;
    for (int under_way = 1; under_way != 0;) {
      REQUIRE(::ioctl(line.pair.ends[0], SIOCOUTQ, &under_way) == 0);
      taken += line.serve();
    }
    most = std::max(most, taken);
  }
  CHECK(most >= 500000);
  CHECK(most <= 1048576);
  CHECK((line.server.requests[id].body == with_prefix(large)));
  CHECK(!multiplexer.wants_write());
}
#endif

TEST_CASE("multiplexer streams") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Count sinks[2];
  const std::int32_t ids[] = {multiplexer.open(stream_call(), &sinks[0], 1000000000),
                              multiplexer.open(stream_call(), &sinks[1], -1)};
  line.settle();
  CHECK(line.server.requests[ids[0]]["grpc-timeout"] == "1000000u");
  for (const std::int32_t id : ids) line.server.begin(id);
  const std::string messages[] = {"one", text_of(300000, 1), ""};
  std::string expected;
  for (const std::string& message : messages) {
    for (const std::int32_t id : ids) multiplexer.send(id, {buffer(message)}, message.size());
    CHECK(multiplexer.lent(ids[0]));
    CHECK(multiplexer.lent(ids[1]));
    CHECK_THROWS_WITH_AS(multiplexer.send(ids[0], {}, 0), doctest::Contains("one after another"),
                         ConnectionError);
    line.settle();
    expected += with_prefix(message);
    for (const std::int32_t id : ids) {
      CHECK((line.server.requests[id].body == expected));
      CHECK(!multiplexer.lent(id));
    }
    CHECK(line.take_news() == std::set<std::int32_t>(std::begin(ids), std::end(ids)));
  }
  // The one that nobody takes messages of stops, and the other goes on.
  const std::string answer = with_prefix(text_of(100000, 2));
  for (int i = 0; i < 50; ++i) line.server.say(ids[0], answer);
  line.settle();
  const std::size_t came = sinks[0].messages;
  CHECK(came >= 7);
  CHECK(came <= 12);
  CHECK(line.take_news() == std::set<std::int32_t>{ids[0]});
  line.server.say(ids[1], answer);
  line.settle();
  CHECK(sinks[1].messages == 1);
  CHECK(sinks[0].messages == came);
  CHECK(line.take_news() == std::set<std::int32_t>{ids[1]});
  while (sinks[0].messages < 50) {
    const std::size_t before = sinks[0].taken = sinks[0].messages;
    multiplexer.taken(ids[0]);
    line.settle();
    CHECK(sinks[0].messages > before);
    CHECK(sinks[0].messages <= before + 12);
  }
  for (const std::int32_t id : ids) {
    multiplexer.half_close(id);
    line.settle();
    CHECK(line.server.requests[id].complete);
    CHECK(!multiplexer.done(id));
    line.server.end(id);
    line.settle();
    REQUIRE(multiplexer.done(id));
    CHECK(multiplexer.outcome(id).status == Status::kOk);
    multiplexer.taken(id);
    multiplexer.close(id);
  }
}

TEST_CASE("multiplexer gives back the memory of a call that is cancelled") {
  Line line({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}});
  line.server.open_windows(0, 0x7fffffff - 65535);
  Multiplexer& multiplexer = *line.multiplexer;
  line.settle();
  Sink sink;
  Count messages;
  for (const bool streaming : {false, true}) {
    auto payload = std::make_unique<std::string>(text_of(20000000, 1));
    const std::int32_t id = streaming ? multiplexer.open(stream_call(), &messages, -1)
                                      : multiplexer.open(call_of(*payload), &sink, -1);
    if (streaming) multiplexer.send(id, {buffer(*payload)}, payload->size());
    multiplexer.flush();
    CHECK(multiplexer.lent(id));
    multiplexer.cancel(id);
    REQUIRE(multiplexer.done(id));
    CHECK(multiplexer.outcome(id).status == Status::kCancelled);
    CHECK(multiplexer.lent(id));  // what is listed has to be sent
    line.settle();
    CHECK(!multiplexer.lent(id));
    CHECK(line.take_news() == std::set<std::int32_t>{id});
    payload.reset();  // for the address sanitizer
    const Server::Request& request = line.server.requests[id];
    CHECK(request.closed);
    CHECK(request.error_code == NGHTTP2_CANCEL);
    CHECK(!request.complete);
    // Of the listed part, each byte was the message's own.
    CHECK(request.body.size() > 5);
    CHECK(request.body.size() < 20000005);
    CHECK(with_prefix(text_of(20000000, 1)).compare(0, request.body.size(), request.body) == 0);
    multiplexer.close(id);
    line.settle();
    CHECK(multiplexer.usable());
    CHECK(line.take_news().empty());
  }
  // Nothing of it was sent: nothing is.
  auto payload = std::make_unique<std::string>("x");
  const std::int32_t id = multiplexer.open(call_of(*payload), &sink, -1);
  multiplexer.cancel(id);
  CHECK(!multiplexer.lent(id));
  payload.reset();
  multiplexer.close(id);
  line.settle();
  CHECK(line.server.requests.count(id) == 0);
}

TEST_CASE("multiplexer leaves a message alone that was answered early") {
  Line line({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000}}, false);
  Multiplexer& multiplexer = *line.multiplexer;
  Count sink;
  const std::int32_t id = multiplexer.open(stream_call(), &sink, -1);
  line.settle();
  auto payload = std::make_unique<std::string>(text_of(100000, 1));
  multiplexer.send(id, {buffer(*payload)}, payload->size());
  line.settle();
  line.server.answer(id, {{":status", "200"}, {"grpc-status", "8"}});
  line.settle();
  CHECK(multiplexer.done(id));
  CHECK(!multiplexer.lent(id));
  payload.reset();
  line.server.open_windows(id, 1000000);
  line.settle();
  CHECK(line.server.requests[id].body.size() == 1000);
  multiplexer.close(id);
}

TEST_CASE("multiplexer ends all calls of a connection that breaks") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Sink sinks[3];
  Count messages;
  const std::int32_t answered = multiplexer.open(call_of("x"), &sinks[0], -1);
  const std::int32_t sent = multiplexer.open(call_of("x"), &sinks[1], -1);
  const std::int32_t stream = multiplexer.open(stream_call(), &messages, -1);
  line.settle();
  line.server.begin(stream);
  line.server.say(stream, with_prefix("y"));
  line.server.answer(answered, kHeaders, with_prefix("answer"), kTrailers);
  REQUIRE(line.answer());
  line.pair.hang_up();
  const std::int32_t unsent = multiplexer.open(call_of("x"), &sinks[2], -1);
  CHECK(multiplexer.lent(unsent));
  // What has come before counts.
  multiplexer.receive();
  CHECK(multiplexer.broken());
  CHECK(!multiplexer.usable());
  CHECK(!multiplexer.wants_write());
  CHECK(multiplexer.outcome(answered).status == Status::kOk);
  CHECK(sinks[0].message == "answer");
  CHECK(messages.messages == 1);
  for (const std::int32_t id : {sent, stream, unsent}) {
    REQUIRE(multiplexer.done(id));
    CHECK(!multiplexer.lent(id));
    const Outcome outcome = multiplexer.outcome(id);
    CHECK(outcome.status == Status::kUnavailable);
    CHECK(outcome.message.find("the server closed the connection") != std::string::npos);
    CHECK(outcome.safe_to_retry == (id == unsent));
  }
  std::vector<std::int32_t> news = multiplexer.news();
  std::sort(news.begin(), news.end());
  CHECK((news == (std::vector<std::int32_t>{answered, sent, stream, unsent})));
  CHECK_THROWS_AS(multiplexer.open(call_of("x"), &sinks[0], -1), ConnectionError);
  // Nothing more happens, and all may be closed.
  multiplexer.flush();
  multiplexer.receive();
  multiplexer.ping();
  multiplexer.send(stream, {buffer("x")}, 1);
  multiplexer.half_close(stream);
  multiplexer.taken(stream);
  multiplexer.cancel(sent);
  for (const std::int32_t id : {answered, sent, stream, unsent}) multiplexer.close(id);
  REQUIRE(multiplexer.descriptor() >= 0);
  multiplexer.hang_up();
  CHECK(multiplexer.descriptor() < 0);
}

TEST_CASE("multiplexer keeps an answer of a peer that has gone") {
  // It has answered, closed, and read nothing: sending fails before the answer is read.
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Sink sinks[2];
  const std::int32_t id = multiplexer.open(call_of("x"), &sinks[0], -1);
  line.settle();
  line.server.answer(id, kHeaders, with_prefix("answer"), kTrailers);
  REQUIRE(line.answer());
  line.pair.hang_up();
  const std::int32_t other = multiplexer.open(call_of("x"), &sinks[1], -1);
  multiplexer.flush();
  CHECK(multiplexer.broken());
  CHECK(multiplexer.outcome(id).status == Status::kOk);
  CHECK(sinks[0].message == "answer");
  CHECK(multiplexer.outcome(other).status == Status::kUnavailable);
  CHECK(multiplexer.outcome(other).safe_to_retry);
}

TEST_CASE("multiplexer tells a peer that speaks no http2") {
  for (const bool garbage : {true, false}) {
    Line line;
    Multiplexer& multiplexer = *line.multiplexer;
    Sink sink;
    const std::int32_t id = multiplexer.open(call_of("x"), &sink, -1);
    multiplexer.flush();
    if (garbage) line.settle();
    const std::string sent =
        garbage ? std::string("\0\0\1\x08\0\0\0\0\1x", 10) : "HTTP/1.1 400\r\n";
    REQUIRE(::send(line.pair.ends[1], sent.data(), sent.size(), 0) > 0);
    multiplexer.receive();
    CHECK(multiplexer.broken());
    REQUIRE(multiplexer.done(id));
    const Outcome outcome = multiplexer.outcome(id);
    CHECK(outcome.status == Status::kUnavailable);
    CHECK(!outcome.safe_to_retry);
    CHECK(outcome.message.find(garbage ? "does not keep to HTTP/2" : "HTTP/1") !=
          std::string::npos);
    line.serve();
    CHECK(std::any_of(line.server.frames.begin(), line.server.frames.end(),
                      [](const auto& frame) { return frame.type == NGHTTP2_GOAWAY; }));
  }
}

TEST_CASE("multiplexer takes no calls of a server that is going away") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Sink sinks[2];
  const std::int32_t first = multiplexer.open(call_of("x"), &sinks[0], -1);
  const std::int32_t second = multiplexer.open(call_of("x"), &sinks[1], -1);
  line.settle();
  line.server.go_away(first, NGHTTP2_NO_ERROR, "max_age");
  line.settle();
  CHECK(!multiplexer.usable());
  CHECK(!multiplexer.broken());
  REQUIRE(multiplexer.done(second));
  CHECK(multiplexer.outcome(second).safe_to_retry);
  CHECK_THROWS_WITH_AS(multiplexer.open(call_of("x"), &sinks[1], -1),
                       doctest::Contains("going away: max_age"), ConnectionError);
  line.server.answer(first, kHeaders, with_prefix("y"), kTrailers);
  line.settle();
  CHECK(multiplexer.outcome(first).status == Status::kOk);
  // That was the last one, so the connection is of no more use.
  CHECK(multiplexer.broken());
}

TEST_CASE("multiplexer is broken on request") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Sink sink;
  const std::int32_t id = multiplexer.open(call_of("x"), &sink, -1);
  multiplexer.fail("that will do");
  REQUIRE(multiplexer.done(id));
  CHECK(multiplexer.outcome(id).message.find("that will do") == 0);
  CHECK(multiplexer.outcome(id).safe_to_retry);
  CHECK(multiplexer.broken());
  CHECK(multiplexer.news() == std::vector<std::int32_t>{id});
}

TEST_CASE("multiplexer pings") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  for (std::uint64_t i = 0; i < 3; ++i) {
    CHECK(multiplexer.ping() == i);
    CHECK(multiplexer.wants_write());
    line.settle();
    CHECK(multiplexer.acknowledged_pings() == i + 1);
  }
}

TEST_CASE("multiplexer of a parent does nothing in its child") {
  Line line;
  Multiplexer& multiplexer = *line.multiplexer;
  Sink sink;
  const std::int32_t id = multiplexer.open(call_of("x"), &sink, -1);
  const std::string wrong = in_child(BesideThreads::kNo, [&](Report& report) {
    report.expect(multiplexer.inherited(), "it does not know that it is a copy");
    report.expect(!multiplexer.usable(), "it says that it is of use");
    try {
      multiplexer.open(call_of("y"), &sink, -1);
      report.say("it makes calls");
    } catch (const ConnectionError&) {
    }
    multiplexer.flush();
    multiplexer.receive();
    report.expect(!multiplexer.done(id), "the call has ended");
    dispose(&multiplexer);
  });
  CHECK(wrong == "");
  line.settle();
  line.server.answer(id, kHeaders, with_prefix("y"), kTrailers);
  line.settle();
  CHECK(multiplexer.outcome(id).status == Status::kOk);
  CHECK(sink.message == "y");
}
