// Streams on a Session: many messages each way, and many calls at once.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http2_client.hpp"
#include "http2_server.hpp"
#include "triton_fast/http2/session.hpp"

namespace {

using test::buffer;
using test::call_of;
using test::exchange;
using test::Fields;
using test::kHeaders;
using test::kTrailers;
using test::send_to;
using test::Server;
using test::Sink;
using test::stream_call;
using test::text_of;
using test::with_prefix;
using triton_fast::ConstBuffer;
using triton_fast::http2::CallSpec;
using triton_fast::http2::ConnectionError;
using triton_fast::http2::MessageSink;
using triton_fast::http2::Session;
using triton_fast::http2::Sharing;
using triton_fast::http2::Status;
using triton_fast::http2::Stream;

constexpr std::size_t kWindow = std::size_t{1} << 20;  // a stream's among others
using Numbers = std::vector<std::int32_t>;

/// Keeps a stream's messages until somebody takes them.
struct Messages final : MessageSink {
  void begin(std::uint64_t size) override {
    CHECK(!within);
    within = true;
    announced = size;
    current.clear();
    if (all.size() == throw_at) throw std::runtime_error("no more, thank you");
  }
  void feed(ConstBuffer piece) override {
    CHECK(within);
    CHECK(piece.size != 0);
    current.append(reinterpret_cast<const char*>(piece.data), piece.size);
  }
  void finish() override {
    CHECK(within);
    CHECK(current.size() == announced);
    within = false;
    all.push_back(current);
  }
  bool ready() const noexcept override { return !all.empty(); }

  std::vector<std::string> take() { return std::exchange(all, {}); }

  std::size_t throw_at = SIZE_MAX;
  bool within = false;
  std::uint64_t announced = 0;
  std::string current;
  std::vector<std::string> all;
};

/// A session and its server, with a stream that has begun on both.
struct Meeting {
  explicit Meeting(Sharing sharing = Sharing::kManyCalls,
                   std::vector<nghttp2_settings_entry> settings = {}, bool updates = true)
      : session("x", sharing), server(std::move(settings), updates) {
    stream = session.open(stream_call(), -1, &sink);
    id = stream->id();
    exchange(session, server);
    server.begin(id);
  }

  /// Borrows the message.
  void send(std::string_view message, Stream* to = nullptr) {
    session.send(to == nullptr ? stream : to, {buffer(message)}, message.size());
  }

  std::string& body() { return server.requests[id].body; }

  Messages sink;
  Session session;
  Server server;
  Stream* stream = nullptr;
  std::int32_t id = 0;
};

std::size_t count_frames(const Server& server, std::uint8_t type, std::int32_t id) {
  std::size_t count = 0;
  for (const nghttp2_frame_hd& frame : server.frames) {
    if (frame.type == type && frame.stream_id == id) ++count;
  }
  return count;
}

}  // namespace

// What travels
// -------------------------------------------------------------------------------------

TEST_CASE("stream carries messages both ways") {
  const std::string requests[] = {"one", text_of(20000, 1), "", "four"};
  const std::string answers[] = {"", text_of(17000, 2), "c"};
  for (const Sharing sharing : {Sharing::kOneCall, Sharing::kManyCalls}) {
    for (const std::size_t piece : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
      Meeting meeting(sharing);
      CHECK(!meeting.server.requests[meeting.id].complete);
      CHECK(meeting.body().empty());
      std::string expected;
      for (std::size_t i = 0; i < std::size(requests); ++i) {
        meeting.send(requests[i]);
        CHECK(!meeting.stream->listed());
        if (i < std::size(answers)) meeting.server.say(meeting.id, with_prefix(answers[i]));
        exchange(meeting.session, meeting.server, piece);
        expected += with_prefix(requests[i]);
        CHECK((meeting.body() == expected));
        CHECK(meeting.stream->listed());
        CHECK(!meeting.stream->lent());
        CHECK(!meeting.server.requests[meeting.id].complete);
        const auto taken = meeting.sink.take();
        if (i < std::size(answers)) CHECK((taken.size() == 1 && taken[0] == answers[i]));
        meeting.session.taken(meeting.stream);
      }
      meeting.session.half_close(meeting.stream);
      exchange(meeting.session, meeting.server, piece);
      CHECK(meeting.server.requests[meeting.id].complete);
      CHECK(!meeting.stream->done());
      meeting.server.end(meeting.id);
      exchange(meeting.session, meeting.server, piece);
      REQUIRE(meeting.stream->done());
      CHECK(meeting.stream->outcome().status == Status::kOk);
      meeting.session.close(meeting.stream);
      exchange(meeting.session, meeting.server, piece);
      CHECK(meeting.server.requests[meeting.id].closed);
      CHECK(meeting.session.usable());
      CHECK(meeting.server.requests[meeting.id].error_code == NGHTTP2_NO_ERROR);
    }
  }
}

