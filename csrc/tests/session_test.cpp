// Session against a server of nghttp2's, without a socket.
#include "triton_fast/http2/session.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http2_client.hpp"
#include "http2_server.hpp"

namespace {

using test::buffer;
using test::call_of;
using test::exchange;
using test::Fields;
using test::frame;
using test::kHeaders;
using test::kTrailers;
using test::Server;
using test::Sink;
using test::text_of;
using test::with_prefix;
using triton_fast::http2::CallSpec;
using triton_fast::http2::ConnectionError;
using triton_fast::http2::Session;
using triton_fast::http2::Status;
using triton_fast::http2::Stream;

}  // namespace

TEST_CASE("session makes a call") {
  for (const std::size_t piece : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
    Session session("example.com:8001");
    Server server;
    Sink sink;
    const std::string parts[] = {"one", "", "two", text_of(100000, 1)};
    CallSpec call;
    call.path = "/a.B/C";
    call.metadata = {{"authorization", "Bearer x"}, {"x-bin", "AAEC"}, {"x-more", "1"}};
    for (const std::string& part : parts) {
      call.segments.push_back(buffer(part));
      call.message_size += part.size();
    }
    Stream* const stream = session.open(call, 1500000000, &sink);
    exchange(session, server, piece);
    CHECK(!stream->done());
    CHECK(stream->listed());
    CHECK(!stream->answered());
    CHECK(!session.borrows());
    const Server::Request& request = server.requests[stream->id()];
    CHECK(request.complete);
    CHECK(request[":method"] == "POST");
    CHECK(request[":scheme"] == "http");
    CHECK(request[":path"] == "/a.B/C");
    CHECK(request[":authority"] == "example.com:8001");
    CHECK(request["te"] == "trailers");
    CHECK(request["content-type"] == "application/grpc");
    CHECK(request["grpc-timeout"] == "1500000u");
    CHECK(request["authorization"] == "Bearer x");
    CHECK(request["x-bin"] == "AAEC");
    CHECK(request["grpc-encoding"] == "(none)");
    CHECK((request.body == with_prefix(parts[0] + parts[2] + parts[3])));

    const std::string answer = text_of(50000, 2);
    server.answer(stream->id(), kHeaders, with_prefix(answer), kTrailers);
    exchange(session, server, piece);
    REQUIRE(stream->done());
    CHECK(stream->outcome().status == Status::kOk);
    CHECK((sink.message == answer));
    CHECK(sink.announced == answer.size());
    CHECK(sink.begun == 1);
    CHECK(sink.finished == 1);
    session.close(stream);
    exchange(session, server, piece);
    CHECK(server.requests[1].closed);
    CHECK(server.requests[1].error_code == NGHTTP2_NO_ERROR);
    CHECK(session.usable());
  }
}

TEST_CASE("session makes many calls at once") {
  Session session("x");
  Server server;
  std::vector<std::string> messages;
  std::vector<Stream*> streams;
  std::vector<std::unique_ptr<Sink>> sinks;
  for (unsigned i = 0; i < 20; ++i) messages.push_back(text_of(1000 * i, i));
  for (const std::string& message : messages) {
    sinks.push_back(std::make_unique<Sink>());
    streams.push_back(session.open(call_of(message), -1, sinks.back().get()));
  }
  exchange(session, server, 1000);
  for (std::size_t i = streams.size(); i-- != 0;) {
    CHECK((server.requests[streams[i]->id()].body == with_prefix(messages[i])));
    CHECK(server.requests[streams[i]->id()]["grpc-timeout"] == "(none)");
    server.answer(streams[i]->id(), kHeaders, with_prefix(messages[i]), kTrailers);
  }
  exchange(session, server, 1000);
  for (std::size_t i = 0; i < streams.size(); ++i) {
    CHECK(streams[i]->outcome().status == Status::kOk);
    CHECK((sinks[i]->message == messages[i]));
    session.close(streams[i]);
  }
}

