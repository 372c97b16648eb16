// What any small Triton backend needs, without a header of the server's.
//
// Owns the part of the backend C ABI (major version 1) that the test backends use, declared by
// hand, and the frame around an inference: inputs in, outputs out, errors, statistics. A backend is
// one source file that includes this one, defines triton_fast::Answer() and exports
// TRITONBACKEND_ModelInstanceExecute(), by which each request that has one answer goes to Serve().
//
// Triton calls from several threads, one for each model instance; there is no state here, so
// nothing needs a lock.

#ifndef TRITON_FAST_TESTING_BACKEND_HPP_
#define TRITON_FAST_TESTING_BACKEND_HPP_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

extern "C" {
struct TRITONSERVER_Error;
struct TRITONBACKEND_Backend;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Output;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_ResponseFactory;

// Enumerations travel as int: only the values named below are looked at, the rest pass through.
TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
int TRITONSERVER_ErrorCode(TRITONSERVER_Error*);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error*);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONSERVER_LogMessage(int level, const char* file, int line,
                                            const char* message);

TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance*,
                                                     TRITONBACKEND_Model**);
TRITONSERVER_Error* TRITONBACKEND_ModelName(TRITONBACKEND_Model*, const char** name);
TRITONSERVER_Error* TRITONBACKEND_ModelState(TRITONBACKEND_Model*, void** state);
TRITONSERVER_Error* TRITONBACKEND_ModelSetState(TRITONBACKEND_Model*, void* state);
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
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryNew(TRITONBACKEND_ResponseFactory**,
                                                     TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryDelete(TRITONBACKEND_ResponseFactory*);
TRITONSERVER_Error* TRITONBACKEND_ResponseFactoryIsCancelled(TRITONBACKEND_ResponseFactory*,
                                                             bool* cancelled);
TRITONSERVER_Error* TRITONBACKEND_ResponseFactorySendFlags(TRITONBACKEND_ResponseFactory*,
                                                           uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_ResponseNewFromFactory(TRITONBACKEND_Response**,
                                                         TRITONBACKEND_ResponseFactory*);
TRITONSERVER_Error* TRITONBACKEND_ResponseDelete(TRITONBACKEND_Response*);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(
    TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*, bool success, uint64_t exec_start_ns,
    uint64_t compute_start_ns, uint64_t compute_end_ns, uint64_t exec_end_ns);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(
    TRITONBACKEND_ModelInstance*, uint64_t batch_size, uint64_t exec_start_ns,
    uint64_t compute_start_ns, uint64_t compute_end_ns, uint64_t exec_end_ns);
}

namespace triton_fast {

enum ErrorCode { kInternal = 1, kInvalidArgument = 3, kUnsupported = 5, kCancelled = 7 };
constexpr int32_t kLastErrorCode = kCancelled;
enum DataType { kUint32 = 4, kInt32 = 8, kInt64 = 9, kFp32 = 11, kFp64 = 12, kBytes = 13 };
enum ParameterType { kString = 0, kInt = 1, kBool = 2, kDouble = 3 };
enum MemoryType { kCpu = 0, kGpu = 2 };
constexpr int kLogError = 2;
constexpr uint32_t kFinalResponse = 1;
constexpr uint32_t kReleaseAll = 1;

/// What a backend must show to the server.
#define EXPORT extern "C" __attribute__((visibility("default")))

/// Hands an error of the server's to the caller of the enclosing function.
#define RETURN_IF_ERROR(call)                             \
  do {                                                    \
    if (TRITONSERVER_Error* error = (call)) return error; \
  } while (false)

inline TRITONSERVER_Error* Error(int code, const std::string& message) {
  return TRITONSERVER_ErrorNew(code, message.c_str());
}

/// For errors that no answer can carry any more: the response itself could not be made or sent.
inline void Log(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  TRITONSERVER_Error* unlogged =
      TRITONSERVER_LogMessage(kLogError, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(error));
  if (unlogged != nullptr) TRITONSERVER_ErrorDelete(unlogged);
  TRITONSERVER_ErrorDelete(error);
}

/// One input of a request. Valid until the request is released.
struct Input {
  TRITONBACKEND_Input* handle = nullptr;
  std::string name;
  int datatype = 0;
  std::vector<int64_t> shape;
  uint64_t byte_size = 0;
  uint32_t buffer_count = 0;

  TRITONSERVER_Error* Open(TRITONBACKEND_Request* request, uint32_t index) {
    RETURN_IF_ERROR(TRITONBACKEND_RequestInputByIndex(request, index, &handle));
    const char* given_name = nullptr;
    const int64_t* dims = nullptr;
    uint32_t dims_count = 0;
    RETURN_IF_ERROR(TRITONBACKEND_InputProperties(handle, &given_name, &datatype, &dims,
                                                  &dims_count, &byte_size, &buffer_count));
    name = given_name;
    shape.assign(dims, dims + dims_count);
    return nullptr;
  }

  /// Copies the payload, which the server may hold in several pieces, to `destination`.
  TRITONSERVER_Error* CopyTo(void* destination) const {
    const auto mismatch = [this] {
      return Error(kInternal, "the pieces of input '" + name + "' do not add up to " +
                                  std::to_string(byte_size) + " bytes");
    };
    uint64_t copied = 0;
    for (uint32_t index = 0; index < buffer_count; ++index) {
      const void* piece = nullptr;
      uint64_t size = 0;
      int memory_type = kCpu;
      int64_t memory_id = 0;
      RETURN_IF_ERROR(
          TRITONBACKEND_InputBuffer(handle, index, &piece, &size, &memory_type, &memory_id));
      if (memory_type == kGpu) return Error(kUnsupported, "input '" + name + "' is in GPU memory");
      if (size > byte_size - copied) return mismatch();
      if (size != 0) std::memcpy(static_cast<char*>(destination) + copied, piece, size);
      copied += size;
    }
    return copied == byte_size ? nullptr : mismatch();
  }

  /// Reads all elements of a fixed-size datatype.
  template <typename Value>
  TRITONSERVER_Error* Read(std::vector<Value>* values) const {
    if (byte_size % sizeof(Value) != 0) return Error(kInternal, "input '" + name + "' is cut off");
    values->resize(byte_size / sizeof(Value));
    return CopyTo(values->data());
  }

  /// Reads all elements of a BYTES tensor: each is a 32-bit length and that many bytes.
  TRITONSERVER_Error* Read(std::vector<std::string>* values) const {
    std::string payload(byte_size, '\0');
    RETURN_IF_ERROR(CopyTo(payload.data()));
    for (size_t position = 0; position < payload.size();) {
      uint32_t size = 0;
      const size_t rest = payload.size() - position;
      if (rest >= sizeof(size)) std::memcpy(&size, payload.data() + position, sizeof(size));
      if (rest < sizeof(size) || rest - sizeof(size) < size) {
        return Error(kInvalidArgument, "input '" + name + "' is cut off");
      }
      values->push_back(payload.substr(position + sizeof(size), size));
      position += sizeof(size) + size;
    }
    return nullptr;
  }

  /// Reads an input that must have exactly one element.
  template <typename Value>
  TRITONSERVER_Error* ReadOne(Value* value) const {
    std::vector<Value> values;
    RETURN_IF_ERROR(Read(&values));
    if (values.size() != 1) {
      return Error(kInvalidArgument, "input '" + name + "' must have one element, not " +
                                         std::to_string(values.size()));
    }
    *value = std::move(values.front());
    return nullptr;
  }
};

/// One inference: what came in, and the response that is being filled.
struct Call {
  TRITONBACKEND_Request* request = nullptr;
  TRITONBACKEND_Response* response = nullptr;
  std::string model;
  void* state = nullptr;  // the model's own, if its backend has given it one
  std::vector<Input> inputs;
  std::vector<std::string> requested;  // the outputs that the caller wants

  TRITONSERVER_Error* Open(TRITONBACKEND_ModelInstance* instance) {
    TRITONBACKEND_Model* handle = nullptr;
    const char* name = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_ModelInstanceModel(instance, &handle));
    RETURN_IF_ERROR(TRITONBACKEND_ModelName(handle, &name));
    RETURN_IF_ERROR(TRITONBACKEND_ModelState(handle, &state));
    model = name;
    uint32_t count = 0;
    RETURN_IF_ERROR(TRITONBACKEND_RequestInputCount(request, &count));
    inputs.resize(count);
    for (uint32_t index = 0; index < count; ++index) {
      RETURN_IF_ERROR(inputs[index].Open(request, index));
    }
    RETURN_IF_ERROR(TRITONBACKEND_RequestOutputCount(request, &count));
    for (uint32_t index = 0; index < count; ++index) {
      RETURN_IF_ERROR(TRITONBACKEND_RequestOutputName(request, index, &name));
      requested.emplace_back(name);
    }
    return nullptr;
  }

  TRITONSERVER_Error* Find(const std::string& name, const Input** found) const {
    for (const Input& input : inputs) {
      if (input.name == name) {
        *found = &input;
        return nullptr;
      }
    }
    return Error(kInvalidArgument, "input '" + name + "' is missing");
  }

  bool Wants(const std::string& output) const {
    return std::find(requested.begin(), requested.end(), output) != requested.end();
  }

  /// Makes an output; `*buffer` is where its payload belongs.
  TRITONSERVER_Error* MakeOutput(const std::string& name, int datatype,
                                 const std::vector<int64_t>& shape, uint64_t byte_size,
                                 void** buffer) {
    TRITONBACKEND_Output* output = nullptr;
    RETURN_IF_ERROR(TRITONBACKEND_ResponseOutput(response, &output, name.c_str(), datatype,
                                                 shape.data(),
                                                 static_cast<uint32_t>(shape.size())));
    int memory_type = kCpu;
    int64_t memory_id = 0;
    RETURN_IF_ERROR(
        TRITONBACKEND_OutputBuffer(output, buffer, byte_size, &memory_type, &memory_id));
    if (memory_type != kGpu) return nullptr;
    return Error(kUnsupported, "output '" + name + "' is wanted in GPU memory");
  }

  /// Makes an output from its elements, unless nobody wants it.
  template <typename Value>
  TRITONSERVER_Error* Write(const std::string& name, int datatype,
                            const std::vector<int64_t>& shape, const std::vector<Value>& values) {
    if (!Wants(name)) return nullptr;
    void* buffer = nullptr;
    const size_t byte_size = values.size() * sizeof(Value);
    RETURN_IF_ERROR(MakeOutput(name, datatype, shape, byte_size, &buffer));
    if (byte_size != 0) std::memcpy(buffer, values.data(), byte_size);
    return nullptr;
  }

  TRITONSERVER_Error* Write(const std::string& name, const std::vector<int64_t>& shape,
                            const std::vector<std::string>& values) {
    std::vector<char> payload;
    for (const std::string& value : values) {
      const uint32_t size = static_cast<uint32_t>(value.size());
      const char* prefix = reinterpret_cast<const char*>(&size);
      payload.insert(payload.end(), prefix, prefix + sizeof(size));
      payload.insert(payload.end(), value.begin(), value.end());
    }
    return Write(name, kBytes, shape, payload);
  }
};

/// Defined by each backend: fills `call.response`. An error is what the caller gets instead.
TRITONSERVER_Error* Answer(Call& call);

inline uint64_t Now() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

/// Calls what may throw: no exception may reach the server, which is not C++ to us.
template <typename Function>
TRITONSERVER_Error* Guard(Function function) {
  try {
    return function();
  } catch (const std::exception& exception) {
    return TRITONSERVER_ErrorNew(kInternal, exception.what());
  }
}

/// Counts a request in the model's statistics and gives it back to the server.
inline void Release(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                    bool success, uint64_t start, uint64_t end) {
  Log(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, success, start, start, end,
                                                  end));
  if (success) {
    Log(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, 1, start, start, end, end));
  }
  Log(TRITONBACKEND_RequestRelease(request, kReleaseAll));
}