TEST_CASE("stream says with the last message that there are no more") {
  Meeting meeting;
  meeting.send("last");
  meeting.session.half_close(meeting.stream);
  exchange(meeting.session, meeting.server);
  CHECK((meeting.body() == with_prefix("last")));
  CHECK(meeting.server.requests[meeting.id].complete);
  CHECK(count_frames(meeting.server, NGHTTP2_DATA, meeting.id) == 1);
  meeting.session.half_close(meeting.stream);  // again: nothing more is said
  exchange(meeting.session, meeting.server);
  CHECK(count_frames(meeting.server, NGHTTP2_DATA, meeting.id) == 1);
}

TEST_CASE("stream may end without messages") {
  // Before it is on its way, and after.
  for (const bool late : {false, true}) {
    Session session("x", Sharing::kManyCalls);
    Server server;
    Messages sink;
    Stream* const stream = session.open(stream_call(), -1, &sink);
    if (late) exchange(session, server);
    session.half_close(stream);
    exchange(session, server);
    CHECK(server.requests[1].complete);
    CHECK(server.requests[1].body.empty());
    server.begin(1);
    server.end(1);
    exchange(session, server);
    REQUIRE(stream->done());
    CHECK(stream->outcome().status == Status::kOk);
    CHECK(sink.all.empty());
  }
}

TEST_CASE("stream finds messages wherever frames are cut") {
  std::vector<std::string> messages;
  std::string body;
  for (unsigned i = 0; i < 60; ++i) {
    messages.push_back(text_of(i % 7 == 0 ? 0 : i * i, i));
    body += with_prefix(messages.back());
  }
  std::minstd_rand random(3);
  for (int turn = 0; turn < 20; ++turn) {
    Meeting meeting(turn % 2 == 0 ? Sharing::kOneCall : Sharing::kManyCalls);
    // All in one frame, and in ever smaller ones.
    for (std::size_t at = 0; at < body.size();) {
      const std::size_t most = turn == 0 ? body.size() : 1 + random() % (16000u >> (turn % 10));
      const std::string part = body.substr(at, most);
      meeting.server.say(meeting.id, part);
      exchange(meeting.session, meeting.server, turn % 5 == 4 ? 1000 : 0);
      at += part.size();
    }
    CHECK((meeting.sink.all == messages));
    CHECK(!meeting.stream->done());
    meeting.server.end(meeting.id);
    exchange(meeting.session, meeting.server);
    CHECK(meeting.stream->outcome().status == Status::kOk);
  }
}

