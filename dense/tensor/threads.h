// A small pool of threads that runs the same function for many tasks: fork, join. The caller takes part.
//
//   Threads threads(4);                                                  // the caller and three workers
//   threads.run(100, [&](int task) { ... });                             // returns when all 100 are done
//   threads.run(100, [&](int task, int thread) { ... scratch[thread] }); // thread in 0 .. count - 1
//
// Each thread has a share of neighbouring tasks, the same in every run: what it wrote in one, its cache still holds in
// the next. Whoever is done takes from the ends of other shares. Nothing is allocated. Workers wait for the next run by
// spinning for a moment, then asleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "dense/scalar/denormals.h"

namespace dense {

class Threads {
 public:
  explicit Threads(int count);  // >= 1, the caller included. Throws Error for less.
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return int(workers_.size()) + 1; }

  // In tasks, numbers too small to be normal count as 0: gradients have many, and each costs a hundred cycles.
  // f(task) or f(task, thread) for every task in 0 .. tasks - 1, once each. If some throw, the tasks not yet begun are
  // left out and the first exception is thrown again here. Calls from several threads wait for one another; a call from
  // within a task would wait forever.
  template <class F>
  void run(int tasks, const F& f) {
    const DenormalsAsZero scope;
    if (tasks <= 1 || workers_.empty()) {
      for (int task = 0; task < tasks; ++task) call(&f, task, 0, tag<F>());
    } else {
      fork_join({[](const void* g, int task, int thread) { call(static_cast<const F*>(g), task, thread, tag<F>()); },
                 &f, tasks});
    }
  }

 private:
  struct Job {
    void (*call)(const void* f, int task, int thread);
    const void* f;
    int tasks;
  };
  template <class F>
  static constexpr auto tag() {
    return std::bool_constant<std::is_invocable_v<const F&, int, int>>();
  }
  template <class F>
  static void call(const F* f, int task, int thread, std::true_type) {
    (*f)(task, thread);
  }
  template <class F>
  static void call(const F* f, int task, int, std::false_type) {
    (*f)(task);
  }

  void fork_join(const Job& job);
  int take(int thread);            // the next task of this thread; -1: none is left
  void work(int thread);           // takes tasks until none is left
  void wait_for_jobs(int thread);  // what a worker does all its life

  std::vector<std::thread> workers_;
  std::mutex one_run_;             // held by the caller whose job is being run
  Job job_{};                      // written while it is not open and nobody is inside
  std::atomic<bool> open_{false};  // workers may come in; one that wakes up too late is not waited for
  std::atomic<int> inside_{0};     // workers that look at the job
  struct alignas(64) Share {
    std::atomic<uint64_t> tasks{0};  // not yet begun: the first, and 2^32 times the end
  };
  std::unique_ptr<Share[]> shares_;  // one for each thread
  std::atomic<uint32_t> jobs_{0};    // counts jobs: workers wait for it to change
  std::atomic<bool> stop_{false};
  std::mutex sleep_;  // for those who have spun long enough
  std::condition_variable wake_, done_;
  std::mutex failure_lock_;
  std::exception_ptr failure_;
};

// A pool of so many threads, or for 0 of as many as the machine has.
std::shared_ptr<Threads> make_threads(int count);

}  // namespace dense
