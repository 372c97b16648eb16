"""What a call is: tensors, requests, results, signatures."""
