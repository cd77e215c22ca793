// Threads that wait for work: handing a tile to one takes microseconds, starting a thread some hundred. It
// grows to as many as were ever busy at once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace frugal::dnn {

class Crew {
 public:
  Crew() = default;
  ~Crew();  // after all work is done
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Begins `work` at once on a thread of its own. How its caller learns that it is done is their affair.
  void begin(std::function<void()> work);

 private:
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  size_t n_idle_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace frugal::dnn