TEST_CASE("stream is held to one message at a time") {
  Meeting meeting(Sharing::kManyCalls, {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 8}}, false);
  const std::string message = "longer than the window";
  meeting.send(message);
  CHECK_THROWS_WITH_AS(meeting.send("x"), doctest::Contains("one after another"), ConnectionError);
  iovec pieces[10];
  REQUIRE(meeting.session.gather(pieces, 10) == 3);  // the frame's head, the prefix, three bytes
  CHECK(!meeting.stream->listed());
  CHECK(meeting.stream->lent());
  CHECK(meeting.session.borrows());
  CHECK_THROWS_WITH_AS(meeting.send("x"), doctest::Contains("one after another"), ConnectionError);
  REQUIRE(send_to(meeting.server, meeting.session, 16) == 16);
  CHECK(meeting.stream->lent());  // of eight bytes, seven
  REQUIRE(send_to(meeting.server, meeting.session) == 1);
  CHECK(!meeting.stream->listed());
  CHECK(!meeting.stream->lent());
  CHECK(!meeting.session.borrows());
  CHECK_THROWS_WITH_AS(meeting.send("x"), doctest::Contains("one after another"), ConnectionError);
  meeting.server.open_windows(meeting.id, 1000);
  exchange(meeting.session, meeting.server);
  CHECK(meeting.stream->listed());
  CHECK((meeting.body() == with_prefix(message)));
  meeting.send("x");
  meeting.session.half_close(meeting.stream);
  exchange(meeting.session, meeting.server);
  CHECK((meeting.body() == with_prefix(message) + with_prefix("x")));
  CHECK_THROWS_WITH_AS(meeting.send("y"), doctest::Contains("half closed"), ConnectionError);
  CHECK_THROWS_WITH_AS(
      [&] {
        Meeting other;
        other.session.send(other.stream, {buffer("four")}, 5);
      }(),
      doctest::Contains("as long as"), ConnectionError);
}

TEST_CASE("stream sends nothing after its end") {
  Meeting meeting;
  meeting.server.end(meeting.id);
  exchange(meeting.session, meeting.server);
  REQUIRE(meeting.stream->done());
  CHECK(meeting.stream->outcome().status == Status::kOk);
  meeting.send("x");
  meeting.session.half_close(meeting.stream);
  exchange(meeting.session, meeting.server);
  CHECK(meeting.body().empty());
  CHECK(meeting.stream->listed());
}

// Windows
// ------------------------------------------------------------------------------------------

TEST_CASE("stream that nobody reads holds up its peer and no other") {
  // Small messages, and ones so large that each alone is more than the window.
  for (const std::size_t size : {std::size_t{1000}, 3 * kWindow / 8, 3 * kWindow}) {
    Meeting meeting;
    const std::string message = text_of(size, 1);
    const std::size_t count = 12 * kWindow / size;
    for (std::size_t i = 0; i < count; ++i) meeting.server.say(meeting.id, with_prefix(message));
    exchange(meeting.session, meeting.server);
    const std::size_t first = meeting.server.said(meeting.id);
    CHECK(first >= kWindow - kWindow / 4);
    CHECK(first <= kWindow + std::max(size, kWindow));
    CHECK(!meeting.sink.all.empty());
    CHECK(meeting.sink.all.size() < count);
    // Others go on, streams too.
    Sink answer;
    Stream* const call = meeting.session.open(call_of("x"), -1, &answer);
    Messages more;
    Stream* const other = meeting.session.open(stream_call(), -1, &more);
    exchange(meeting.session, meeting.server);
    meeting.server.answer(call->id(), kHeaders, with_prefix(text_of(5000, 2)), kTrailers);
    meeting.server.begin(other->id());
    meeting.server.say(other->id(), with_prefix("more"));
    exchange(meeting.session, meeting.server);
    CHECK(call->outcome().status == Status::kOk);
    CHECK((answer.message == text_of(5000, 2)));
    CHECK(more.take().size() == 1);
    CHECK(meeting.server.said(meeting.id) == first);
    // It goes on itself whenever what came was taken, as far again.
    std::size_t taken = 0;
    for (std::size_t rounds = 0; taken < count; ++rounds) {
      REQUIRE(rounds < 40);
      REQUIRE(!meeting.sink.all.empty());
      for (const std::string& one : meeting.sink.take()) {
        CHECK((one == message));
        ++taken;
      }
      const std::size_t before = meeting.server.said(meeting.id);
      meeting.session.taken(meeting.stream);
      exchange(meeting.session, meeting.server);
      const std::size_t now = meeting.server.said(meeting.id) - before;
      CHECK(now <= kWindow + std::max(size, kWindow));
    }
    CHECK(taken == count);
  }
}

