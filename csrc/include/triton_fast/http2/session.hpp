// Session: gRPC over one HTTP/2 connection, without any I/O.
//
// Bytes from the peer go in through feed(); what is to be sent comes out of gather() as a list of
// pieces, payloads straight from the callers' memory. Owns the nghttp2 session, the frame headers
// that are waiting to be sent and the state of its streams. One thread at a time.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "triton_fast/error.hpp"
#include "triton_fast/http2/frame_heads.hpp"
#include "triton_fast/http2/message.hpp"

struct nghttp2_session;

namespace triton_fast::http2 {

/// The connection as a whole can be used no more.
class ConnectionError : public Error {
 public:
  using Error::Error;
};

/// @brief One call on a session. Made by Session::open; dies with the session or by close().
class Stream {
 public:
  bool done() const noexcept { return done_; }
  std::int32_t id() const noexcept { return id_; }
  /// Valid once done().
  const Outcome& outcome() const noexcept { return outcome_; }
  /// Whether all of the request, or of a stream's messages so far, has been listed by gather().
  bool listed() const noexcept { return left_ == 0; }
  /// Whether what gather() has listed of it is yet to be sent, from the caller's memory.
  bool lent() const noexcept { return lent_ != 0; }
  /// Whether headers have come, informational ones too.
  bool answered() const noexcept { return http_status_ != 0; }

 private:
  friend class Session;

  void set_message(const std::vector<ConstBuffer>& segments, std::uint64_t size, bool compressed);

  std::int32_t id_ = -1;
  // Request: what data frames are cut from.
  std::uint8_t prefix_[5] = {};
  std::vector<ConstBuffer> pieces_;
  std::size_t piece_ = 0;
  std::size_t offset_ = 0;
  std::uint64_t left_ = 0;
  std::size_t lent_ = 0;      // pieces in the queue
  bool streaming_ = false;    // more than one message, each way
  bool half_closed_ = false;  // no message comes after those that are there
  bool closed_ = false;       // and kept only until its pieces are sent
  bool begun_ = false;        // its headers are listed, so that the peer may see it
  // Response.
  MessageSink* sink_ = nullptr;
  bool takes_compressed_ = false;
  int http_status_ = 0;
  bool has_grpc_status_ = false;
  std::string broken_grpc_status_;
  bool grpc_content_ = false;
  bool final_headers_ = false;  // the headers that are not informational have begun
  bool reset_by_peer_ = false;
  std::size_t header_size_ = 0;
  std::uint8_t message_prefix_[5] = {};
  std::size_t prefix_size_ = 0;
  std::uint64_t message_left_ = 0;
  std::uint64_t messages_ = 0;
  std::uint64_t unread_ = 0;  // bytes that the peer was not yet given leave to send as many more of
  bool noted_ = false;        // it is in the session's news
  std::string body_;          // the beginning of an answer that is not gRPC, for the error
  bool done_ = false;
  Outcome outcome_;
};

/// Who uses a session.
enum class Sharing {
  kOneCall,    // one call at a time: the peer may send as much as it likes
  kManyCalls,  // a stream that nobody reads holds up its peer and not the others; there are news
};

/// @brief gRPC client side of an HTTP/2 connection.
class Session {
 public:
  /// @param authority what calls carry as :authority
  explicit Session(std::string authority, Sharing sharing = Sharing::kOneCall);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// @brief Starts a call. The segments in `call` and the sink are borrowed until close().
  /// @param timeout_ns time left for it, for grpc-timeout; negative for none
  /// @throws ConnectionError if the session takes no new calls
  Stream* open(const CallSpec& call, std::int64_t timeout_ns, MessageSink* sink);

  /// @brief Sends one message of a stream whose earlier ones are listed, and lent no more.
  ///
  /// The segments are borrowed until they are sent, or the stream is closed.
  void send(Stream* stream, const std::vector<ConstBuffer>& segments, std::uint64_t size);

  /// @brief Says that a stream has no more messages.
  void half_close(Stream* stream);

  /// @brief Says that the messages that have come were taken: as much again may come. Where many
  /// calls share a session, a stream's sink has to be ready() while there are some.
  void taken(Stream* stream);

  /// @brief Returns, and forgets, the numbers of the streams with news: a message that has come,
  /// one that is sent, or its end. For sessions of many calls.
  std::vector<std::int32_t> news();

