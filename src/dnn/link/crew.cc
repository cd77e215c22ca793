#include "dnn/link/crew.h"

#include <utility>

namespace frugal::dnn {

Crew::~Crew() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Crew::begin(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(std::move(work));
  if (n_idle_ < waiting_.size()) threads_.emplace_back([this] { serve(); });
  changed_.notify_one();
}

void Crew::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++n_idle_;
    changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    --n_idle_;
    if (waiting_.empty()) return;
    const std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    work();
    lock.lock();
  }
}

}  // namespace frugal::dnn