TEST_CASE("stream receives a message that is larger than the window") {
  for (const std::size_t size : {kWindow, kWindow + 1, 20 * kWindow + 12345}) {
    Meeting meeting;
    const std::string message = text_of(size, 1);
    meeting.server.say(meeting.id, with_prefix(message));
    exchange(meeting.session, meeting.server);
    REQUIRE(meeting.sink.all.size() == 1);
    CHECK((meeting.sink.all[0] == message));
  }
}

TEST_CASE("answers that are larger than the window get a window of their own") {
  Session session("x", Sharing::kManyCalls);
  Server server;
  const std::string message = text_of(20 * kWindow, 1);
  Sink sink;
  Stream* const call = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  server.answer(call->id(), kHeaders, with_prefix(message), kTrailers);
  // What the first window lets pass, and the leave to send all the rest at once.
  const std::string first = server.take();
  CHECK(first.size() >= kWindow - kWindow / 4);
  CHECK(first.size() < 2 * kWindow);
  session.feed(buffer(first));
  CHECK(!call->done());
  send_to(server, session);
  const std::string rest = server.take();
  CHECK(first.size() + rest.size() > message.size());
  session.feed(buffer(rest));
  CHECK(call->outcome().status == Status::kOk);
  CHECK((sink.message == message));
  // The next call is another one.
  Stream* const next = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  server.answer(next->id(), kHeaders, with_prefix(message), kTrailers);
  CHECK(server.take().size() < 2 * kWindow);
}

TEST_CASE("windows of the connection never stop it") {
  // More than its window of two gibibytes, on a stream of which every message is taken at once. The
  // peer sends by hand, so that this does not take long.
  struct Nothing final : MessageSink {
    void begin(std::uint64_t) override {}
    void feed(ConstBuffer) override {}
    void finish() override { ++messages; }
    std::size_t messages = 0;
  };
  Session session("x", Sharing::kManyCalls);
  Server server;
  Nothing sink;
  Stream* const stream = session.open(stream_call(), -1, &sink);
  exchange(session, server);
  server.begin(stream->id());
  exchange(session, server);
  const std::string payload = with_prefix(std::string(kWindow - 5, 'x'));
  const std::string head = {static_cast<char>(payload.size() >> 16),
                            static_cast<char>(payload.size() >> 8),
                            static_cast<char>(payload.size()),
                            0,
                            0,
                            0,
                            0,
                            0,
                            static_cast<char>(stream->id())};
  iovec pieces[8];
  std::size_t messages = 0;
  for (std::uint64_t sent = 0; sent < (std::uint64_t{33} << 26); sent += payload.size()) {
    session.feed(buffer(head));
    session.feed(buffer(payload));
    session.taken(stream);
    while (const std::size_t count = session.gather(pieces, 8)) {
      std::size_t size = 0;
      for (std::size_t i = 0; i < count; ++i) size += pieces[i].iov_len;
      session.sent(size);
    }
    REQUIRE(session.usable());
    REQUIRE(!stream->done());
    REQUIRE(sink.messages == ++messages);
  }
}

TEST_CASE("stream of a session of its own is never held up") {
  Meeting meeting(Sharing::kOneCall);
  const std::string message = text_of(kWindow, 1);
  for (int i = 0; i < 5; ++i) meeting.server.say(meeting.id, with_prefix(message));
  exchange(meeting.session, meeting.server);
  CHECK(meeting.sink.all.size() == 5);
  meeting.session.taken(meeting.stream);  // nothing to do
  exchange(meeting.session, meeting.server);
  CHECK(count_frames(meeting.server, NGHTTP2_WINDOW_UPDATE, meeting.id) == 0);
}

// News
// ---------------------------------------------------------------------------------------------

