// Ctrl-C, politely: the first SIGINT or SIGTERM asks the program to finish what it does and stop; a second one kills
// it.
#pragma once

namespace dense::cli {

void catch_stop_signals();  // from here on
int stop_signal();          // the signal that asked to stop, 0 if none did

}  // namespace dense::cli
