// Tiers at work: a runner computes its share of a frame, a hop carries tensors to the next tier and brings
// results back. In process, a hop is a call behind an emulated link; between hosts it is NATS (remote.h).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "dnn/exec/network.h"
#include "dnn/link/crew.h"
#include "dnn/link/recent.h"
#include "dnn/link/turns.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// How frames are divided: the part of a plan that running them takes.
struct Division {
  std::vector<int> tier;  // [n_vertices]
  std::vector<TiledRun> runs;
  std::vector<uint64_t> packed = {};  // as in Plan

  bool packs(int t, int link) const {
    return static_cast<size_t>(t) < packed.size() && (packed[static_cast<size_t>(t)] >> link & 1) != 0;
  }
  bool uses_beyond(int k) const;  // any vertex on a tier after k
};
Division division_of(const Plan& plan);

// What a frame did on the tiers from some tier on.
struct FrameCost {
  std::vector<double> tier_seconds;            // [n_tiers], from first input to last output, waiting left out
  std::vector<uint64_t> up_bytes, down_bytes;  // [n_links]
  std::vector<double> link_seconds;            // [n_links], both ways

  explicit FrameCost(size_t n_tiers = 0)
      : tier_seconds(n_tiers, 0),
        up_bytes(n_tiers > 0 ? n_tiers - 1 : 0, 0),
        down_bytes(up_bytes),
        link_seconds(up_bytes.size(), 0) {}
  FrameCost& operator+=(const FrameCost& other);
};

// How a message begins when it is not the next tier that does not answer, but one beyond it.
inline constexpr char kBeyond[] = "beyond this tier: ";
Error beyond(Error error);

// The way to tier k: takes the tensors that tiers k and beyond need, returns the model outputs made there.
// All functions are thread-safe.
class Hop {
 public:
  virtual ~Hop() = default;
  // kUnavailable: the tier or the link to it is down; the frame may be run again elsewhere.
  virtual Result<Values> run(const Division& division, Values inputs, FrameCost& cost) = 0;
  // How many tiers answer from here on, in a row.
  virtual int reach() = 0;
  // Compiles what the division needs, there and beyond.
  virtual Status prepare(const Division& division) = 0;
};

// One tile to compute. What it reads comes with it, or is partly there: the tile that its worker kept of the
// run before in the same chain.
struct TileJob {
  std::vector<int> vertices;
  TileBounds tile;
  struct Piece {
    Range rows;  // of the run's input; a piece alone may be narrower than that
    HostTensor tensor;
  };
  std::vector<Piece> pieces;
  uint64_t chain = 0;    // runs of one frame whose tiles stay; as good as unique
  bool goes_on = false;  // what it kept is a piece, too
  bool stays = false;    // to be kept; only `gives` go back
  std::vector<Range> gives;
};

// A tile that stays with its worker.
struct TileKept {
  Region region;
  HostTensor tensor;
};

// Other workers of a tier, who compute tiles for the one that a frame came to.
class TilePeers {
 public:
  virtual ~TilePeers() = default;
  // Worker i, from 1: the tile, or the rows of it that the job gives. kUnavailable: there is none, or it does
  // not answer. kNotFound: it kept nothing of this chain. kUnsupported: as TierRunner::run_tile.
  virtual Result<std::vector<HostTensor>> run_tile(size_t worker, const TileJob& job) = 0;
};

// Computes one tier's vertices. Compiled parts are kept for the divisions used last. Thread-safe: computing
// takes turns, as on a host with one processor; waiting for peers does not.
class TierRunner {
 public:
  // `slowdown` >= 1 stands for a weaker host: what took s processor seconds is made to last slowdown * s.
  TierRunner(std::shared_ptr<const Network> network, int k, int n_threads, double slowdown = 1);
  void set_peers(std::shared_ptr<TilePeers> peers) { peers_ = std::move(peers); }
  // Computes only while it holds this lock.
  void set_turns(std::shared_ptr<Turns> turns) { turns_ = std::move(turns); }