/// Answers a request once, with what Answer() makes of it, and is done with it.
inline void Serve(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
  const uint64_t start = Now();
  Call call;
  call.request = request;
  TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&call.response, request);
  const bool answerable = error == nullptr;
  if (answerable) {
    error = Guard([&]() -> TRITONSERVER_Error* {
      RETURN_IF_ERROR(call.Open(instance));
      return Answer(call);
    });
  }
  const bool success = error == nullptr;
  const uint64_t end = Now();
  if (answerable) {
    Log(TRITONBACKEND_ResponseSend(call.response, kFinalResponse, error));
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  } else {
    Log(error);
  }
  Release(instance, request, success, start, end);
}

inline TRITONSERVER_Error* ServeEach(TRITONBACKEND_ModelInstance* instance,
                                     TRITONBACKEND_Request** requests, uint32_t count) {
  for (uint32_t index = 0; index < count; ++index) Serve(instance, requests[index]);
  return nullptr;
}

}  // namespace triton_fast

EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  uint32_t major = 0;
  uint32_t minor = 0;
  RETURN_IF_ERROR(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == 1) return nullptr;
  return triton_fast::Error(triton_fast::kUnsupported,
                            "the test backends are for version 1 of the backend API, this server "
                            "has version " +
                                std::to_string(major));
}

#endif  // TRITON_FAST_TESTING_BACKEND_HPP_