TEST_CASE("news are a message one that is sent and the end") {
  Meeting meeting;
  Session& session = meeting.session;
  CHECK(session.news().empty());
  meeting.send("x");
  CHECK(session.news().empty());
  send_to(meeting.server, session, 9);
  CHECK(session.news().empty());  // the frame's head alone
  exchange(session, meeting.server);
  CHECK(session.news() == Numbers{meeting.id});
  CHECK(session.news().empty());
  meeting.server.say(meeting.id, with_prefix("one") + with_prefix("two"));
  exchange(session, meeting.server);
  CHECK(session.news() == Numbers{meeting.id});
  meeting.server.say(meeting.id, with_prefix("three").substr(0, 7));
  exchange(session, meeting.server);
  CHECK(session.news().empty());  // not all of it
  meeting.server.say(meeting.id, with_prefix("three").substr(7));
  meeting.server.end(meeting.id);
  exchange(session, meeting.server);
  CHECK(session.news() == Numbers{meeting.id});
  CHECK(session.news().empty());
  CHECK(meeting.sink.all.size() == 3);
}

TEST_CASE("news name each call once and none that is closed") {
  Session session("x", Sharing::kManyCalls);
  Server server({{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000}});
  std::vector<std::unique_ptr<Sink>> sinks;
  std::vector<Stream*> calls;
  for (int i = 0; i < 300; ++i) {
    sinks.push_back(std::make_unique<Sink>());
    calls.push_back(session.open(call_of("x"), -1, sinks.back().get()));
  }
  exchange(session, server);
  CHECK(session.news().empty());  // that a request is sent is none
  Numbers expected;
  for (Stream* const call : calls) {
    server.answer(call->id(), kHeaders, with_prefix("y"), kTrailers);
    expected.push_back(call->id());
  }
  exchange(session, server);
  for (std::size_t i = 0; i < 300; i += 3) {
    expected.erase(std::find(expected.begin(), expected.end(), calls[i]->id()));
    session.close(calls[i]);
  }
  Numbers news = session.news();
  std::sort(news.begin(), news.end());
  CHECK(news == expected);
  CHECK(session.news().empty());
  // Cancelled ones are news as well, and those of a connection that has gone.
  Stream* const first = session.open(call_of("x"), -1, sinks[0].get());
  Stream* const second = session.open(call_of("x"), -1, sinks[1].get());
  session.cancel(first);
  session.cancel(first);
  CHECK(session.news() == Numbers{first->id()});
  session.end("gone");
  CHECK(session.news() == Numbers{second->id()});
}

TEST_CASE("there are no news of a session of one call") {
  Meeting meeting(Sharing::kOneCall);
  meeting.send("x");
  meeting.server.say(meeting.id, with_prefix("y"));
  meeting.server.end(meeting.id);
  exchange(meeting.session, meeting.server);
  CHECK(meeting.stream->done());
  CHECK(meeting.session.news().empty());
}

// Ends
// ---------------------------------------------------------------------------------------------

TEST_CASE("stream ends with what the server says") {
  struct Case {
    const char* name;
    void (*act)(Server&, std::int32_t);
    Status status;
    const char* text;
  };
  const Case cases[] = {
      {"trailers",
       [](Server& s, std::int32_t id) {
         s.end(id, {{"grpc-status", "8"}, {"grpc-message", "full"}});
       },
       Status::kResourceExhausted, "full"},
      {"no trailers", [](Server& s, std::int32_t id) { s.end(id, {}); }, Status::kInternal,
       "without trailers"},
      {"cut short",
       [](Server& s, std::int32_t id) {
         s.say(id, with_prefix("cut short").substr(0, 9));
         s.end(id);
       },
       Status::kInternal, "in the middle of its message"},
      {"cut in the prefix",
       [](Server& s, std::int32_t id) {
         s.say(id, std::string(3, '\0'));
         s.end(id);
       },
       Status::kInternal, "in the middle of its message"},
      {"reset", [](Server& s, std::int32_t id) { s.reset(id, NGHTTP2_INTERNAL_ERROR); },
       Status::kInternal, "reset the stream"},
      {"compressed", [](Server& s, std::int32_t id) { s.say(id, with_prefix("zip", 1)); },
       Status::kInternal, "compressed message"},
      {"flags", [](Server& s, std::int32_t id) { s.say(id, with_prefix("x", 2)); },
       Status::kInternal, "flags"},
  };
  for (const Case& one : cases) {
    for (const std::size_t messages : {0u, 3u}) {
      Meeting meeting;
      for (std::size_t i = 0; i < messages; ++i) meeting.server.say(meeting.id, with_prefix("y"));
      exchange(meeting.session, meeting.server);
      meeting.send("request");
      one.act(meeting.server, meeting.id);
      exchange(meeting.session, meeting.server);
      REQUIRE(meeting.stream->done());
      CHECK(meeting.stream->outcome().status == one.status);
      CHECK(meeting.stream->outcome().message.find(one.text) != std::string::npos);
      CHECK(!meeting.stream->outcome().safe_to_retry);
      CHECK(meeting.sink.all.size() == messages);
      CHECK(meeting.session.usable());
      meeting.session.close(meeting.stream);
      exchange(meeting.session, meeting.server);
      CHECK(meeting.server.requests[meeting.id].closed);
    }
  }
}

