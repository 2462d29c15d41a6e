#include "cli/interrupt.h"

#include <csignal>
#include <initializer_list>

namespace dense::cli {
namespace {

volatile std::sig_atomic_t received = 0;

void remember(int signal) {
  received = signal;
  for (int each : {SIGINT, SIGTERM, SIGUSR1}) std::signal(each, SIG_DFL);
}

}  // namespace

void catch_stop_signals() {
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    struct sigaction current {};
    sigaction(signal, nullptr, &current);
    if (current.sa_handler == SIG_IGN) continue;  // as nohup and shells do for work in the background
    current.sa_handler = remember;
    current.sa_flags = SA_RESTART;
    sigaction(signal, &current, nullptr);
  }
}

int stop_signal() { return received; }

}  // namespace dense::cli
