// Which connection a call gets, and what becomes of it afterwards.
#include "triton_fast/http2/pool.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace triton_fast::http2 {
namespace {

// How long to wait before signals are looked at, if none interrupts the wait.
constexpr std::int64_t kSlice = 200000000;

// How often idle connections are looked after, and how long one is left alone before. A gRPC server
// that shuts down sends GOAWAY and a PING, and waits for the answer for up to 20 s.
constexpr std::chrono::milliseconds kRound{500};
constexpr std::int64_t kFresh = 400000000;

constexpr char kCancelled[] = "the call was cancelled";
constexpr char kForked[] = "the process was forked during the call, which the parent goes on with";

}  // namespace

Pool::Pool(Address address, std::string authority, std::size_t most, std::int64_t idle_ns)
    : address_(std::move(address)),
      authority_(std::move(authority)),
      most_(std::max<std::size_t>(most, 1)),
      idle_ns_(idle_ns) {}

Pool::~Pool() { close(); }

void Pool::close() noexcept {
  if (inherited()) return;
  std::vector<std::unique_ptr<Connection>> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    dropped.swap(idle_);
    for (Call* const call : running_) {
      call->cancelled_ = true;
      if (call->interruptible_ != nullptr) call->interruptible_->interrupt();
    }
  }
  freed_.notify_all();
  tendered_.notify_all();
  if (tender_.joinable()) tender_.join();
}

void Pool::start_tending() noexcept {
  try {
    tender_ = std::thread([this] { tend(); });
  } catch (const std::system_error&) {
    // The system allows no more threads: the next call sees to what has come meanwhile.
  }
}

void Pool::tend() noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closed_) {
    if (idle_.empty()) {
      tender_sleeps_ = true;
      tendered_.wait(lock);
      tender_sleeps_ = false;
      continue;
    }
    tendered_.wait_for(lock, kRound);
    if (closed_) return;
    try {
      const std::int64_t now = monotonic_ns();
      const auto fresh = std::find_if(idle_.begin(), idle_.end(), [&](const auto& connection) {
        return now - connection->idle_since() < kFresh;
      });
      std::vector<std::unique_ptr<Connection>> stale(std::make_move_iterator(idle_.begin()),
                                                     std::make_move_iterator(fresh));
      idle_.erase(idle_.begin(), fresh);
      lock.unlock();
      const auto bad = std::remove_if(stale.begin(), stale.end(), [&](const auto& connection) {
        return now - connection->idle_since() > idle_ns_ || !connection->usable();
      });
      stale.erase(bad, stale.end());
      lock.lock();
      // Whatever was given back meanwhile was used more recently.
      if (!closed_) {
        idle_.insert(idle_.begin(), std::make_move_iterator(stale.begin()),
                     std::make_move_iterator(stale.end()));
      }
    } catch (const std::bad_alloc&) {
      // What was taken out is closed instead of kept.
      if (!lock.owns_lock()) lock.lock();
    }
  }
}

std::unique_ptr<Connection> Pool::take_idle() {
  std::vector<std::unique_ptr<Connection>> dropped;  // closed after the lock is gone
  std::unique_lock<std::mutex> lock(mutex_);
  const std::int64_t now = monotonic_ns();
  // The longest unused are in front.
  const auto fresh = std::find_if(idle_.begin(), idle_.end(), [&](const auto& connection) {
    return now - connection->idle_since() <= idle_ns_;
  });
  std::move(idle_.begin(), fresh, std::back_inserter(dropped));
  idle_.erase(idle_.begin(), fresh);
  while (!idle_.empty()) {
    std::unique_ptr<Connection> connection = std::move(idle_.back());
    idle_.pop_back();
    lock.unlock();
    if (connection->usable()) return connection;
    connection.reset();
    lock.lock();
  }
  return nullptr;
}

void Pool::drop_idle() noexcept {
  std::vector<std::unique_ptr<Connection>> dropped;  // closed after the lock is gone
  const std::lock_guard<std::mutex> lock(mutex_);
  dropped.swap(idle_);
}

bool Pool::reserve(std::int64_t until_ns) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (closed_) throw ClosedPool("the channel was closed");
    if (reserved_ < most_) {
      ++reserved_;
      return true;
    }
    const std::int64_t left = until_ns - monotonic_ns();
    if (left <= 0) return false;
    freed_.wait_for(lock, std::chrono::nanoseconds(left));
  }
}

void Pool::give(std::unique_ptr<Connection> connection) noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --reserved_;
    if (connection != nullptr && connection->open() && !closed_) {
      try {
        idle_.push_back(std::move(connection));
        if (!tender_.joinable()) start_tending();
        if (tender_sleeps_) tendered_.notify_one();
      } catch (const std::bad_alloc&) {
        // It is closed instead of kept.
      }
    }
  }
  freed_.notify_one();
}

