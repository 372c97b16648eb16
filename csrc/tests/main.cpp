// Runs the tests whose names contain the argument; all of them without one.
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "check.hpp"

int main(int argc, char** argv) {
  const char* wanted = argc > 1 ? argv[1] : "";
  std::vector<check::Test> chosen;
  if (std::strcmp(wanted, "--fail") == 0) {
    chosen.push_back({"a test that fails", [] { CHECK(1 + 1 == 3); }});
  } else {
    for (const check::Test& test : check::tests()) {
      if (std::strstr(test.name, wanted) != nullptr) chosen.push_back(test);
    }
  }
  int failed = 0;
  for (const check::Test& test : chosen) {
    try {
      test.body();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("%s: %s\n", test.name, error.what());
    }
  }
  std::printf("%d of %zu tests failed\n", failed, chosen.size());
  return failed == 0 && !chosen.empty() ? 0 : 1;
}
