// doctest, and what shows that it is listened to: tests that fail, which run only when asked for.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "thread.hpp"

TEST_CASE("fails" * doctest::skip()) { CHECK(1 + 1 == 3); }

TEST_CASE("fails in a thread that waits" * doctest::skip()) {
  test::Counter never;
  test::Thread waiting([&] { REQUIRE(never.reaches(1)); }, [&] { ++never; });
  REQUIRE(1 + 1 == 3);
}
