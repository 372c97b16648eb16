// Pool: the connections to one server, one call on each at a time.
//
// Any thread may use a pool and its calls; a call is one thread's, but for cancel(). Locks are held
// for bookkeeping only, never while a call waits.
//
// In a forked child a pool of the parent's makes no calls any more, and its calls are over. Neither
// is ever destroyed there (see dispose()): other threads may have been in the middle of changing
// it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "triton_fast/http2/connection.hpp"
#include "triton_fast/process.hpp"

namespace triton_fast::http2 {

/// The pool was closed.
class ClosedPool : public Error {
 public:
  using Error::Error;
};

class Call;
class StreamCall;

class Pool {
 public:
  /// @param most connections at a time; calls wait for one to be free
  /// @param idle_ns how long one is kept unused
  Pool(Address address, std::string authority, std::size_t most, std::int64_t idle_ns);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// @brief Ends the calls that are running and refuses further ones. Idempotent; does not wait for
  /// them.
  void close() noexcept;

  /// Whether this is a copy, in a forked child, of the parent's.
  bool inherited() const noexcept { return generation_ != process_generation(); }

 private:
  friend class Call;
  friend class StreamCall;

  std::unique_ptr<Connection> take_idle();
  void drop_idle() noexcept;
  bool reserve(std::int64_t until_ns);
  void give(std::unique_ptr<Connection> connection) noexcept;
  void start_tending() noexcept;
  void tend() noexcept;

  const Address address_;
  const std::string authority_;
  const std::size_t most_;
  const std::int64_t idle_ns_;
  const std::uint64_t generation_ = process_generation();
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Connection>> idle_;  // the most recently used one last
  std::unordered_set<Call*> running_;
  std::size_t reserved_ = 0;  // connections that calls have or are making
  bool closed_ = false;
  // Looks after idle connections, from the first one on: answers what servers ask there, so that
  // one that is shutting down need not wait for us, and drops those that nobody has used for long.
  std::thread tender_;
  std::condition_variable tendered_;  // there is one, or the pool was closed
  bool tender_sleeps_ = false;        // for want of idle connections
};

/// @brief One call: takes a connection, makes the call, gives the connection back.
///
/// Made once: whoever made it decides by Outcome::safe_to_retry whether to make another one.
class Call {
 public:
  /// @param sink told the response; borrowed, like the segments in `spec`, until end()
  Call(std::shared_ptr<Pool> pool, CallSpec spec, MessageSink* sink, std::int64_t deadline_ns,
       const Keepalive& keepalive, std::int64_t busy_ns);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// @brief Goes on with the call. @return kInterrupted when signals should be looked at
  /// @throws std::bad_alloc; whatever else goes wrong is the outcome
  Progress run();

  /// @brief Ends the call, which is cancelled if it is not done. Nothing is borrowed afterwards.
  Outcome end() noexcept;

  /// @brief Has run() end the call with CANCELLED. Any thread, at any time before destruction.
  void cancel() noexcept;

 protected:
  template <typename Step>
  Progress attempt(const Step& step);
  bool begin(std::int64_t slice_end_ns);
  void take_outcome();

  const std::shared_ptr<Pool> pool_;
  MessageSink* const sink_;
  const std::int64_t busy_ns_;
  bool done_ = false;
  std::unique_ptr<Connection> connection_;
  Outcome outcome_;
  // Guarded by the pool's mutex.
  bool cancelled_ = false;
  Connection* interruptible_ = nullptr;

 private:
  friend class Pool;
  friend void dispose(Call* call) noexcept;

  Progress advance();
  bool connect(std::int64_t slice_end_ns);
  void drop_connection();
  void conclude(Status status, std::string message);

  const CallSpec spec_;
  const std::int64_t deadline_ns_;
  const Keepalive keepalive_;
  bool reserved_ = false;
  bool begun_ = false;
  std::unique_ptr<Connecting> connecting_;
};

/// @brief A call with many messages each way, on a connection of its own until it is over.
///
/// One thread may send while another receives: one of them drives the connection, and the other
/// waits for what it does. Any thread may cancel.
class StreamCall : public Call {
 public:
  using Call::Call;

  /// @brief Hands over one message, once the one before is sent. Its segments are borrowed until
  /// send() has returned kDone, or the call is over.
  /// @throws std::logic_error if that one is not, or the last one was sent
  void post(std::vector<ConstBuffer> segments, std::uint64_t size, bool last);

  /// @brief Goes on until the message is sent or the call is over: kDone. @see over()
  Progress send(std::int64_t until_ns);

  /// Whether the message that was handed over last is sent; it may be when the call is over, too.
  bool sent();

  /// @brief Ends the call with CANCELLED, unless it is over. Afterwards nothing is borrowed of the
  /// message that was being sent.
  void give_up();

  /// @brief Says that there are no more messages.
  void half_close();

  /// @brief Goes on until the sink is ready or the call is over: kDone. @see over()
  Progress receive(std::int64_t until_ns);

  /// @brief Whether the call is over, so that nothing of the caller's is borrowed any more. Ends it
  /// if it was cancelled and no thread is at it.
  bool over() noexcept;

  /// What came of it; once it is over.
  const Outcome& outcome() const noexcept { return outcome_; }

 private:
  friend void dispose(StreamCall* call) noexcept;

  Progress drive(const Wants& wants);
  Progress step(Wants wants);
  void nudge();

  std::mutex mutex_;
  std::condition_variable changed_;
  bool driving_ = false;  // a thread is at the connection, without the mutex
  bool driver_receives_ = false;
  int receivers_ = 0;     // that wait for their turn to drive
  bool posted_ = false;   // a message that the connection has not been given yet
  bool sending_ = false;  // a message that is not sent yet
  bool closing_ = false;  // there are no more messages, and the connection was not told yet
  bool closed_ = false;
  bool over_ = false;
  std::vector<ConstBuffer> segments_;
  std::uint64_t size_ = 0;
};

/// @brief Destroys what new has made, but not what a forked child has of its parent's.
void dispose(Pool* pool) noexcept;
void dispose(Call* call) noexcept;
void dispose(StreamCall* call) noexcept;

/// @brief Returns a pool that may be shared, across forks too.
std::shared_ptr<Pool> make_pool(Address address, std::string authority, std::size_t most,
                                std::int64_t idle_ns);

}  // namespace triton_fast::http2