namespace {

/// Has a place for its message.
struct PlacedSink final : triton_fast::http2::MessageSink {
  void begin(std::uint64_t size) override { memory.resize(static_cast<std::size_t>(size)); }
  void feed(triton_fast::ConstBuffer piece) override {
    auto* const place = reinterpret_cast<std::uint8_t*>(&memory[at]);
    if (piece.data == place) {
      landed += piece.size;
    } else {
      std::memcpy(place, piece.data, piece.size);
    }
    at += piece.size;
  }
  void finish() override { ++finished; }
  triton_fast::MutableBuffer landing() noexcept override {
    return {reinterpret_cast<std::uint8_t*>(&memory[at]), memory.size() - at};
  }

  std::string memory;
  std::size_t at = 0;
  std::size_t landed = 0;
  int finished = 0;
};

}  // namespace

TEST_CASE("session says where bytes belong") {
  for (const std::size_t most : {std::size_t{1} << 20, std::size_t{1000}, std::size_t{1}}) {
    const std::string message = text_of(100000, 1);
    Session session("x");
    Server server;
    PlacedSink sink;
    Stream* const stream = session.open(call_of("q"), -1, &sink);
    exchange(session, server);
    CHECK(session.landing().size == 0);
    server.answer(1, kHeaders, with_prefix(message), kTrailers);
    const std::string sent = server.take();
    for (std::size_t at = 0, size = 0; at < sent.size(); at += size) {
      const triton_fast::MutableBuffer place = session.landing();
      size = std::min({place.size == 0 ? 7 : place.size, most, sent.size() - at});
      const std::string piece = sent.substr(at, size);  // a copy that is gone afterwards
      if (place.size != 0) std::memcpy(place.data, piece.data(), size);
      session.feed(place.size != 0 ? triton_fast::ConstBuffer{place.data, size} : buffer(piece));
    }
    CHECK(stream->outcome().status == Status::kOk);
    CHECK(sink.finished == 1);
    CHECK((sink.memory == message));
    CHECK(sink.landed > 99000);  // all but what came with the heads of frames
    CHECK(session.landing().size == 0);
  }
}

TEST_CASE("session knows no place for what is not a message") {
  const auto begin = [](Session& session, PlacedSink& sink) {
    Server server;
    Stream* const stream = session.open(call_of("q"), -1, &sink);
    exchange(session, server);
    server.answer(1, kHeaders, {}, Fields{{"never", "sent"}});
    const std::string headers = server.take();
    session.feed(buffer(headers.substr(0, 9 + static_cast<std::uint8_t>(headers[2]))));
    CHECK(stream->answered());
    CHECK(!stream->done());
    return stream;
  };
  const std::string message = with_prefix("0123456789");
  {  // not beyond the frame, nor beyond the message
    Session session("x");
    PlacedSink sink;
    Stream* const stream = begin(session, sink);
    session.feed(buffer(frame(0, 0, 1, message.substr(0, 9)).substr(0, 9 + 6)));
    CHECK(session.landing().size == 3);
    session.feed(buffer(message.substr(6, 3)));
    CHECK(session.landing().size == 0);
    session.feed(buffer(frame(0, 0, 1, message.substr(9) + "more").substr(0, 9 + 2)));
    CHECK(session.landing().size == 4);
    session.cancel(stream);
    CHECK(session.landing().size == 0);
    session.close(stream);
    CHECK(session.landing().size == 0);
  }
  {  // padding looks like data until its end is known
    Session session("x");
    PlacedSink sink;
    Stream* const stream = begin(session, sink);
    const std::string padded = frame(0, 8, 1, "\x03" + message + std::string(3, '\0'));
    for (const char& byte : padded) {
      session.feed({reinterpret_cast<const std::uint8_t*>(&byte), 1});
      CHECK(session.landing().size == 0);
    }
    CHECK(sink.finished == 1);
    CHECK(sink.memory == "0123456789");
    CHECK(!stream->done());
  }
  {  // another's
    Session session("x");
    PlacedSink sink;
    Stream* const stream = begin(session, sink);
    session.feed(buffer(frame(0, 0, 1, message.substr(0, 8))));
    session.close(stream);
    Stream* const next = session.open(call_of("q"), -1, &sink);
    session.feed(buffer(frame(0, 0, 1, message.substr(8)).substr(0, 9 + 1)));
    CHECK(session.landing().size == 0);
    CHECK(!next->answered());
  }
}

