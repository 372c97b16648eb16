// Threads of the tests, and how they wait for each other.
//
// A test ends by an exception as soon as something is wrong, and its threads end with it: each is
// joined, having been woken from whatever it waits for. What a thread throws is the test's failure.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace test {

/// How long something may take that takes milliseconds on a machine that has nothing else to do.
/// Less than the limit of a test (CMakeLists.txt), so that the test itself says what did not come.
constexpr std::chrono::seconds kPatience{25};

class Thread {
 public:
  /// @param wake has the body end, whatever it waits for; called where nobody has called join()
  explicit Thread(std::function<void()> body, std::function<void()> wake = {})
      : wake_(std::move(wake)), thread_([this, body = std::move(body)] {
          try {
            body();
          } catch (...) {
            thrown_ = std::current_exception();
          }
        }) {}
  ~Thread() {
    if (!thread_.joinable()) return;
    if (wake_) wake_();
    thread_.join();
    report();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  /// Waits for the end. Throws what the body has thrown.
  void join() {
    thread_.join();
    if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

 private:
  /// Without an exception: there may be one on its way already.
  void report() noexcept {
    try {
      if (thrown_ != nullptr) std::rethrow_exception(thrown_);
    } catch (const doctest::detail::TestFailureException&) {
      // doctest has told it.
    } catch (const std::exception& error) {
      FAIL_CHECK("a thread has thrown: ", error.what());
    } catch (...) {
      FAIL_CHECK("a thread has thrown something");
    }
  }

  const std::function<void()> wake_;
  std::exception_ptr thrown_;
  std::thread thread_;  // the last: it uses the others
};

/// Counts what happens in one thread, for others to wait for.
class Counter {
 public:
  void operator++() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    changed_.notify_all();
  }

  std::size_t count() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

  /// Waits until there are so many. Returns false if they do not come.
  bool reaches(std::size_t least) const {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return count_ >= least; });
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::size_t count_ = 0;
};

}  // namespace test
