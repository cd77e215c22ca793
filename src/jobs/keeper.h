// The keeper of a job: the process that executes it. It claims the job, starts the command, stops and
// continues its whole tree of processes as the queue says, meters it, and writes down how it ended. It does
// so on its own: runners may come and go.
#pragma once

#include <functional>
#include <string>

#include "frugal/meter.h"
#include "jobs/queue.h"

namespace frugal::jobs {

struct KeeperOptions {
  double poll_s = 0.5;  // between looks at the queue
  // Given to a job that is asked to save and exit, or to end: then it is killed.
  double grace_s = 30;
  meter::PowerMeter* meter = nullptr;  // null: no energy
};

struct Kept {
  bool claimed = false;  // false: another keeper has it, or it is over; nothing was done
  Job job;               // as it ended
  Usage usage;           // CPU time over the tree, wall time while it ran
  Estimate cpu_j, memory_j, gpu_j;
  std::vector<meter::PowerStretch> power;  // while it ran
};

// Runs job `id` to its end. Call it in a process of its own, which becomes the leader of a session and the
// reaper of the tree. Needs SIGCHLD, SIGTERM and SIGINT; a terminated keeper ends its job and leaves it
// interrupted, or waiting if it may be started again. Errors are of the queue only.
Result<Kept> keep(Queue& queue, int64_t id, const KeeperOptions& options);

}  // namespace frugal::jobs