TEST_CASE("session takes an empty message") {
  Session session("x");
  Server server;
  Sink sink;
  Stream* const stream = session.open(call_of(""), -1, &sink);
  exchange(session, server);
  CHECK((server.requests[1].body == with_prefix("")));
  server.answer(1, kHeaders, with_prefix(""), kTrailers);
  exchange(session, server);
  CHECK(stream->outcome().status == Status::kOk);
  CHECK(sink.finished == 1);
  CHECK(sink.message.empty());
}

TEST_CASE("session keeps to windows and copies nothing") {
  // Windows that open by odd amounts, writes that are cut anywhere, frames of the smallest size.
  const std::string message = text_of(3000000, 1);
  Session session("x");
  Server server({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000}}, false);
  session.feed(buffer(server.take()));
  Sink sink;
  Stream* const stream = session.open(call_of(message), -1, &sink);
  std::minstd_rand random(7);
  std::string& body = server.requests[stream->id()].body;
  std::size_t lent = 0;
  while (!server.requests[stream->id()].complete) {
    iovec pieces[100];
    const std::size_t count = session.gather(pieces, 1 + random() % 100);
    std::string sent;
    for (std::size_t i = 0; i < count; ++i) {
      const char* const from = static_cast<const char*>(pieces[i].iov_base);
      const bool inside = from >= message.data() && from < message.data() + message.size();
      REQUIRE((inside || pieces[i].iov_len < 1000));
      if (inside) lent += pieces[i].iov_len;
      sent.append(from, pieces[i].iov_len);
    }
    if (count != 0) {
      const std::size_t part = 1 + random() % sent.size();
      // What was not sent is listed again.
      std::size_t over = sent.size() - part;
      for (std::size_t i = count; i-- != 0 && over != 0;) {
        const std::size_t back = std::min(over, pieces[i].iov_len);
        const char* const from = static_cast<const char*>(pieces[i].iov_base);
        if (from >= message.data() && from < message.data() + message.size()) lent -= back;
        over -= back;
      }
      session.sent(part);
      server.feed(buffer(sent.substr(0, part)));
    } else {
      server.open_windows(stream->id(), static_cast<std::int32_t>(1 + random() % 100000));
    }
    session.feed(buffer(server.take()));
  }
  CHECK((body == with_prefix(message)));
  CHECK(lent == message.size());
}

TEST_CASE("session lists no more than is needed") {
  // Two thousand frames' worth of window; nghttp2 would list them all.
  Session session("x");
  Server server({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0x7fffffff}});
  server.open_windows(0, 0x7fffffff - 65535);
  session.feed(buffer(server.take()));
  Sink sink;
  const std::string message = text_of(40000000, 1);
  Stream* const stream = session.open(call_of(message), -1, &sink);
  std::vector<iovec> pieces(100000);
  const std::size_t count = session.gather(pieces.data(), pieces.size());
  CHECK(count > 500);
  CHECK(count < 1100);
  CHECK(!stream->listed());
  CHECK(session.borrows());
  CHECK(session.wants_write());
  exchange(session, server);
  CHECK(server.requests[1].complete);
  CHECK((server.requests[1].body == with_prefix(message)));
}

