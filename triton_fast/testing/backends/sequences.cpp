// The backend of the test models that keep a sum for each sequence.
//
// Owns what Triton calls the backend "triton_fast_sequences", and each model's sums. OUTPUT is the
// sum of INPUT since the sequence's START; ENDED is how many sequences of the model have ended so
// far with END. START, END, READY and CORRID are the sequence batcher's control inputs; CORRID may
// be of any datatype.
//
// Compiled on demand by triton_fast.testing.

#include <map>
#include <memory>
#include <mutex>

#include "backend.hpp"

namespace triton_fast {
namespace {

/// A model's sums. Its instances, each with a thread, have different sequences.
struct Sums {
  std::mutex mutex;
  std::map<std::string, uint32_t> of;  // by the sequence's id; unsigned, for overflow
  int32_t ended = 0;
};

TRITONSERVER_Error* ReadControl(const Call& call, const char* name, bool* set) {
  const Input* input = nullptr;
  int32_t value = 0;
  RETURN_IF_ERROR(call.Find(name, &input));
  RETURN_IF_ERROR(input->ReadOne(&value));
  *set = value != 0;
  return nullptr;
}

TRITONSERVER_Error* ReadId(const Input& input, std::string* id) {
  id->resize(input.byte_size);
  RETURN_IF_ERROR(input.CopyTo(id->data()));
  if (input.datatype != kBytes) return nullptr;
  // One string, in a tensor of the size of the longest that there may be. What comes after the
  // string is whatever the server's memory had there.
  uint32_t size = 0;
  if (id->size() >= sizeof(size)) std::memcpy(&size, id->data(), sizeof(size));
  if (id->size() < sizeof(size) || id->size() - sizeof(size) < size) {
    return Error(kInternal, "the sequence id is cut off");
  }
  *id = id->substr(sizeof(size), size);
  return nullptr;
}

}  // namespace

TRITONSERVER_Error* Answer(Call& call) {
  const Input* input = nullptr;
  const Input* id = nullptr;
  int32_t value = 0;
  bool starts = false;
  bool ends = false;
  bool ready = false;
  RETURN_IF_ERROR(call.Find("INPUT", &input));
  RETURN_IF_ERROR(call.Find("CORRID", &id));
  RETURN_IF_ERROR(input->ReadOne(&value));
  RETURN_IF_ERROR(ReadControl(call, "START", &starts));
  RETURN_IF_ERROR(ReadControl(call, "END", &ends));
  RETURN_IF_ERROR(ReadControl(call, "READY", &ready));
  std::string key;
  RETURN_IF_ERROR(ReadId(*id, &key));

  uint32_t sum = 0;
  int32_t ended = 0;
  if (ready) {  // otherwise it only fills a slot of a batch
    Sums& sums = *static_cast<Sums*>(call.state);
    const std::lock_guard<std::mutex> lock(sums.mutex);
    uint32_t& kept = sums.of[key];
    if (starts) kept = 0;
    sum = kept += static_cast<uint32_t>(value);
    if (ends) {
      sums.of.erase(key);
      ++sums.ended;
    }
    ended = sums.ended;
  }
  RETURN_IF_ERROR(call.Write<int32_t>("OUTPUT", kInt32, input->shape, {static_cast<int32_t>(sum)}));
  return call.Write<int32_t>("ENDED", kInt32, input->shape, {ended});
}

}  // namespace triton_fast

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  using namespace triton_fast;
  return Guard([model]() -> TRITONSERVER_Error* {
    auto sums = std::make_unique<Sums>();
    RETURN_IF_ERROR(TRITONBACKEND_ModelSetState(model, sums.get()));
    sums.release();  // TRITONBACKEND_ModelFinalize deletes it
    return nullptr;
  });
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  RETURN_IF_ERROR(TRITONBACKEND_ModelState(model, &state));
  delete static_cast<triton_fast::Sums*>(state);
  return nullptr;
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                              TRITONBACKEND_Request** requests,
                                                              uint32_t count) {
  return triton_fast::ServeEach(instance, requests, count);
}
