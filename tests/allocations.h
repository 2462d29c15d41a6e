// Counts what operator new hands out, in every test.
#pragma once

#include <cstddef>

// How often this thread has allocated so far.
size_t allocations();
