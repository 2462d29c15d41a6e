// Built with gcc -O3 -ffast-math -march=native. The file includes itself, once for each type of number.
#ifndef REAL
#include "bench/interpreter.h"

#include <immintrin.h>
#include <tgmath.h>

#define REAL double
#define INTERPRET interpret_f64
#include "bench/interpreter.c"
#undef REAL
#undef INTERPRET
#define REAL float
#define INTERPRET interpret_f32
#include "bench/interpreter.c"

#else

REAL INTERPRET(const struct Operation* operations, int count, int nodes, REAL weight, REAL* values, REAL* grads) {
  // Denormal numbers count as 0, as in a program that gcc -ffast-math links.
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);

  for (const struct Operation* op = operations; op < operations + count; ++op) {
    const int* in = op->inputs;
    REAL* y = values + op->output;
    switch (op->opcode) {
      case op_softplus: {
        const REAL x = values[in[0]];
        *y = (x > 0 ? x : 0) + log(1 + exp(-fabs(x)));
        break;
      }
      case op_sum: *y = values[in[0]] + values[in[1]] + values[in[2]] + values[in[3]]; break;
      case op_mul: *y = values[in[0]] * values[in[1]]; break;
      case op_softmax: {
        REAL e[4], peak = values[in[0]], total = 0;
        for (int k = 1; k < 4; ++k) peak = values[in[k]] > peak ? values[in[k]] : peak;
        for (int k = 0; k < 4; ++k) total += e[k] = exp(values[in[k]] - peak);
        for (int k = 0; k < 4; ++k) y[k] = e[k] / total;
        break;
      }
    }
  }

  REAL output = 0;
  for (int i = 0; i < nodes; ++i) grads[i] = weight;
  if (weight == 0) {
    output = values[nodes - 1];
    grads[nodes - 1] = 1;
  } else {
    for (int i = 0; i < nodes; ++i) output += values[i];
    output *= weight;
  }

  for (const struct Operation* op = operations + count; op-- > operations;) {
    const int* in = op->inputs;
    const REAL *y = values + op->output, *dy = grads + op->output;
    switch (op->opcode) {
      case op_softplus: grads[in[0]] += *dy / (1 + exp(-values[in[0]])); break;
      case op_sum:
        for (int k = 0; k < 4; ++k) grads[in[k]] += *dy;
        break;
      case op_mul: {
        const REAL a = values[in[0]], b = values[in[1]];
        grads[in[0]] += *dy * b;
        grads[in[1]] += *dy * a;
        break;
      }
      case op_softmax: {
        REAL dot = 0;
        for (int k = 0; k < 4; ++k) dot += y[k] * dy[k];
        for (int k = 0; k < 4; ++k) grads[in[k]] += y[k] * (dy[k] - dot);
        break;
      }
    }
  }

  _mm_setcsr(mode);
  return output;
}

#endif
