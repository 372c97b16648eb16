// Multiplexer: many calls on one connection, for an event loop that says when the socket is ready.
//
// Nothing here waits. One thread at a time. Owns the socket, the session and its receive buffer.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "triton_fast/http2/intake.hpp"
#include "triton_fast/http2/session.hpp"
#include "triton_fast/http2/socket.hpp"
#include "triton_fast/process.hpp"

namespace triton_fast::http2 {

class Multiplexer {
 public:
  /// @brief Starts on a socket that is connected.
  Multiplexer(Socket socket, const std::string& authority);

  /// What the loop watches; negative after hang_up().
  int descriptor() const noexcept { return socket_.descriptor(); }

  /// @brief Starts a call; see Session::open(). Nothing is sent before flush().
  /// @return its number
  /// @throws ConnectionError if the connection takes no new calls
  std::int32_t open(const CallSpec& call, MessageSink* sink, std::int64_t timeout_ns);

  /// @brief Sends one message of a stream; see Session::send().
  void send(std::int32_t id, const std::vector<ConstBuffer>& segments, std::uint64_t size);
  void half_close(std::int32_t id);
  void taken(std::int32_t id);

  /// @brief Ends a call, unless it is over. Its sink is told nothing any more.
  void cancel(std::int32_t id);

  /// Whether a call is over.
  bool done(std::int32_t id) const { return calls_.at(id).stream->done(); }

  /// Whether a call's memory is, or will be, read for what is yet to be sent.
  bool lent(std::int32_t id) const;

  /// @brief Says what came of a call that is over.
  Outcome outcome(std::int32_t id) const;

  /// @brief Forgets a call whose memory is not lent; one that is not over is cancelled.
  void close(std::int32_t id);

  /// @brief Sends what the kernel takes now.
  void flush();

  /// Whether there is more to send once the kernel takes it.
  bool wants_write() { return !broken_ && session_.wants_write(); }

  /// @brief Takes some of what has come, and sends what that asks for. A connection that breaks
  /// ends all its calls.
  void receive();

  /// @brief The calls with news; see Session::news().
  std::vector<std::int32_t> news() { return session_.news(); }

  /// Whether new calls may be opened.
  bool usable() const noexcept { return !broken_ && !inherited() && session_.usable(); }

  /// @brief How many calls may be on their way; see Session::most_calls().
  std::uint32_t most_calls() const noexcept { return session_.most_calls(); }
  bool settled() const noexcept { return session_.settled(); }

  /// @brief Breaks the connection: its calls end with UNAVAILABLE.
  void fail(const std::string& reason);
  bool broken() const noexcept { return broken_; }

  /// @brief Closes the socket, which nobody may watch any more.
  void hang_up() noexcept { socket_.close(); }

  /// @brief Queues a PING. @return how many were answered before
  std::uint64_t ping();
  std::uint64_t acknowledged_pings() const noexcept { return session_.acknowledged_pings(); }

  /// Bytes that have come so far.
  std::uint64_t received() const noexcept { return session_.received(); }

  /// Whether this is a copy, in a forked child, of the parent's.
  bool inherited() const noexcept { return generation_ != process_generation(); }

 private:
  struct Entry {
    Stream* stream;
    std::uint64_t sent_before;  // on the connection, when it began
  };

  void send_some();

  const std::uint64_t generation_ = process_generation();
  Socket socket_;
  Session session_;
  Intake intake_;
  std::unordered_map<std::int32_t, Entry> calls_;
  std::uint64_t sent_ = 0;
  bool broken_ = false;
};

/// @brief Destroys what new has made, but not what a forked child has of its parent's.
void dispose(Multiplexer* multiplexer) noexcept;

}  // namespace triton_fast::http2
