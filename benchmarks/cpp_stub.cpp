// The C++ contender: gRPC's own generated stub, behind three functions for ctypes.
//
// As a careful C++ program would use it: the messages are made once and used again, the payload is
// copied into the request and out of the response.
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "inference.grpc.pb.h"

namespace {

struct Contender {
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub;
  inference::ModelInferRequest request;
  inference::ModelInferResponse response;
};

}  // namespace

extern "C" {

void* stub_open(const char* target, const char* model, const char* datatype, std::int64_t length) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  auto contender = std::make_unique<Contender>();
  contender->stub = inference::GRPCInferenceService::NewStub(
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
  contender->request.set_model_name(model);
  auto* const input = contender->request.add_inputs();
  input->set_name("INPUT0");
  input->set_datatype(datatype);
  input->add_shape(length);
  contender->request.add_raw_input_contents();
  return contender.release();
}

/// Returns the bytes of the output, or minus the status of a call that failed.
std::int64_t stub_infer(void* handle, const void* payload, std::int64_t size, void* output,
                        std::int64_t room) {
  auto& contender = *static_cast<Contender*>(handle);
  contender.request.mutable_raw_input_contents(0)->assign(static_cast<const char*>(payload),
                                                          static_cast<std::size_t>(size));
  grpc::ClientContext context;
  const grpc::Status status =
      contender.stub->ModelInfer(&context, contender.request, &contender.response);
  if (!status.ok()) return -static_cast<std::int64_t>(status.error_code());
  const std::string& received = contender.response.raw_output_contents(0);
  if (static_cast<std::int64_t>(received.size()) > room) return -1000;
  std::memcpy(output, received.data(), received.size());
  return static_cast<std::int64_t>(received.size());
}

void stub_close(void* handle) { delete static_cast<Contender*>(handle); }

}  // extern "C"
