// The whole of the test framework: TEST registers, CHECK and CHECK_THROWS throw when they fail.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

/// Calls `body`, which must throw an `Expected` whose message has `part` in it.
template <typename Expected, typename Body>
void throws(const char* file, int line, const std::string& part, const Body& body) {
  try {
    body();
  } catch (const Expected& error) {
    const std::string message = error.what();
    if (message.find(part) != std::string::npos) return;
    fail(file, line, "the message is \"" + message + "\", without \"" + part + "\"");
  }  // anything else goes on to main(), which reports it
  fail(file, line, "nothing was thrown; expected \"" + part + "\"");
}

}  // namespace check

#define TEST(name)                                                 \
  static void name();                                              \
  static const check::Registration registered_##name{#name, name}; \
  static void name()

#define CHECK(condition)                                           \
  do {                                                             \
    if (!(condition)) check::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_THROWS(type, part, ...) \
  check::throws<type>(__FILE__, __LINE__, part, [&] { __VA_ARGS__; })
