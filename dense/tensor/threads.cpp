#include "dense/tensor/threads.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "dense/scalar/error.h"

namespace dense {

namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for a condition for about 40 us: longer than the gaps between the kernels of a training step, shorter than what
// anybody would notice on a machine that has other things to do.
template <class F>
bool spin(const F& condition) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::microseconds(40);
  do {
    for (int i = 0; i < 16; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return condition();
}

}  // namespace

Threads::Threads(int count) {
  if (count < 1) fail("Threads: expected a count of at least 1, got ", count);
  workers_.reserve(size_t(count) - 1);
  for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { wait_for_jobs(thread); });
}

Threads::~Threads() {
  {
    std::lock_guard lock(sleep_);
    stop_ = true;
    ++jobs_;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Threads::work(int thread) {
  for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < job_.tasks;) {
    try {
      job_.call(job_.f, task, thread);
    } catch (...) {
      std::lock_guard lock(failure_lock_);
      if (!failure_) failure_ = std::current_exception();
      next_ = job_.tasks;
    }
  }
}

void Threads::fork_join(const Job& job) {
  std::lock_guard run(one_run_);
  job_ = job;
  next_ = 0;
  open_ = true;
  {
    std::lock_guard lock(sleep_);  // so that no worker falls asleep between a look at jobs_ and this
    ++jobs_;
  }
  wake_.notify_all();
  work(0);
  open_ = false;
  // Whoever comes in from now on finds it closed; whoever is inside may still be at its last task.
  if (!spin([&] { return inside_ == 0; })) {
    std::unique_lock lock(sleep_);
    done_.wait(lock, [&] { return inside_ == 0; });
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Threads::wait_for_jobs(int thread) {
  const DenormalsAsZero scope;
  for (uint32_t seen = 0;;) {
    if (!spin([&] { return jobs_ != seen; })) {
      std::unique_lock lock(sleep_);
      wake_.wait(lock, [&] { return jobs_ != seen; });
    }
    seen = jobs_;
    if (stop_) return;
    ++inside_;
    if (open_) work(thread);
    if (--inside_ == 0) {
      std::lock_guard lock(sleep_);
      done_.notify_one();
    }
  }
}

std::shared_ptr<Threads> make_threads(int count) {
  return std::make_shared<Threads>(count > 0 ? count : std::max(1, int(std::thread::hardware_concurrency())));
}

}  // namespace dense