TEST_CASE("session takes changes of the window below zero") {
  Session session("x");
  Server server({}, false);
  Sink sink;
  const std::string message = text_of(200000, 1);
  session.open(call_of(message), -1, &sink);
  exchange(session, server);  // 65535 bytes are on their way
  CHECK(server.requests[1].body.size() == 65535);
  server.change({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10}});
  server.open_windows(1, 60000);  // still 5525 below zero
  exchange(session, server);
  CHECK(server.requests[1].body.size() == 65535);
  CHECK(!session.wants_write());
  server.open_windows(1, 5526);
  exchange(session, server);
  CHECK(server.requests[1].body.size() == 65536);
  server.change({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000000}});
  server.open_windows(1, 1000000);
  exchange(session, server);
  CHECK(server.requests[1].complete);
  CHECK((server.requests[1].body == with_prefix(message)));
}

TEST_CASE("session takes answers without a body") {
  const Fields fields = {{":status", "200"},
                         {"content-type", "application/grpc"},
                         {"grpc-status", "5"},
                         {"grpc-message", "no such %E2%9C%93 model"}};
  Session session("x");
  Server server;
  Sink sink;
  Stream* const stream = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  server.informational(1, {{":status", "103"}, {"grpc-status", "13"}});
  server.answer(1, fields);
  exchange(session, server);
  CHECK(stream->outcome().status == Status::kNotFound);
  CHECK(stream->outcome().message == "no such \xe2\x9c\x93 model");
  CHECK(sink.begun == 0);
}

TEST_CASE("session takes long headers") {
  Session session("x");
  Server server;
  Sink sink;
  for (const std::size_t size : {1000u, 65536u}) {
    std::string text = text_of(size, 1);
    for (char& c : text) c = static_cast<char>('a' + (c & 15));
    Fields trailers = {{"grpc-status", "13"}, {"grpc-message", text}};
    for (int i = 0; i < 1000; ++i) trailers.emplace_back("x-" + std::to_string(i), "some value");
    Stream* const stream = session.open(call_of("x"), -1, &sink);
    exchange(session, server);
    server.answer(stream->id(), kHeaders, with_prefix("y"), trailers);
    exchange(session, server, 10000);
    CHECK(stream->outcome().status == Status::kInternal);
    CHECK((stream->outcome().message == text));
    session.close(stream);
  }
}

namespace {

/// A header that is coded as it is.
std::string literal(const std::string& name, const std::string& value) {
  std::string out(1, '\0');
  for (const std::string& text : {name, value}) {
    std::size_t rest = text.size();
    if (rest < 0x7f) {
      out.push_back(static_cast<char>(rest));
    } else {
      out.push_back('\x7f');
      for (rest -= 0x7f; rest >= 0x80; rest >>= 7) {
        out.push_back(static_cast<char>(rest | 0x80));
      }
      out.push_back(static_cast<char>(rest));
    }
    out += text;
  }
  return out;
}

/// HEADERS and CONTINUATION with at most `size` bytes each.
std::string headers_of(std::int32_t id, const std::string& block, std::size_t size) {
  std::string out;
  std::size_t at = 0;
  do {
    const std::string part = block.substr(at, size);
    const bool first = at == 0;
    at += part.size();
    out += frame(first ? 1 : 9, static_cast<std::uint8_t>(at == block.size() ? 4 : 0),
                 static_cast<std::uint32_t>(id), part);
  } while (at < block.size());
  return out;
}

/// Gives a session what a server may send; once it gives up, its calls end.
bool feed_all(Session& session, const std::string& sent, std::size_t piece) {
  try {
    for (std::size_t at = 0; at < sent.size(); at += piece) {
      session.feed(buffer(sent.substr(at, piece)));
    }
  } catch (const ConnectionError& error) {
    session.end(error.what());
    return false;
  }
  return true;
}

}  // namespace

