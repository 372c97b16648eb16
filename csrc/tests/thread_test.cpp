// What the tests themselves rely on: threads and children that end, and say what was wrong.
#include "thread.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "forked.hpp"

using test::BesideThreads;
using test::Counter;
using test::in_child;
using test::Report;
using test::Thread;

TEST_CASE("thread hands on what it throws") {
  Thread thread([] { throw std::runtime_error("no"); });
  CHECK_THROWS_WITH_AS(thread.join(), "no", std::runtime_error);
}

TEST_CASE("thread is woken and joined whatever is thrown") {
  Counter begun;
  Counter woken;
  std::atomic<bool> ended{false};
  const auto test_that_fails = [&] {
    Thread thread(
        [&] {
          ++begun;
          ended = woken.reaches(1);
        },
        [&] { ++woken; });
    if (begun.reaches(1)) throw std::runtime_error("no");
  };
  CHECK_THROWS_WITH_AS(test_that_fails(), "no", std::runtime_error);
  CHECK(ended.load());
}

TEST_CASE("child says what is wrong") {
  const auto right = [](Report& report) { report.expect(true, "nothing"); };
  CHECK(in_child(BesideThreads::kNo, right) == "");
  CHECK(in_child(BesideThreads::kYes, right) == "");
  const auto wrong = [](Report& report) {
    report.expect(false, "one");
    report.expect(false, "two");
  };
  CHECK(in_child(BesideThreads::kYes, wrong) == "one; two; exit status 1");
  const auto throws = [](Report&) { throw std::runtime_error("no"); };
  CHECK(in_child(BesideThreads::kNo, throws) == "no; exit status 1");
  const auto dies = [](Report&) { ::kill(::getpid(), SIGKILL); };
  CHECK(in_child(BesideThreads::kNo, dies) == "signal 9");
}

#if defined(__SANITIZE_ADDRESS__)
TEST_CASE("child beside threads may use no memory") {
  // The sanitizer's own locks may be those of a thread that the child does not have.
  const auto takes = [](Report&) { delete[] new char[100]; };
  CHECK(in_child(BesideThreads::kNo, takes) == "");
  CHECK(in_child(BesideThreads::kYes, takes) == "it takes memory; exit status 1");
  char* const block = new char[100];
  const auto gives = [&](Report&) { delete[] block; };
  CHECK(in_child(BesideThreads::kYes, gives) == "it gives memory back; exit status 1");
  delete[] block;
}
#endif
