// What a page's forward function is told beside its input, and what it leaves for others to see.
#pragma once

#include <map>
#include <string>

#include "dense/tensor/nn.h"

namespace dense {

struct Context {
  Tensor lengths = {};                      // (B) i32: how many tokens of each row are real; none: all of them
  Tensor dropout_key = {};                  // two i32 that change with each step, while training; none: no dropout
  std::map<std::string, Tensor> kept = {};  // by name

  // x, to be found under this name afterwards.
  Tensor keep(const std::string& name, Tensor x) { return kept[name] = x; }
  // Dropout in training, with other elements at each call.
  Tensor dropout(Tensor x, double p) {
    return dropout_key ? dense::dropout(x, p, uint64_t(++dropouts), dropout_key) : x;
  }
  int dropouts = 0;
};

}  // namespace dense
