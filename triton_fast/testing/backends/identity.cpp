// The identity backend of the test server: every tensor INPUTx comes back as OUTPUTx, unchanged.
//
// Owns what Triton calls the backend "triton_fast_identity". It serves any model whose
// configuration pairs INPUTx with OUTPUTx, of every datatype and shape, and costs a memcpy: latency
// taken through it is the server's and the client's, not a model's. On top of the copy:
//
//   - the request's parameters come back as the response's parameters (with
//     --grpc-header-forward-pattern, so do the request's headers);
//   - an input DELAY (FP32, one element, seconds) makes the call last that long, unless it is
//     cancelled meanwhile, which is answered with CANCELLED;
//   - an input FAIL_MESSAGE (BYTES, one element) makes the call fail with that text, and
//     FAIL_CODE (INT32, one element) says with which TRITONSERVER_Error_Code.
//
// Compiled on demand by triton_fast.testing, with no header of the server's: the part of the C ABI
// (major version 1) that is needed is declared here. Triton calls from several threads, one for
// each model instance; there is no state, so nothing needs a lock.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

extern "C" {
struct TRITONSERVER_Error;
struct TRITONBACKEND_Backend;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Output;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;

// Enumerations travel as int: only the values named below are looked at, the rest pass through.
TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error*);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONSERVER_LogMessage(int level, const char* file, int line,
                                            const char* message);

TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor);
TRITONSERVER_Error* TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request*, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request*, uint32_t index,
                                                      TRITONBACKEND_Input**);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request*, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request*, uint32_t index,
                                                    const char** name);
TRITONSERVER_Error* TRITONBACKEND_RequestParameterCount(TRITONBACKEND_Request*, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestParameter(TRITONBACKEND_Request*, uint32_t index,
                                                   const char** key, int* type,
                                                   const void** value);
TRITONSERVER_Error* TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request*, bool* cancelled);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input*, const char** name,
                                                  int* datatype, const int64_t** shape,
                                                  uint32_t* dims_count, uint64_t* byte_size,
                                                  uint32_t* buffer_count);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input*, uint32_t index,
                                              const void** buffer, uint64_t* byte_size,
                                              int* memory_type, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response**, TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response*, TRITONBACKEND_Output**,
                                                 const char* name, int datatype,
                                                 const int64_t* shape, uint32_t dims_count);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output*, void** buffer,
                                               uint64_t byte_size, int* memory_type,
                                               int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseSetStringParameter(TRITONBACKEND_Response*,
                                                             const char* key, const char* value);
TRITONSERVER_Error* TRITONBACKEND_ResponseSetIntParameter(TRITONBACKEND_Response*, const char* key,
                                                          int64_t value);
TRITONSERVER_Error* TRITONBACKEND_ResponseSetBoolParameter(TRITONBACKEND_Response*,
                                                           const char* key, bool value);
TRITONSERVER_Error* TRITONBACKEND_ResponseSetDoubleParameter(TRITONBACKEND_Response*,
                                                             const char* key, double value);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response*, uint32_t flags,
                                               TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool success, uint64_t exec_start_ns,
    uint64_t compute_start_ns, uint64_t compute_end_ns, uint64_t exec_end_ns);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, uint64_t batch_size, uint64_t exec_start_ns,
    uint64_t compute_start_ns, uint64_t compute_end_ns, uint64_t exec_end_ns);
}

namespace {

enum ErrorCode { kInternal = 1, kInvalidArgument = 3, kUnsupported = 5, kCancelled = 7 };
constexpr int32_t kLastErrorCode = kCancelled;
enum ParameterType { kString = 0, kInt = 1, kBool = 2, kDouble = 3 };
constexpr int kCpu = 0;
constexpr int kGpu = 2;
constexpr int kLogError = 2;
constexpr uint32_t kFinalResponse = 1;
constexpr uint32_t kReleaseAll = 1;

// How often a delayed call looks whether it was cancelled.
constexpr std::chrono::milliseconds kCancellationCheck{5};

/// Hands an error of the server's to the caller of the enclosing function.
#define RETURN_IF_ERROR(call)                              \
  do {                                                     \
    if (TRITONSERVER_Error* error = (call)) return error;  \
  } while (false)

TRITONSERVER_Error* Error(int code, const std::string& message) {
  return TRITONSERVER_ErrorNew(code, message.c_str());
}

/// For errors that no answer can carry any more: the response itself could not be made or sent.
void Log(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  TRITONSERVER_Error* unlogged =
      TRITONSERVER_LogMessage(kLogError, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(error));
  if (unlogged != nullptr) TRITONSERVER_ErrorDelete(unlogged);
  TRITONSERVER_ErrorDelete(error);
}

uint64_t Now() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

/// One input of a request. Valid until the request is released.
struct Tensor {
  TRITONBACKEND_Input* input = nullptr;
  const char* name = nullptr;
  int datatype = 0;
  const int64_t* shape = nullptr;
  uint32_t dims_count = 0;
  uint64_t byte_size = 0;
  uint32_t buffer_count = 0;

