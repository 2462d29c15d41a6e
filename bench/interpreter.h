// A plain C interpreter of scalar graphs: what `dense bench scalar` runs beside Dense.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

enum Opcode { op_softplus, op_sum, op_mul, op_softmax };  // of 1, 4, 2 and 4 nodes; op_softmax appends 4, others 1

struct Operation {
  int opcode, inputs[8], output;  // nodes; of several outputs the first
};

// Runs the operations forward, then backward. `values` holds the inputs, which are the first nodes, and is given the
// other nodes; `grads` is given the gradient of every node. Returns the output: the last node, or with a weight other
// than 0 the sum of all nodes times it.
double interpret_f64(const struct Operation* operations, int count, int nodes, double weight, double* values,
                     double* grads);
float interpret_f32(const struct Operation* operations, int count, int nodes, float weight, float* values,
                    float* grads);

#ifdef __cplusplus
}
#endif
