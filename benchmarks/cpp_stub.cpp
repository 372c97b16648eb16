// The C++ contender: the stub that gRPC's own plugin generates, behind functions for ctypes.
//
// As a careful C++ program uses it, through the blocking stub: messages are made once and used
// again, so that their memory is there already, and the answer goes into memory that the caller keeps.
// What is counted, by the one function that is called while the clock runs, is what the others count
// too: from an array to an array. The payload is copied into the request, the request is sent, and
// the payload of the response is copied out. A context cannot be used twice, so that it counts too.
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "inference.grpc.pb.h"

namespace {

using Stub = inference::GRPCInferenceService::Stub;

/// What one thread needs to make inferences; the stub is everyone's.
struct Caller {
  Stub* stub;
  inference::ModelInferRequest request;
  inference::ModelInferResponse response;
  const char* payload;
  char* answer;
  std::size_t size;
};

}  // namespace

extern "C" {

void* stub_open(const char* target) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return inference::GRPCInferenceService::NewStub(
             grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments))
      .release();
}

void stub_close(void* stub) { delete static_cast<Stub*>(stub); }

/// `payload` and `answer`, both of `size` bytes, stay the caller's.
void* stub_caller(void* stub, const char* model, const char* datatype, std::int64_t length,
                  const void* payload, void* answer, std::int64_t size) {
  auto caller = std::make_unique<Caller>();
  caller->stub = static_cast<Stub*>(stub);
  caller->request.set_model_name(model);
  auto* const input = caller->request.add_inputs();
  input->set_name("INPUT0");
  input->set_datatype(datatype);
  input->add_shape(length);
  caller->request.add_raw_input_contents();
  caller->payload = static_cast<const char*>(payload);
  caller->answer = static_cast<char*>(answer);
  caller->size = static_cast<std::size_t>(size);
  return caller.release();
}

void stub_caller_free(void* caller) { delete static_cast<Caller*>(caller); }

/// Makes the inference. Returns 0, the gRPC status of a call that failed, or -1 for a wrong size.
int stub_infer(void* handle) {
  auto& caller = *static_cast<Caller*>(handle);
  caller.request.mutable_raw_input_contents(0)->assign(caller.payload, caller.size);
  grpc::ClientContext context;
  const grpc::Status status = caller.stub->ModelInfer(&context, caller.request, &caller.response);
  if (!status.ok()) return status.error_code();
  if (caller.response.raw_output_contents_size() != 1) return -1;
  const std::string& received = caller.response.raw_output_contents(0);
  if (received.size() != caller.size) return -1;
  std::memcpy(caller.answer, received.data(), received.size());
  return 0;
}

}  // extern "C"
