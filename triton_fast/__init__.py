"""triton_fast: numpy arrays to a Triton (KServe v2) server and back, in the least time."""