  TRITONSERVER_Error* Open(TRITONBACKEND_Request* request, uint32_t index) {
    RETURN_IF_ERROR(TRITONBACKEND_RequestInputByIndex(request, index, &input));
    return TRITONBACKEND_InputProperties(input, &name, &datatype, &shape, &dims_count, &byte_size,
                                         &buffer_count);
  }

  /// Copies the payload, which the server may hold in several pieces, to `destination`.
  TRITONSERVER_Error* CopyTo(char* destination) const {
    const auto mismatch = [this] {
      return Error(kInternal, std::string("the pieces of input '") + name + "' do not add up to " +
                                  std::to_string(byte_size) + " bytes");
    };
    uint64_t copied = 0;
    for (uint32_t index = 0; index < buffer_count; ++index) {
      const void* buffer = nullptr;
      uint64_t size = 0;
      int memory_type = kCpu;
      int64_t memory_id = 0;
      RETURN_IF_ERROR(
          TRITONBACKEND_InputBuffer(input, index, &buffer, &size, &memory_type, &memory_id));
      if (memory_type == kGpu) {
        return Error(kUnsupported, std::string("input '") + name + "' is in GPU memory");
      }
      if (size > byte_size - copied) return mismatch();
      if (size != 0) std::memcpy(destination + copied, buffer, size);
      copied += size;
    }
    return copied == byte_size ? nullptr : mismatch();
  }

  /// Reads a control input that must hold exactly one value of type `Value`.
  template <typename Value>
  TRITONSERVER_Error* Read(Value* value) const {
    if (byte_size != sizeof(Value)) {
      return Error(kInvalidArgument, std::string("input '") + name + "' must have one element");
    }
    return CopyTo(reinterpret_cast<char*>(value));
  }

  /// Reads a control input that must hold exactly one string.
  TRITONSERVER_Error* Read(std::string* value) const {
    std::string payload(byte_size, '\0');
    RETURN_IF_ERROR(CopyTo(payload.data()));
    uint32_t size = 0;
    if (byte_size >= sizeof(size)) std::memcpy(&size, payload.data(), sizeof(size));
    if (byte_size != sizeof(size) + size) {
      return Error(kInvalidArgument, std::string("input '") + name + "' must have one element");
    }
    *value = payload.substr(sizeof(size));
    return nullptr;
  }
};

TRITONSERVER_Error* Wait(TRITONBACKEND_Request* request, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(seconds));
  for (auto now = Clock::now(); now < end; now = Clock::now()) {
    bool cancelled = false;
    RETURN_IF_ERROR(TRITONBACKEND_RequestIsCancelled(request, &cancelled));
    if (cancelled) return Error(kCancelled, "cancelled during the delay");
    std::this_thread::sleep_for(std::min<Clock::duration>(kCancellationCheck, end - now));
  }
  return nullptr;
}

TRITONSERVER_Error* EchoParameters(TRITONBACKEND_Request* request,
                                   TRITONBACKEND_Response* response) {
  uint32_t count = 0;
  RETURN_IF_ERROR(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t index = 0; index < count; ++index) {
    const char* key = nullptr;
    int type = kString;
    const void* value = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_RequestParameter(request, index, &key, &type, &value));
    switch (type) {
      case kString:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetStringParameter(response, key,
                                                                 static_cast<const char*>(value)));
        break;
      case kInt:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetIntParameter(
            response, key, *static_cast<const int64_t*>(value)));
        break;
      case kBool:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetBoolParameter(response, key,
                                                               *static_cast<const bool*>(value)));
        break;
      case kDouble:
        RETURN_IF_ERROR(TRITONBACKEND_ResponseSetDoubleParameter(
            response, key, *static_cast<const double*>(value)));
        break;
      default:
        return Error(kUnsupported, std::string("parameter '") + key + "' has an unknown type");
    }
  }
  return nullptr;
}

