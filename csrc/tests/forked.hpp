// Children that tests fork: what goes wrong in one is told to its parent, which sees to its end.
//
// A child of a test that has threads inherits the locks that they had, those of a sanitizer's
// allocator too: glibc keeps its own malloc() usable across fork(), and sanitizers do not. So such
// a child takes no memory and gives none back. BesideThreads::kYes holds it to that, from before
// the library's handlers of fork() run in it; in a build without AddressSanitizer it may do as it
// likes.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <string>

#include "thread.hpp"

namespace test {

enum class BesideThreads : bool { kNo, kYes };

/// What a child says of itself. Takes no memory.
class Report {
 public:
  explicit Report(int descriptor) : descriptor_(descriptor) {}

  void expect(bool right, const char* what) {
    if (!right) say(what);
  }
  void say(const char* what) {
    wrong_ = true;
    // Where the pipe is full, enough has been said.
    static_cast<void>(!::write(descriptor_, what, std::strlen(what)));
    static_cast<void>(!::write(descriptor_, "; ", 2));
  }
  bool wrong() const { return wrong_; }

 private:
  const int descriptor_;
  bool wrong_ = false;
};

/// Where a child that may use no memory says that it has; negative in any other process.
void watch_memory(int descriptor);

/// Runs a body in a forked child. Returns what went wrong there; nothing if all was well.
template <typename Body>
std::string in_child(BesideThreads beside, const Body& body) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t parent = ::getpid();
  if (beside == BesideThreads::kYes) watch_memory(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
#ifdef __linux__
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (::getppid() != parent) ::_exit(1);
    Report report(ends[1]);
    try {
      body(report);
    } catch (const std::exception& error) {
      report.say(error.what());
    } catch (...) {
      report.say("something was thrown");
    }
    ::_exit(report.wrong() ? 1 : 0);
  }
  watch_memory(-1);
  ::close(ends[1]);
  std::string said = child < 0 ? "no child" : "";
  bool ended = child < 0;
  while (!ended) {
    pollfd waiting{ends[0], POLLIN, 0};
    const int ready =
        ::poll(&waiting, 1, static_cast<int>(std::chrono::milliseconds(kPatience).count()));
    if (ready < 0 && errno == EINTR) continue;
    char text[500];
    const ssize_t size = ready == 1 ? ::read(ends[0], text, sizeof text) : -1;
    ended = size <= 0;
    if (size > 0) said.append(text, static_cast<std::size_t>(size));
    if (size < 0) {
      said += "it did not end";
      ::kill(child, SIGKILL);
    }
  }
  ::close(ends[0]);
  if (child < 0) return said;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) said += "signal " + std::to_string(WTERMSIG(status));
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
    said += "exit status " + std::to_string(WEXITSTATUS(status));
  }
  return said;
}

}  // namespace test
