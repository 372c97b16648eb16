// A thread that carries many tasks on at once, each a step at a time when its time has come.
//
// Owns the thread and the tasks. A task's Step() does what is due, returns when it wants to be
// called next, kNever when it is over, and throws nothing.

#ifndef TRITON_FAST_TESTING_WORKER_HPP_
#define TRITON_FAST_TESTING_WORKER_HPP_

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace triton_fast {

using Clock = std::chrono::steady_clock;
constexpr Clock::time_point kNever = Clock::time_point::max();

template <typename Task>
class Worker {
 public:
  /// `name`: what the system's list of threads has, 15 bytes at most.
  explicit Worker(const char* name) : thread_([this] { Work(); }) {
    pthread_setname_np(thread_.native_handle(), name);
  }

  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  ~Worker() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  /// Takes a task over, unless it throws.
  void Add(std::unique_ptr<Task>& task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Room for the task that is being worked on too: the thread can put it back without fail.
      if (waiting_.capacity() < waiting_.size() + 2) waiting_.reserve(2 * waiting_.size() + 16);
      Put({Clock::now(), std::move(task)});
    }
    wake_.notify_one();
  }

 private:
  struct Waiting {
    Clock::time_point time;
    std::unique_ptr<Task> task;
    bool operator<(const Waiting& other) const { return time > other.time; }
  };

  void Put(Waiting waiting) {
    waiting_.push_back(std::move(waiting));
    std::push_heap(waiting_.begin(), waiting_.end());
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      if (waiting_.empty()) {
        wake_.wait(lock);
        continue;
      }
      const auto now = Clock::now();
      if (waiting_.front().time > now) {
        wake_.wait_until(lock, waiting_.front().time);
        continue;
      }
      std::pop_heap(waiting_.begin(), waiting_.end());
      Waiting current = std::move(waiting_.back());
      waiting_.pop_back();
      lock.unlock();
      current.time = current.task->Step(now);
      if (current.time == kNever) current.task.reset();
      lock.lock();
      if (current.task != nullptr) Put(std::move(current));
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Waiting> waiting_;  // a heap: the one whose time comes first is in front
  bool stopping_ = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace triton_fast

#endif  // TRITON_FAST_TESTING_WORKER_HPP_
