// Ctrl-C, politely: the first SIGINT, SIGTERM or SIGUSR1 (before a batch system takes the machine away) asks the
// program to finish what it does and stop; a second one kills it.
#pragma once

namespace dense::cli {

void catch_stop_signals();  // from here on
int stop_signal();          // the signal that asked to stop, 0 if none did

}  // namespace dense::cli
