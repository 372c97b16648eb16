// Connection: a socket and a session, and the blocking driver that makes calls on them.
//
// One thread at a time, but for interrupt(). Owns its receive buffer.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "triton_fast/http2/intake.hpp"
#include "triton_fast/http2/session.hpp"
#include "triton_fast/http2/socket.hpp"

namespace triton_fast::http2 {

/// When to ping a server that is silent during a call; off if `after_ns` is 0.
struct Keepalive {
  std::int64_t after_ns = 0;
  std::int64_t timeout_ns = 0;
};

/// How a step of a call ended.
enum class Progress {
  kDone,         // the outcome is there, or what else was wanted
  kInterrupted,  // a signal came, or it is time to look for one: ask again
};

/// What to come back for, besides the end of the call and signals.
struct Wants {
  bool message = false;  // one that the sink is ready with
  bool sent = false;     // that a stream's message is sent
  std::int64_t until_ns = kNever;
};

class Connection {
 public:
  /// @brief Starts on a socket that is connected.
  Connection(Socket socket, const std::string& authority);

  /// @brief Starts a call. The segments and the sink are borrowed until end_call().
  /// @throws ConnectionError
  void begin_call(const CallSpec& call, MessageSink* sink, std::int64_t deadline_ns,
                  const Keepalive& keepalive);

  /// @brief Goes on with the call until it is done, or a signal may have to be looked at.
  /// @param busy_ns how long to ask again and again before sleeping
  Progress run(std::int64_t busy_ns, const Wants& wants = {});

  /// @brief Sends one message of a stream. Its segments are borrowed until sent() or end_call().
  void send(const std::vector<ConstBuffer>& segments, std::uint64_t size);

  /// @brief Says that a stream has no more messages.
  void half_close();

  /// Whether a stream's messages so far are sent.
  bool sent() const noexcept { return stream_->listed() && !stream_->lent(); }

  /// Whether the call is over, for good or not.
  bool done() const noexcept { return stream_->done() || overruled_; }

  /// @brief Ends the call that is running, and says what came of it.
  ///
  /// A call that is not done is cancelled. Afterwards nothing of the caller's is borrowed.
  Outcome end_call();

  /// @brief Has run() end the call with CANCELLED, now or when it is next called. Any thread.
  void interrupt() noexcept;

  /// @brief Has run() return kInterrupted, now or when it is next called. Any thread.
  void nudge() noexcept;

  /// @brief Looks at what came in while idle. @return whether a new call may be made
  bool usable() noexcept;

  /// Whether the socket is open, as far as is known.
  bool open() const noexcept { return !broken_ && socket_.open(); }

  /// Monotonic time of the end of the last call.
  std::int64_t idle_since() const noexcept { return idle_since_; }

 private:
  Progress go_on(std::int64_t busy_ns, const Wants& wants, std::int64_t slice_end);
  bool satisfied(const Wants& wants) const noexcept;
  void flush();
  bool receive();
  void receive_some(const Wants& wants);
  void send_some();
  void say_goodbye() noexcept;
  void expire();
  void overrule(Status status, std::string message);
  void keep_alive(std::int64_t now, bool full);

  Socket socket_;
  Session session_;
  Wake wake_;
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> nudged_{false};
  Intake intake_;
  Stream* stream_ = nullptr;
  const MessageSink* sink_ = nullptr;
  std::int64_t deadline_ns_ = kNever;
  bool sent_any_ = false;  // of the running call, since it began
  std::uint64_t received_before_ = 0;
  bool broken_ = false;
  bool overruled_ = false;  // the outcome below counts, not the stream's
  Outcome outcome_;
  Keepalive keepalive_;
  std::int64_t left_ns_ = 0;  // when run() last returned
  std::int64_t last_received_ns_ = 0;
  std::int64_t pinged_ns_ = 0;  // 0: no ping is under way
  std::uint64_t pings_ = 0;
  std::int64_t idle_since_ = 0;
};

}  // namespace triton_fast::http2
