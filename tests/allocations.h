// Counts what operator new hands out, in every test, and makes it fail on demand.
#pragma once

#include <cstddef>

// How often this thread has allocated so far.
size_t allocations();

// Makes this thread's next allocation fail.
void fail_next_allocation();