TEST_CASE("session ends a call with headers that are too long") {
  const std::string head = "\x88" + literal("grpc-status", "13");
  const std::string long_one = head + literal("grpc-message", std::string(65537, 'x'));
  std::string many = head;
  for (int i = 0; i < 1000; ++i) many += literal("x-many", std::string(200, 'x'));
  const std::string broken = head + "\xff\xff\x7f";  // an index that is not in the table
  struct Case {
    std::string block;
    std::size_t frame_size;
    Status status;
    const char* text;
  };
  const Case cases[] = {
      {long_one, 16384, Status::kResourceExhausted, "a header of more than 64 KiB"},
      {long_one, 100000, Status::kResourceExhausted, "a header of more than 64 KiB"},
      {many, 1000000, Status::kResourceExhausted, "more than 128 KiB of headers"},
      {many, 65536, Status::kResourceExhausted, "more than 128 KiB of headers"},
      {broken, 100000, Status::kUnavailable, "does not keep to HTTP/2"},
  };
  for (const auto& [block, frame_size, status, text] : cases) {
    for (const std::size_t piece : {std::size_t{1000}, std::size_t{1} << 20}) {
      Session session("x");
      Server server;
      Sink sink;
      Stream* const stream = session.open(call_of("1"), -1, &sink);
      Stream* const other = session.open(call_of("2"), -1, &sink);
      exchange(session, server);
      CHECK(!feed_all(session, headers_of(1, block, frame_size), piece));
      REQUIRE(stream->done());
      CHECK(stream->outcome().status == status);
      CHECK(stream->outcome().message.find(text) != std::string::npos);
      CHECK(!stream->outcome().safe_to_retry);
      // nghttp2 cannot go on after a block that it has not decoded.
      REQUIRE(other->done());
      CHECK(other->outcome().status == Status::kUnavailable);
      const bool is_long = status == Status::kResourceExhausted;
      CHECK((other->outcome().message.find("KiB") != std::string::npos) == is_long);
    }
  }
}

TEST_CASE("session ends a call with a few bytes that stand for many headers") {
  Session session("x");
  Server server;
  Sink sink;
  Stream* const stream = session.open(call_of("1"), -1, &sink);
  Stream* const other = session.open(call_of("2"), -1, &sink);
  exchange(session, server);
  // One that goes to the table, and its number again and again.
  std::string large = literal("x-large", std::string(3900, 'y'));
  large[0] = '\x40';
  const std::string block = "\x88" + large + std::string(1000, '\xbe');
  REQUIRE(feed_all(session, headers_of(1, block, 16384), 1 << 20));
  REQUIRE(stream->done());
  CHECK(stream->outcome().status == Status::kResourceExhausted);
  CHECK(stream->outcome().message == "the server sends more than 128 KiB of headers");
  session.close(stream);
  exchange(session, server);
  CHECK(server.requests[1].error_code == NGHTTP2_CANCEL);
  // It is that call's affair alone; the table is as the server thinks it is.
  CHECK(!other->done());
  CHECK(session.usable());
  REQUIRE(feed_all(session,
                   headers_of(3, "\x88" + literal("content-type", "application/grpc"), 16384) +
                       frame(0, 0, 3, with_prefix("y")) +
                       frame(1, 5, 3, literal("grpc-status", "0") + "\xbe"),
                   1 << 20));
  CHECK(other->outcome().status == Status::kOk);
}

TEST_CASE("session asks for headers of no more than it takes") {
  Session session("x");
  Server server;
  std::string sent;
  iovec pieces[10];
  const std::size_t count = session.gather(pieces, 10);
  for (std::size_t i = 0; i < count; ++i) {
    sent.append(static_cast<const char*>(pieces[i].iov_base), pieces[i].iov_len);
  }
  CHECK(sent.find(std::string("\x00\x06\x00\x01\x00\x00", 6)) != std::string::npos);
}

TEST_CASE("session tells the peer of a call that is given up") {
  Session session("x");
  Server server;
  Sink sink;
  Stream* stream = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  session.cancel(stream);
  REQUIRE(stream->done());
  CHECK(stream->outcome().status == Status::kCancelled);
  session.close(stream);
  exchange(session, server);
  CHECK(server.requests[1].closed);
  CHECK(server.requests[1].error_code == NGHTTP2_CANCEL);
  // Before it was sent at all: the peer never hears of it.
  stream = session.open(call_of("x"), -1, &sink);
  const std::int32_t id = stream->id();
  session.close(stream);
  exchange(session, server);
  CHECK(server.requests.count(id) == 0);
  CHECK(session.usable());
}