/// Fills `response` from `request`; an error is what the caller is to be answered with instead.
TRITONSERVER_Error* Answer(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response) {
  // A backend must make the requested outputs and no others.
  uint32_t count = 0;
  RETURN_IF_ERROR(TRITONBACKEND_RequestOutputCount(request, &count));
  std::vector<std::string> requested(count);
  for (uint32_t index = 0; index < count; ++index) {
    const char* name = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_RequestOutputName(request, index, &name));
    requested[index] = name;
  }

  float delay = 0;
  bool fails = false;
  std::string fail_message = "the model failed as it was told to";
  int32_t fail_code = kInternal;
  RETURN_IF_ERROR(TRITONBACKEND_RequestInputCount(request, &count));
  for (uint32_t index = 0; index < count; ++index) {
    Tensor tensor;
    RETURN_IF_ERROR(tensor.Open(request, index));
    const std::string name = tensor.name;
    if (name == "DELAY") {
      RETURN_IF_ERROR(tensor.Read(&delay));
    } else if (name == "FAIL_MESSAGE") {
      RETURN_IF_ERROR(tensor.Read(&fail_message));
      fails = true;
    } else if (name == "FAIL_CODE") {
      RETURN_IF_ERROR(tensor.Read(&fail_code));
      fails = true;
    } else if (name.compare(0, 5, "INPUT") == 0) {
      const std::string twin = "OUTPUT" + name.substr(5);
      const auto output_name = std::find(requested.begin(), requested.end(), twin);
      if (output_name == requested.end()) continue;
      TRITONBACKEND_Output* output = nullptr;
      RETURN_IF_ERROR(TRITONBACKEND_ResponseOutput(response, &output, output_name->c_str(),
                                                   tensor.datatype, tensor.shape,
                                                   tensor.dims_count));
      void* buffer = nullptr;
      int memory_type = kCpu;
      int64_t memory_id = 0;
      RETURN_IF_ERROR(TRITONBACKEND_OutputBuffer(output, &buffer, tensor.byte_size, &memory_type,
                                                 &memory_id));
      if (memory_type == kGpu) {
        return Error(kUnsupported, "output '" + *output_name + "' is wanted in GPU memory");
      }
      RETURN_IF_ERROR(tensor.CopyTo(static_cast<char*>(buffer)));
    } else {
      return Error(kInvalidArgument, "input '" + name + "' is neither INPUTx nor a control");
    }
  }
  if (!(delay >= 0 && delay <= 3600)) {
    return Error(kInvalidArgument, "DELAY must be between 0 and 3600 seconds");
  }
  RETURN_IF_ERROR(Wait(request, delay));
  if (fails) {
    if (fail_code < 0 || fail_code > kLastErrorCode) {
      return Error(kInvalidArgument, "FAIL_CODE must be between 0 and 7");
    }
    return Error(fail_code, fail_message);
  }
  return EchoParameters(request, response);
}

void Serve(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
  const uint64_t start = Now();
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, request);
  const bool answerable = error == nullptr;
  if (answerable) error = Answer(request, response);
  const bool success = error == nullptr;
  const uint64_t end = Now();
  if (answerable) {
    Log(TRITONBACKEND_ResponseSend(response, kFinalResponse, error));
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  } else {
    Log(error);
  }
  Log(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, success, start, start, end,
                                                  end));
  if (success) {
    Log(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, 1, start, start, end, end));
  }
  Log(TRITONBACKEND_RequestRelease(request, kReleaseAll));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) TRITONSERVER_Error* TRITONBACKEND_Initialize(
    TRITONBACKEND_Backend*) {
  uint32_t major = 0;
  uint32_t minor = 0;
  RETURN_IF_ERROR(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == 1) return nullptr;
  return Error(kUnsupported,
               "triton_fast_identity is for version 1 of the backend API, the server has version " +
                   std::to_string(major));
}

__attribute__((visibility("default"))) TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
  for (uint32_t index = 0; index < count; ++index) Serve(instance, requests[index]);
  return nullptr;
}
}