  // Runs the vertices with tier[v] == k on `values` and adds what they make.
  Status run(const Division& division, Values& values, FrameCost& cost);
  // One tile. kNotFound: it goes on from a tile that is not (or no longer) here. kUnsupported: its bits would
  // not be those of the whole.
  Result<std::vector<HostTensor>> run_tile(const TileJob& job);
  // Packs what is to cross the next link packed; unpacks what came packed, but for what only passes through.
  Status pack(const Division& division, Values& values, FrameCost& cost);
  Status unpack(const Division& division, Values& values, FrameCost& cost);
  // Compiles what `division` needs without running it.
  Status prepare(const Division& division);
  const Network& network() const { return *network_; }
  const std::shared_ptr<const Network>& network_ptr() const { return network_; }
  int k() const { return k_; }
  int n_threads() const { return n_threads_; }
  double slowdown() const { return slowdown_; }

 private:
  // Vertices that run at once: a plain part, or a chain of tiled runs, each going on from tiles of the one
  // before.
  struct Stage {
    std::vector<int> vertices;
    std::vector<const TiledRun*> chain;
  };
  struct TilePart {
    int input_tensor = -1;
    Region input, output;
    std::shared_ptr<Part> part;
  };
  // What running a tiled run takes to know, worked out once.
  struct RunShape {
    int input = -1, output = -1;            // tensors
    Region whole;                           // of the input
    std::vector<Region> reads, writes;      // [n_tiles]
    std::vector<std::vector<Range>> gives;  // [n_tiles], of its tile, when it stays
  };
  struct ChainShape {
    std::vector<RunShape> runs;
    // A tile of it does not give the bits of the whole: all of the chain is computed here, as if there were
    // no tiles.
    std::atomic<bool> is_refused{false};
  };
  std::vector<Stage> stages_of(const Division& division) const;
  Result<std::shared_ptr<Part>> part_for(const std::vector<int>& vertices);
  Result<TilePart> tile_for(const std::vector<int>& vertices, const TileBounds& bounds);
  Result<std::shared_ptr<ChainShape>> shape_for(const std::vector<const TiledRun*>& chain);
  // Computes in its turn, and makes it last as long as a host `slowdown` times slower would take.
  Status at_pace(const std::function<Status()>& work);
  Status run_part(Part& part, const std::vector<const HostTensor*>& inputs, std::vector<HostTensor>& outputs);
  Status run_plain(const std::vector<int>& vertices, Values& values);
  Status run_tiled(const std::vector<const TiledRun*>& chain, Values& values);
  // Every tile of one run, each by its worker. [n_tiles], a fault where it did not come back.
  std::vector<Result<std::vector<HostTensor>>> run_tiles(const std::vector<TileJob>& jobs);

  std::shared_ptr<const Network> network_;
  int k_, n_threads_;
  double slowdown_;
  std::shared_ptr<TilePeers> peers_;
  std::shared_ptr<Turns> turns_;
  uint64_t chain_salt_ = 0;  // so that chains of two hosts have different names
  std::atomic<uint64_t> next_chain_{0};
  std::mutex cache_mutex_, compute_mutex_;
  Recent<std::vector<int>, std::shared_ptr<Part>> parts_{8};  // by vertices; each holds a copy of its weights
  Recent<std::vector<int64_t>, TilePart> tiles_{60};          // by vertices and bounds, likewise
  Recent<std::vector<int64_t>, std::shared_ptr<ChainShape>> shapes_{60};  // by these of all runs
  Recent<uint64_t, TileKept> kept_{16};                                   // by chain, of frames under way
  Crew crew_;                                                             // last: its threads use the rest
};

// Runs tiers k, k + 1, ... of a division: this tier's share here, the rest over `next` (may be null for the
// last tier).
Result<Values> run_from(TierRunner& here, Hop* next, const Division& division, Values values,
                        FrameCost& cost);

// The tensors of `values` that tiers beyond k read, moved out of it.
Values needed_beyond(const Graph& graph, const std::vector<int>& tier, int k, Values& values);

}  // namespace frugal::dnn