TEST_CASE("stream may be refused at once") {
  Session session("x", Sharing::kManyCalls);
  Server server;
  Messages sink;
  Stream* const stream = session.open(stream_call(), -1, &sink);
  session.send(stream, {buffer("hello")}, 5);
  exchange(session, server);
  Fields fields = kHeaders;
  fields.emplace_back("grpc-status", "14");
  server.answer(1, fields);
  exchange(session, server);
  CHECK(stream->outcome().status == Status::kUnavailable);
  CHECK(sink.all.empty());
}

TEST_CASE("streams go on while the server is going away") {
  Meeting meeting;
  Messages sink;
  Stream* const later = meeting.session.open(stream_call(), -1, &sink);
  exchange(meeting.session, meeting.server);
  meeting.server.go_away(meeting.id, NGHTTP2_NO_ERROR, "max_age");
  exchange(meeting.session, meeting.server);
  REQUIRE(later->done());
  CHECK(later->outcome().safe_to_retry);
  CHECK(later->outcome().status == Status::kUnavailable);
  CHECK(!meeting.stream->done());
  meeting.send("x");
  meeting.server.say(meeting.id, with_prefix("y"));
  exchange(meeting.session, meeting.server);
  CHECK((meeting.body() == with_prefix("x")));
  CHECK(meeting.sink.all.size() == 1);
  meeting.server.end(meeting.id);
  exchange(meeting.session, meeting.server);
  CHECK(meeting.stream->outcome().status == Status::kOk);
  CHECK(!meeting.session.usable());
}

TEST_CASE("stream ends with the connection") {
  Meeting meeting;
  meeting.server.say(meeting.id, with_prefix("y"));
  exchange(meeting.session, meeting.server);
  meeting.session.end("the server closed the connection");
  CHECK(meeting.stream->outcome().status == Status::kUnavailable);
  CHECK(!meeting.stream->outcome().safe_to_retry);
  CHECK(meeting.sink.take().size() == 1);
  meeting.session.taken(meeting.stream);
}

TEST_CASE("stream hands on what its sink throws") {
  Meeting meeting;
  meeting.sink.throw_at = 2;
  for (int i = 0; i < 5; ++i) meeting.server.say(meeting.id, with_prefix("y"));
  exchange(meeting.session, meeting.server);
  REQUIRE(meeting.stream->done());
  CHECK(meeting.sink.all.size() == 2);
  CHECK_THROWS_WITH_AS(std::rethrow_exception(meeting.stream->outcome().exception),
                       doctest::Contains("no more, thank you"), std::runtime_error);
  meeting.session.close(meeting.stream);
  exchange(meeting.session, meeting.server);
  CHECK(meeting.server.requests[meeting.id].error_code == NGHTTP2_CANCEL);
}

// Memory
// -------------------------------------------------------------------------------------------

