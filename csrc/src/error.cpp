// Reduces C++ exceptions to a kind and a message.
#include "triton_fast/error.hpp"

#include <new>

namespace triton_fast {

ErrorInfo current_error() noexcept {
  // Even copying the message may run out of memory, hence the outer try.
  try {
    try {
      throw;
    } catch (const WireError& error) {
      return {ErrorKind::kWire, error.what(), 0, {}, {}};
    } catch (const UnfitOutputError& error) {
      return {ErrorKind::kTensor, error.what(), 0, error.output(), error.answer()};
    } catch (const TensorError& error) {
      return {ErrorKind::kTensor, error.what(), 0, {}, {}};
    } catch (const SharedMemoryError& error) {
      return {ErrorKind::kSharedMemory, error.what(), error.number(), {}, {}};
    } catch (const std::bad_alloc&) {
      return {ErrorKind::kMemory, {}, 0, {}, {}};
    } catch (const std::exception& error) {
      return {ErrorKind::kOther, error.what(), 0, {}, {}};
    } catch (...) {
      return {ErrorKind::kOther, "an exception of unknown type", 0, {}, {}};
    }
  } catch (...) {
    return {ErrorKind::kMemory, {}, 0, {}, {}};
  }
}

}  // namespace triton_fast