  /// @brief Ends a call that is not done yet: the peer is sent RST_STREAM.
  void cancel(Stream* stream);

  /// @brief Forgets a call; its memory may go, unless some is lent. Its sink may in any case.
  void close(Stream* stream);

  /// @brief Takes bytes from the peer. @throws ConnectionError if they are no HTTP/2
  void feed(ConstBuffer bytes);

  /// @brief Where the peer's next bytes belong, if they are a message's and that is known.
  ///
  /// They may be received there, and fed from there. Valid until the next call of anything else.
  MutableBuffer landing() noexcept;

  /// @brief Says that the connection is no more: streams that are not done end with UNAVAILABLE.
  void end(const std::string& reason);

  /// @brief Lists what is to be sent, at most `most` pieces. @return how many; 0 if nothing is.
  std::size_t gather(iovec* pieces, std::size_t most);

  /// @brief Says that the first `size` bytes of what gather() listed were sent.
  void sent(std::size_t size) noexcept;

  /// Whether gather() would list something.
  bool wants_write();

  /// Whether a piece that is yet to be sent lies in a caller's memory.
  bool borrows() const noexcept { return borrowed_ != 0; }

  /// Whether nothing more can come of this session: it was shut down, by either side.
  bool ended() const noexcept;

  /// Why, in words for the user.
  std::string complaint() const;

  /// Whether a new call may be opened.
  bool usable() const noexcept;

  /// @brief How many calls the peer takes at a time, as SETTINGS_MAX_CONCURRENT_STREAMS says; until
  /// it has said so, one. Further ones are for the caller to hold back: of those that are opened
  /// all the same, some are not sent before others are over, or refused.
  std::uint32_t most_calls() const noexcept;

  /// Whether the peer has said by now how many calls it takes.
  bool settled() const noexcept { return settled_; }

  /// @brief Queues a PING. acknowledged_pings() grows when its answer comes.
  void ping();
  std::uint64_t acknowledged_pings() const noexcept { return acknowledged_pings_; }

  /// Bytes of the peer's that were taken so far.
  std::uint64_t received() const noexcept { return received_; }

 private:
  struct Piece {
    const std::uint8_t* data;
    std::size_t size;
    std::int32_t lender;  // the stream whose caller's memory it is; 0 for none
  };
  struct Callbacks;
  friend struct Callbacks;

  void take(ConstBuffer bytes);
  [[noreturn]] void refuse();
  void pump();
  bool pump_one();
  void push_owned(const std::uint8_t* data, std::size_t size);
  Stream* find(std::int32_t id) noexcept;
  bool left_out(const Stream& stream) const noexcept;
  void on_goaway(std::int32_t last_stream_id, std::string_view reason);
  std::string diagnosis() const;
  template <typename Body>
  int guard(const Body& body) noexcept;
  void on_header(Stream& stream, std::string_view name, std::string_view value, bool last);
  void on_data(Stream& stream, const std::uint8_t* data, std::size_t size);
  void on_close(Stream& stream, std::uint32_t error_code);
  void fail(Stream& stream, Status status, std::string message);
  void note(Stream& stream) noexcept;
  void read(Stream& stream, std::size_t size);
  void resume(const Stream& stream);
  void finish_message(Stream& stream);

  const Sharing sharing_;
  nghttp2_session* session_ = nullptr;
  FrameHeads heads_;
  std::string authority_;
  std::unordered_map<std::int32_t, std::unique_ptr<Stream>> streams_;
  std::deque<Piece> queue_;
  std::deque<std::vector<std::uint8_t>> blocks_;  // memory of the pieces that are not borrowed
  std::size_t borrowed_ = 0;
  std::vector<std::int32_t> news_;  // has room for all streams
  bool in_long_block_ = false;      // of the headers at hand one may be longer than nghttp2 takes
  bool settled_ = false;            // the peer's first SETTINGS have come
  bool goaway_ = false;
  std::int32_t last_stream_id_ = 0x7fffffff;
  std::string goaway_reason_;
  std::string complaint_;       // nghttp2's own words
  std::string fault_;           // what makes the connection unusable, if it is the peer's
  std::exception_ptr failure_;  // thrown in a callback, to be thrown again outside nghttp2
  std::uint64_t acknowledged_pings_ = 0;
  std::uint64_t received_ = 0;
  std::uint8_t opening_[8] = {};  // the peer's first bytes, to recognise what is no HTTP/2
};

}  // namespace triton_fast::http2
