// The exceptions of the native parts. Everything thrown in csrc derives from Error; the one place
// that turns them into Python exceptions is triton_fast/_core/_errors.pyx.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace triton_fast {

/// Base of everything that csrc throws on purpose. Messages are UTF-8 and meant for the user.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Bytes from a peer are not the message that they should be.
class WireError : public Error {
 public:
  using Error::Error;
};

/// A tensor of the caller's cannot be sent or received as it is.
class TensorError : public Error {
 public:
  using Error::Error;
};

/// An output is not what the caller's memory for it takes.
class UnfitOutputError : public TensorError {
 public:
  /// @param answer the datatype and shape that came, as in "FP32 [4, 3]"
  UnfitOutputError(const std::string& message, std::string output, std::string answer)
      : TensorError(message), output_(std::move(output)), answer_(std::move(answer)) {}
  const std::string& output() const noexcept { return output_; }
  const std::string& answer() const noexcept { return answer_; }

 private:
  std::string output_;
  std::string answer_;
};

/// The system refuses shared memory, or has none left.
class SharedMemoryError : public Error {
 public:
  SharedMemoryError(const std::string& message, int number) : Error(message), number_(number) {}
  /// Of errno's.
  int number() const noexcept { return number_; }

 private:
  int number_;
};

/// What kind of exception is in flight, for a caller that cannot catch C++ types.
enum class ErrorKind { kWire, kTensor, kSharedMemory, kMemory, kOther };

/// A C++ exception reduced to what another language needs of it.
struct ErrorInfo {
  ErrorKind kind = ErrorKind::kOther;
  std::string message;
  int number = 0;  // of errno's, if it has one
  // Of an output that does not fit; else empty.
  std::string output;
  std::string answer;
};

/// @brief Describes the exception being handled. Call it inside a catch block only.
ErrorInfo current_error() noexcept;

}  // namespace triton_fast
