// Everything a page or a user's program needs. No third-party header is reached from here.
#pragma once

#include <cmath>
#include <numbers>
#include <optional>

#include "dense/io/config.h"
#include "dense/io/documents.h"
#include "dense/io/hub.h"
#include "dense/io/tokenizer.h"
#include "dense/scalar/error.h"
#include "dense/scalar/program.h"
#include "dense/scalar/tape.h"
#include "dense/tensor/context.h"
#include "dense/tensor/nn.h"
#include "dense/tensor/plan.h"
#include "dense/tensor/tensor.h"
#include "dense/tensor/weights.h"
#include "dense/train/generate.h"
#include "dense/train/model.h"
