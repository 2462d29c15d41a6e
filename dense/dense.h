// Everything a page or a user's program needs. No third-party header is reached from here.
#pragma once

#include "dense/io/config.h"
#include "dense/io/documents.h"
#include "dense/scalar/error.h"
#include "dense/scalar/program.h"
#include "dense/scalar/tape.h"