TEST_CASE("session leaves the memory of a closed call alone") {
  // In every state: not sent, waiting for a window, listed in part, answered early.
  for (int state = 0; state < 4; ++state) {
    Session session("x");
    Server server({{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, state == 1 ? 0u : 0x7fffffffu}}, false);
    if (state >= 2) server.open_windows(0, 0x7fffffff - 65535);
    if (state != 0) session.feed(buffer(server.take()));
    Sink sink;
    auto message = std::make_unique<std::string>(text_of(30000000, 1));
    Stream* const stream = session.open(call_of(*message), -1, &sink);
    const std::int32_t id = stream->id();
    iovec pieces[2000];
    if (state != 0) {
      const std::size_t count = session.gather(pieces, 2000);
      std::size_t size = 0;
      for (std::size_t i = 0; i < count; ++i) {
        server.feed({static_cast<const std::uint8_t*>(pieces[i].iov_base), pieces[i].iov_len});
        size += pieces[i].iov_len;
      }
      session.sent(size);
      CHECK(session.borrows() == false);
      CHECK(!stream->listed());
    }
    if (state == 3) {
      server.answer(id, {{":status", "200"}, {"grpc-status", "8"}});
      session.feed(buffer(server.take()));
      REQUIRE(stream->done());
      CHECK(stream->outcome().status == Status::kResourceExhausted);
    }
    session.close(stream);
    std::memset(message->data(), 0xee, message->size());
    message.reset();  // for the address sanitizer
    if (state != 0) server.open_windows(0, 1);
    exchange(session, server);
    CHECK(!session.borrows());
    CHECK(session.usable());
    CHECK((server.requests[id].body.find("\xee\xee\xee\xee\xee\xee\xee\xee") == std::string::npos));
    CHECK((state == 0 || server.requests[id].closed));
    // And the session goes on.
    Stream* const next = session.open(call_of("next"), -1, &sink);
    exchange(session, server);
    if (state == 1) server.open_windows(next->id(), 100);
    exchange(session, server);
    CHECK((server.requests[next->id()].body == with_prefix("next")));
  }
}