Call::Call(std::shared_ptr<Pool> pool, CallSpec spec, MessageSink* sink, std::int64_t deadline_ns,
           const Keepalive& keepalive, std::int64_t busy_ns)
    : pool_(std::move(pool)),
      sink_(sink),
      busy_ns_(busy_ns),
      spec_(std::move(spec)),
      deadline_ns_(deadline_ns),
      keepalive_(keepalive) {
  if (pool_->inherited()) throw ClosedPool("the channel is the parent process's");
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  if (pool_->closed_) throw ClosedPool("the channel is closed");
  pool_->running_.insert(this);
}

Call::~Call() {
  end();
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  pool_->running_.erase(this);
}

/// Takes a step of the call. What goes wrong is its outcome, and it is done.
template <typename Step>
Progress Call::attempt(const Step& step) {
  if (pool_->inherited()) {  // a signal's handler has forked
    conclude(Status::kCancelled, kForked);
    return Progress::kDone;
  }
  try {
    return step();
  } catch (const DeadlineError& error) {
    conclude(Status::kDeadlineExceeded, error.what());
  } catch (const ClosedPool& error) {
    conclude(Status::kCancelled, error.what());
  } catch (const Error& error) {
    conclude(Status::kUnavailable, error.what());
  }
  return Progress::kDone;
}

Progress Call::run() {
  while (!done_) {
    if (attempt([this] { return advance(); }) == Progress::kInterrupted) {
      return Progress::kInterrupted;
    }
  }
  return Progress::kDone;
}

/// Sees to it that the call is on a connection. Returns false if a signal may have to be looked at.
bool Call::begin(std::int64_t slice_end_ns) {
  if (begun_) return true;
  if (!connect(slice_end_ns)) return false;
  begun_ = true;
  connection_->begin_call(spec_, sink_, deadline_ns_, keepalive_);
  return true;
}

Progress Call::advance() {
  if (!begin(monotonic_ns() + kSlice)) return Progress::kInterrupted;
  if (connection_->run(busy_ns_) == Progress::kInterrupted) return Progress::kInterrupted;
  take_outcome();
  return Progress::kDone;
}

/// Takes note of how the call on the connection ended.
void Call::take_outcome() {
  outcome_ = connection_->end_call();
  done_ = true;
  if (!outcome_.safe_to_retry) return;
  // It idled, and was dead; those that idled beside it may be dead too. Whoever makes the call
  // again must not meet one of them.
  drop_connection();
  pool_->drop_idle();
}

void Call::conclude(Status status, std::string message) {
  outcome_ = Outcome{};
  outcome_.status = status;
  outcome_.message = std::move(message);
  done_ = true;
}

bool Call::connect(std::int64_t slice_end_ns) {
  {
    const std::lock_guard<std::mutex> lock(pool_->mutex_);
    if (cancelled_) throw ClosedPool(kCancelled);
  }
  if (monotonic_ns() >= deadline_ns_) {
    throw DeadlineError("the deadline passed before the request was sent");
  }
  const std::int64_t until = std::min(deadline_ns_, slice_end_ns);
  if (!reserved_) {
    if (!pool_->reserve(until)) {
      if (monotonic_ns() < deadline_ns_) return false;
      throw DeadlineError("the deadline passed while waiting for a connection");
    }
    reserved_ = true;
  }
  if (connecting_ == nullptr) connection_ = pool_->take_idle();
  if (connection_ == nullptr) {
    if (connecting_ == nullptr) connecting_ = std::make_unique<Connecting>(pool_->address_);
    if (!connecting_->step(deadline_ns_, slice_end_ns)) return false;
    connection_ = std::make_unique<Connection>(connecting_->take(), pool_->authority_);
    connecting_.reset();
  }
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  interruptible_ = connection_.get();
  if (cancelled_) connection_->interrupt();
  return true;
}

void Call::drop_connection() {
  begun_ = false;
  {
    const std::lock_guard<std::mutex> lock(pool_->mutex_);
    interruptible_ = nullptr;
  }
  connection_.reset();
}

Outcome Call::end() noexcept {
  if (pool_->inherited()) {
    if (!done_) conclude(Status::kCancelled, kForked);
    return std::move(outcome_);
  }
  {
    const std::lock_guard<std::mutex> lock(pool_->mutex_);
    interruptible_ = nullptr;
  }
  if (!done_ && !(connection_ != nullptr && begun_)) conclude(Status::kCancelled, kCancelled);
  if (connection_ != nullptr && begun_) {
    try {
      // Even if something else has ended it: nobody may be borrowed from afterwards.
      Outcome outcome = connection_->end_call();
      if (!done_) outcome_ = std::move(outcome);
    } catch (...) {
      connection_.reset();
    }
  }
  done_ = true;
  connecting_.reset();
  if (reserved_) {
    reserved_ = false;
    pool_->give(std::move(connection_));
  }
  return std::move(outcome_);
}

void Call::cancel() noexcept {
  if (pool_->inherited()) return;
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  cancelled_ = true;
  if (interruptible_ != nullptr) interruptible_->interrupt();
  pool_->freed_.notify_all();
}