TEST_CASE("stream leaves memory alone that is given back") {
  // A message is listed in part, and the call is over: cancelled by us, or answered early. What is
  // listed is sent, for frames are not to be cut; nothing more is read, though windows open.
  for (const bool cancelled : {false, true}) {
    Meeting meeting(Sharing::kManyCalls, {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000}}, false);
    auto message = std::make_unique<std::string>(text_of(100000, 1));
    meeting.send(*message);
    REQUIRE(send_to(meeting.server, meeting.session) == 9 + 1000);
    CHECK(!meeting.stream->listed());
    CHECK(!meeting.stream->lent());
    if (cancelled) {
      meeting.session.cancel(meeting.stream);
    } else {
      meeting.server.end(meeting.id, {{"grpc-status", "8"}});
      meeting.session.feed(buffer(meeting.server.take()));
    }
    CHECK(meeting.stream->done());
    // For the address sanitizer. The stream is not closed yet.
    message.reset();
    meeting.server.open_windows(meeting.id, 1000000);
    exchange(meeting.session, meeting.server);
    CHECK(meeting.body().size() == 1000);
    CHECK(meeting.session.usable());
    meeting.session.close(meeting.stream);
    exchange(meeting.session, meeting.server);
    CHECK(meeting.server.requests[meeting.id].closed);
  }
}

TEST_CASE("stream that is closed has what is listed sent") {
  // In every state: the frame's head was sent, a part of the prefix, a part of the message. And
  // whether it was cancelled before or is so by being closed.
  const std::string message = text_of(3000, 1);
  for (const std::size_t sent : {0u, 4u, 9u, 11u, 14u, 50u, 3000u}) {
    for (const bool cancelled : {false, true}) {
      Meeting meeting;
      meeting.send(message);
      iovec pieces[10];
      REQUIRE(meeting.session.gather(pieces, 10) == 3);
      REQUIRE(send_to(meeting.server, meeting.session, sent) == sent);
      CHECK(meeting.stream->lent());
      if (cancelled) meeting.session.cancel(meeting.stream);
      meeting.session.news();
      meeting.session.close(meeting.stream);
      CHECK(meeting.session.borrows());
      exchange(meeting.session, meeting.server);
      // The server has found nothing wrong with it.
      CHECK((meeting.body() == with_prefix(message)));
      CHECK(!meeting.session.borrows());
      CHECK(meeting.server.requests[meeting.id].closed);
      CHECK(meeting.server.requests[meeting.id].error_code == NGHTTP2_CANCEL);
      CHECK(meeting.session.news().empty());
      CHECK(meeting.session.usable());
      Stream* const next = meeting.session.open(stream_call(), -1, &meeting.sink);
      meeting.send("next", next);
      exchange(meeting.session, meeting.server);
      CHECK((meeting.server.requests[next->id()].body == with_prefix("next")));
    }
  }
}

TEST_CASE("stream says whose memory is lent") {
  // Two streams whose messages are sent piece by piece: each is lent until its own last byte.
  Meeting meeting;
  Messages sink;
  Stream* const other = meeting.session.open(stream_call(), -1, &sink);
  exchange(meeting.session, meeting.server);
  meeting.session.news();
  const std::string messages[] = {text_of(5000, 1), text_of(7000, 2)};
  meeting.send(messages[0]);
  meeting.send(messages[1], other);
  iovec pieces[20];
  REQUIRE(meeting.session.gather(pieces, 20) == 6);
  CHECK(meeting.stream->lent());
  CHECK(other->lent());
  std::vector<std::int32_t> order;
  for (std::size_t total = 0; meeting.session.borrows(); total += 7) {
    REQUIRE(total < 20000);
    REQUIRE(send_to(meeting.server, meeting.session, 7) != 0);
    for (const std::int32_t id : meeting.session.news()) {
      order.push_back(id);
      Stream* const named = id == meeting.id ? meeting.stream : other;
      CHECK(!named->lent());
      CHECK(named->listed());
      CHECK(meeting.server.requests[id].body.size() >= (id == meeting.id ? 5000 : 7000));
    }
  }
  CHECK(order.size() == 2);
  CHECK((meeting.body() == with_prefix(messages[0])));
  CHECK((meeting.server.requests[other->id()].body == with_prefix(messages[1])));
}