TEST_CASE("session says which calls the server cannot have seen") {
  Sink sink;
  {
    Session session("x");
    Server server;
    Stream* const first = session.open(call_of("1"), -1, &sink);
    Stream* const second = session.open(call_of("2"), -1, &sink);
    exchange(session, server);
    server.go_away(first->id(), NGHTTP2_NO_ERROR, "max_age");
    exchange(session, server);
    CHECK(!first->done());
    REQUIRE(second->done());
    CHECK(second->outcome().safe_to_retry);
    CHECK(second->outcome().status == Status::kUnavailable);
    CHECK(second->outcome().message == "the server is going away: max_age");
    CHECK(!session.usable());
    Stream* const late = session.open(call_of("3"), -1, &sink);
    exchange(session, server);
    REQUIRE(late->done());
    CHECK(late->outcome().safe_to_retry);
    CHECK(server.requests.count(late->id()) == 0);
    server.answer(first->id(), kHeaders, with_prefix("y"), kTrailers);
    exchange(session, server);
    CHECK(first->outcome().status == Status::kOk);
    CHECK(!first->outcome().safe_to_retry);
  }
  // Of those that were never sent it is known whatever the server names, and at once: also of one
  // that waits until the server takes it.
  for (const bool goaway : {true, false}) {
    Session session("x");
    Server server({{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1}});
    Stream* const first = session.open(call_of("1"), -1, &sink);
    exchange(session, server);
    Stream* const second = session.open(call_of("2"), -1, &sink);
    exchange(session, server);
    CHECK(server.requests.count(second->id()) == 0);
    if (goaway) {
      server.go_away(0x7fffffff, NGHTTP2_NO_ERROR, "max_age");
      exchange(session, server);
    } else {
      session.end("the server closed the connection");
    }
    CHECK(first->done() == !goaway);
    CHECK(!first->outcome().safe_to_retry);
    REQUIRE(second->done());
    CHECK(second->outcome().safe_to_retry);
    CHECK(second->outcome().status == Status::kUnavailable);
    session.close(second);
    if (!goaway) continue;
    server.answer(first->id(), kHeaders, with_prefix("y"), kTrailers);
    exchange(session, server);
    CHECK(first->outcome().status == Status::kOk);
    CHECK(server.requests.size() == 1);
  }
  for (const std::uint32_t code : {NGHTTP2_REFUSED_STREAM, NGHTTP2_CANCEL}) {
    for (const bool answered : {false, true}) {
      Session session("x");
      Server server;
      Stream* const stream = session.open(call_of("1"), -1, &sink);
      exchange(session, server);
      if (answered) server.informational(1, {{":status", "100"}});
      exchange(session, server);
      server.reset(1, code);
      exchange(session, server);
      REQUIRE(stream->done());
      CHECK(stream->outcome().safe_to_retry == (code == NGHTTP2_REFUSED_STREAM && !answered));
    }
  }
  {
    Session session("x");
    Server server;
    Stream* const stream = session.open(call_of("1"), -1, &sink);
    exchange(session, server);
    session.end("the server closed the connection");
    CHECK(stream->outcome().status == Status::kUnavailable);
    CHECK(!stream->outcome().safe_to_retry);
    CHECK(stream->outcome().message == "the server closed the connection");
  }
  {
    Session session("x");
    Stream* const stream = session.open(call_of("1"), -1, &sink);
    session.end("the server closed the connection");
    CHECK(stream->outcome().message.find("the server closed the connection, and said nothing "
                                         "before (check that") == 0);
  }
}

TEST_CASE("session says how many calls the server takes") {
  Session session("x");
  CHECK(!session.settled());
  CHECK(session.most_calls() == 1);
  Server server({{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 7}});
  exchange(session, server);
  CHECK(session.settled());
  CHECK(session.most_calls() == 7);
  Session other("x");
  Server generous;
  exchange(other, generous);
  CHECK(other.settled());
  CHECK(other.most_calls() > 1000000);
}

TEST_CASE("session refuses a body that is longer than it says") {
  for (const std::size_t piece : {std::size_t{0}, std::size_t{1}}) {
    Session session("x");
    Server server;
    Sink sink;
    Stream* const stream = session.open(call_of("x"), -1, &sink);
    exchange(session, server);
    Fields fields = kHeaders;
    fields.emplace_back("content-length", "10");
    server.answer(1, fields, with_prefix("more than that"), kTrailers);
    exchange(session, server, piece);
    REQUIRE(stream->done());
    CHECK(stream->outcome().status == Status::kInternal);
    CHECK(stream->outcome().message.find("does not keep to HTTP/2") != std::string::npos);
    CHECK(sink.finished == 0);
    CHECK(session.usable());
  }
}

TEST_CASE("session hands on what a sink throws") {
  Session session("x");
  Server server;
  Sink sink;
  sink.throw_in_begin = true;
  Stream* const stream = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  server.answer(1, kHeaders, with_prefix(text_of(100000, 1)), kTrailers);
  exchange(session, server);
  REQUIRE(stream->done());
  REQUIRE(stream->outcome().exception != nullptr);
  CHECK_THROWS_WITH_AS(std::rethrow_exception(stream->outcome().exception),
                       doctest::Contains("no, thank you"), std::runtime_error);
  CHECK(sink.begun == 1);
  CHECK(sink.message.empty());
  session.close(stream);
  sink.throw_in_begin = false;
  Stream* const next = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  server.answer(next->id(), kHeaders, with_prefix("y"), kTrailers);
  exchange(session, server);
  CHECK(next->outcome().status == Status::kOk);
  CHECK(sink.message == "y");
}

