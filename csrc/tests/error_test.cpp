// What becomes of exceptions on their way to another language.
#include "triton_fast/error.hpp"

#include <doctest/doctest.h>

#include <new>
#include <stdexcept>

namespace {

using namespace triton_fast;

template <typename Exception>
ErrorInfo info_of(const Exception& exception) {
  try {
    throw exception;
  } catch (...) {
    return current_error();
  }
}

}  // namespace

TEST_CASE("errors have kind and message") {
  CHECK(info_of(WireError("größer")).kind == ErrorKind::kWire);
  CHECK(info_of(WireError("größer")).message == "größer");
  CHECK(info_of(TensorError("x")).kind == ErrorKind::kTensor);
  CHECK(info_of(SharedMemoryError("full", 28)).kind == ErrorKind::kSharedMemory);
  CHECK(info_of(SharedMemoryError("full", 28)).message == "full");
  CHECK(info_of(SharedMemoryError("full", 28)).number == 28);
  CHECK(info_of(std::bad_alloc()).kind == ErrorKind::kMemory);
  CHECK(info_of(std::runtime_error("other")).kind == ErrorKind::kOther);
  CHECK(info_of(std::runtime_error("other")).message == "other");
  CHECK(info_of(17).kind == ErrorKind::kOther);
}
