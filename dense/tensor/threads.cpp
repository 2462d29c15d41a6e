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
  shares_ = std::make_unique<Share[]>(size_t(count));
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

int Threads::take(int thread) {
  constexpr uint64_t end = uint64_t(1) << 32;
  for (int i = 0; i < count(); ++i) {
    std::atomic<uint64_t>& tasks = shares_[size_t(thread + i) % size_t(count())].tasks;
    for (uint64_t now = tasks; uint32_t(now) < now / end;) {
      const uint64_t later = i == 0 ? now + 1 : now - end;  // its own from the front, others' from the back
      if (tasks.compare_exchange_weak(now, later)) return int(i == 0 ? uint32_t(now) : later / end);
    }
  }
  return -1;
}

void Threads::work(int thread) {
  for (int task; (task = take(thread)) >= 0;) {
    try {
      job_.call(job_.f, task, thread);
    } catch (...) {
      std::lock_guard lock(failure_lock_);
      if (!failure_) failure_ = std::current_exception();
      for (int t = 0; t < count(); ++t) shares_[size_t(t)].tasks = 0;
    }
  }
}

void Threads::fork_join(const Job& job) {
  std::lock_guard run(one_run_);
  job_ = job;
  const auto threads = uint64_t(count()), tasks = uint64_t(job.tasks);
  for (uint64_t t = 0; t < threads; ++t) shares_[t].tasks = t * tasks / threads | (t + 1) * tasks / threads << 32;
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