TEST_CASE("session compresses only when asked") {
  for (const bool asked : {false, true}) {
    for (const char* encoding : {"gzip", "identity", ""}) {
      Session session("x");
      Server server;
      Sink sink;
      CallSpec call = call_of("x");
      if (asked) call.encoding = "gzip";
      Stream* const stream = session.open(call, -1, &sink);
      exchange(session, server);
      CHECK((server.requests[1].body == with_prefix("x", asked ? 1 : 0)));
      CHECK(server.requests[1]["grpc-encoding"] == (asked ? "gzip" : "(none)"));
      Fields fields = kHeaders;
      if (*encoding != '\0') fields.emplace_back("grpc-encoding", encoding);
      server.answer(1, fields, with_prefix("y", 1), kTrailers);
      exchange(session, server);
      const bool taken = asked && std::string(encoding) == "gzip";
      CHECK(stream->outcome().status == (taken ? Status::kOk : Status::kInternal));
      CHECK(stream->outcome().compressed == taken);
      CHECK(sink.begun == (taken ? 1 : 0));
    }
  }
}

TEST_CASE("session counts pings") {
  Session session("x");
  Server server;
  exchange(session, server);
  for (std::uint64_t i = 0; i < 3; ++i) {
    CHECK(session.acknowledged_pings() == i);
    session.ping();
    exchange(session, server);
  }
  CHECK(session.acknowledged_pings() == 3);
}

TEST_CASE("session refuses requests that lie about their size") {
  Session session("x");
  Sink sink;
  const std::string message = "four";
  for (const std::uint64_t size : {0u, 3u, 5u}) {
    CallSpec call = call_of(message);
    call.message_size = size;
    CHECK_THROWS_WITH_AS(session.open(call, -1, &sink), doctest::Contains("as long as"),
                         ConnectionError);
  }
  CHECK(session.usable());
}

TEST_CASE("session refuses headers that are too large to send") {
  Session session("x");
  Server server;
  Sink sink;
  CallSpec call = call_of("x");
  call.metadata = {{"x-large", std::string(std::size_t{65} << 10, 'x')}};
  Stream* const stream = session.open(call, -1, &sink);
  exchange(session, server);
  REQUIRE(stream->done());
  CHECK(stream->outcome().status == Status::kResourceExhausted);
  CHECK(stream->outcome().message == "the request's headers are more than 64 KiB");
  CHECK(!stream->outcome().safe_to_retry);
  session.close(stream);
  Stream* const next = session.open(call_of("x"), -1, &sink);
  exchange(session, server);
  REQUIRE(server.requests.size() == 1);
  CHECK(server.requests[next->id()].complete);
}

TEST_CASE("session says what the peer is if not http2") {
  const std::pair<std::string, const char*> cases[] = {
      {"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1"},
      {"HTTP/1.", "HTTP/1"},
      {std::string("\x15\x03\x01\x00\x02\x02\x46", 7), "TLS"},
      {"SSH-2.0-OpenSSH_9.2\r\n", "does not keep to HTTP/2"},
      {"", "it closed"},
  };
  for (const auto& [sent, expected] : cases) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{1000}}) {
      Session session("x");
      Sink sink;
      Stream* const stream = session.open(call_of("x"), -1, &sink);
      iovec pieces[10];
      session.gather(pieces, 10);
      try {
        for (std::size_t at = 0; at < sent.size(); at += piece) {
          session.feed(buffer(sent.substr(at, piece)));
        }
        session.end("it closed");
      } catch (const ConnectionError& error) {
        session.end(error.what());
      }
      REQUIRE(stream->done());
      CHECK(stream->outcome().status == Status::kUnavailable);
      CHECK(stream->outcome().message.find(expected) != std::string::npos);
    }
  }
}