void StreamCall::post(std::vector<ConstBuffer> segments, std::uint64_t size, bool last) {
  if (pool_->inherited()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (over_) {
    sending_ = true;  // and never sent
    return;
  }
  if (sending_) throw std::logic_error("a stream's messages are sent one after another");
  if (closed_) throw std::logic_error("the stream is half closed: no more messages can be sent");
  segments_ = std::move(segments);
  size_ = size;
  posted_ = sending_ = true;
  closing_ = closed_ = last;
  nudge();
}

Progress StreamCall::send(std::int64_t until_ns) {
  Wants wants;
  wants.sent = true;
  wants.until_ns = until_ns;
  return drive(wants);
}

Progress StreamCall::receive(std::int64_t until_ns) {
  Wants wants;
  wants.message = true;
  wants.until_ns = until_ns;
  return drive(wants);
}

void StreamCall::give_up() {
  cancel();
  while (send(kNever) == Progress::kInterrupted) {
  }
}

void StreamCall::half_close() {
  if (pool_->inherited()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closing_ = closed_ = true;
    nudge();
  }
  Wants wants;
  wants.until_ns = monotonic_ns() + 1;  // whoever receives goes on, if that is not enough
  drive(wants);
}

bool StreamCall::over() noexcept {
  if (pool_->inherited()) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (over_ || driving_) return over_;
  {
    const std::lock_guard<std::mutex> pool_lock(pool_->mutex_);
    if (!cancelled_) return false;
  }
  outcome_ = end();
  return over_ = true;
}

/// Has the thread that is at the connection look at what was posted. With the mutex.
void StreamCall::nudge() {
  if (!driving_) return;
  const std::lock_guard<std::mutex> pool_lock(pool_->mutex_);
  if (interruptible_ != nullptr) interruptible_->nudge();
}

Progress StreamCall::drive(const Wants& wants) {
  if (pool_->inherited()) return Progress::kDone;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (over_ || (wants.message && sink_->ready()) || (wants.sent && !sending_)) {
      return Progress::kDone;
    }
    // Whoever receives goes on until there is a message, and tells of one that is sent on the way;
    // whoever sends would keep the messages that come meanwhile waiting. So it makes way.
    if (driving_ || (!wants.message && receivers_ != 0)) {
      const std::int64_t left = std::min(kSlice, wants.until_ns - monotonic_ns());
      if (left <= 0) return Progress::kInterrupted;
      if (wants.message && !driver_receives_) nudge();
      receivers_ += wants.message ? 1 : 0;
      const auto waited = changed_.wait_for(lock, std::chrono::nanoseconds(left));
      receivers_ -= wants.message ? 1 : 0;
      if (waited == std::cv_status::timeout) return Progress::kInterrupted;
      continue;
    }
    driving_ = true;
    driver_receives_ = wants.message;
    lock.unlock();
    Progress progress = Progress::kInterrupted;
    std::exception_ptr failure;
    try {
      progress = attempt([&] { return step(wants); });
    } catch (...) {
      failure = std::current_exception();
    }
    if (pool_->inherited()) return Progress::kDone;
    lock.lock();
    driving_ = false;
    if (failure == nullptr && !done_ && connection_ != nullptr) {
      sending_ = posted_ || !connection_->sent();
    }
    if (failure != nullptr || done_) {
      outcome_ = end();  // gives the connection back
      over_ = true;
    }
    changed_.notify_all();
    if (failure != nullptr) std::rethrow_exception(failure);
    if (progress == Progress::kInterrupted) return progress;
  }
}

Progress StreamCall::step(Wants wants) {
  if (!begin(std::min(monotonic_ns() + kSlice, wants.until_ns))) return Progress::kInterrupted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (posted_) {
      connection_->send(segments_, size_);
      posted_ = false;
    }
    if (closing_) {
      connection_->half_close();
      closing_ = false;
    }
    wants.sent = sending_;
  }
  const Progress progress = connection_->run(busy_ns_, wants);
  if (connection_->done()) {
    // The last message may have been sent all the same.
    const bool sent = connection_->sent();
    take_outcome();
    const std::lock_guard<std::mutex> lock(mutex_);
    sending_ = sending_ && (posted_ || !sent);
  }
  return progress;
}

bool StreamCall::sent() {
  if (pool_->inherited()) return false;
  const std::lock_guard<std::mutex> lock(mutex_);
  return !sending_;
}

void dispose(StreamCall* call) noexcept {
  if (!call->pool_->inherited()) delete call;
}

void dispose(Pool* pool) noexcept {
  if (!pool->inherited()) delete pool;
}

void dispose(Call* call) noexcept {
  if (!call->pool_->inherited()) delete call;
}

std::shared_ptr<Pool> make_pool(Address address, std::string authority, std::size_t most,
                                std::int64_t idle_ns) {
  return {new Pool(std::move(address), std::move(authority), most, idle_ns),
          [](Pool* pool) { dispose(pool); }};
}

}  // namespace triton_fast::http2
