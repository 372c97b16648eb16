// The identity of the test models: every tensor INPUTx comes back as OUTPUTx, unchanged.
//
// It serves any model whose configuration pairs INPUTx with OUTPUTx, of every datatype and shape,
// and costs a memcpy: latency taken through it is the server's and the client's, not a model's. On
// top of the copy:
//
//   - the request's parameters come back as the response's parameters (with
//     --grpc-header-forward-pattern, so do the request's headers);
//   - an input DELAY (FP32, one element, seconds) makes the call last that long, unless it is
//     cancelled meanwhile, which is answered with CANCELLED;
//   - an input LATE (FP32, one element, seconds) makes it wait that long before it touches a tensor,
//     cancelled or not, as models do that look at neither;
//   - an input FAIL_MESSAGE (BYTES, one element) makes the call fail with that text, and
//     FAIL_CODE (INT32, one element) says with which TRITONSERVER_Error_Code.

#ifndef TRITON_FAST_TESTING_IDENTITY_HPP_
#define TRITON_FAST_TESTING_IDENTITY_HPP_

#include <thread>

#include "backend.hpp"

namespace triton_fast {

// How often a delayed call looks whether it was cancelled.
constexpr std::chrono::milliseconds kCancellationCheck{5};

inline TRITONSERVER_Error* Wait(TRITONBACKEND_Request* request, float seconds, bool stubborn) {
  if (!(seconds >= 0 && seconds <= 3600)) {
    return Error(kInvalidArgument, "DELAY and LATE must be between 0 and 3600 seconds");
  }
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<float>(seconds));
  for (auto now = Clock::now(); now < end; now = Clock::now()) {
    bool cancelled = false;
    RETURN_IF_ERROR(TRITONBACKEND_RequestIsCancelled(request, &cancelled));
    if (cancelled && !stubborn) return Error(kCancelled, "cancelled during the delay");
    std::this_thread::sleep_for(std::min<Clock::duration>(kCancellationCheck, end - now));
  }
  return nullptr;
}

inline TRITONSERVER_Error* EchoParameters(const Call& call) {
  uint32_t count = 0;
  RETURN_IF_ERROR(TRITONBACKEND_RequestParameterCount(call.request, &count));
  for (uint32_t index = 0; index < count; ++index) {
    const char* key = nullptr;
    int type = kString;
    const void* value = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_RequestParameter(call.request, index, &key, &type, &value));
    switch (type) {
      case kString:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetStringParameter(call.response, key,
                                                                 static_cast<const char*>(value)));
        break;
      case kInt:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetIntParameter(
            call.response, key, *static_cast<const int64_t*>(value)));
        break;
      case kBool:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetBoolParameter(call.response, key,
                                                               *static_cast<const bool*>(value)));
        break;
      case kDouble:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetDoubleParameter(
            call.response, key, *static_cast<const double*>(value)));
        break;
      default:
        return Error(kUnsupported, std::string("parameter '") + key + "' has an unknown type");
    }
  }
  return nullptr;
}

/// Answers a call; without an input DELAY it takes `delay` seconds.
inline TRITONSERVER_Error* Identity(Call& call, float delay = 0) {
  bool fails = false;
  std::string fail_message = "the model failed as it was told to";
  int32_t fail_code = kInternal;
  for (const Input& input : call.inputs) {
    if (input.name != "LATE") continue;
    float late = 0;
    RETURN_IF_ERROR(input.ReadOne(&late));
    RETURN_IF_ERROR(Wait(call.request, late, true));
  }
  for (const Input& input : call.inputs) {
    if (input.name == "DELAY") {
      RETURN_IF_ERROR(input.ReadOne(&delay));
    } else if (input.name == "FAIL_MESSAGE") {
      RETURN_IF_ERROR(input.ReadOne(&fail_message));
      fails = true;
    } else if (input.name == "FAIL_CODE") {
      RETURN_IF_ERROR(input.ReadOne(&fail_code));
      fails = true;
    } else if (input.name.compare(0, 5, "INPUT") == 0) {
      const std::string output = "OUTPUT" + input.name.substr(5);
      if (!call.Wants(output)) continue;
      void* buffer = nullptr;
      RETURN_IF_ERROR(
          call.MakeOutput(output, input.datatype, input.shape, input.byte_size, &buffer));
      RETURN_IF_ERROR(input.CopyTo(buffer));
    } else if (input.name != "LATE") {
      return Error(kInvalidArgument, "input '" + input.name + "' is neither INPUTx nor a control");
    }
  }
  RETURN_IF_ERROR(Wait(call.request, delay, false));
  if (fails) {
    if (fail_code < 0 || fail_code > kLastErrorCode) {
      return Error(kInvalidArgument, "FAIL_CODE must be between 0 and 7");
    }
    return Error(fail_code, fail_message);
  }
  return EchoParameters(call);
}

}  // namespace triton_fast

#endif  // TRITON_FAST_TESTING_IDENTITY_HPP_
