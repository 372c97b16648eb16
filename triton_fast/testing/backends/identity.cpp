// The identity backend of the test server. Owns what Triton calls "triton_fast_identity".
//
// Compiled on demand by triton_fast.testing.

#include "identity.hpp"

namespace triton_fast {

TRITONSERVER_Error* Answer(Call& call) { return Identity(call); }

}  // namespace triton_fast

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                              TRITONBACKEND_Request** requests,
                                                              uint32_t count) {
  return triton_fast::ServeEach(instance, requests, count);
}
