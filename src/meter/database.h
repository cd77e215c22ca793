// A thin layer over SQLite: connections and statements that return Status, and no SQLite type in sight. The
// ledger and the job queue stand on it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"

namespace frugal::meter {

struct DatabaseHandle;   // sqlite3
struct StatementHandle;  // sqlite3_stmt

class Statement;

struct Schema {
  int32_t application_id = 0;              // marks the file as ours
  int version = 1;                         // of the tables; a file of a newer version is refused
  std::string tables;                      // SQL that makes them
  std::vector<std::string> upgrades = {};  // SQL that turns version 1 into 2, 2 into 3, ...; missing: refused
};

// One connection: one thread at a time. Movable.
class Database {
 public:
  // Opens or makes `path` (and its folder) in write-ahead mode with full sync, so that what was acknowledged
  // survives a crash of the process and of the host. kCorrupt: not our file or damaged; kPermission, kIo,
  // kUnsupported (newer version).
  static Result<Database> open(const std::string& path, const Schema& schema);
  Database(Database&&) noexcept;
  Database& operator=(Database&&) noexcept;
  ~Database();

  // SQL without results, several statements allowed.
  Status execute(const std::string& sql);
  Result<Statement> prepare(const std::string& sql);

  // Runs `work` in one transaction that takes the write lock first; its error rolls back. Waits up to 10 s
  // for other writers.
  Status transact(const std::function<Status()>& work);

  int64_t last_row() const;
  int64_t changes() const;

 private:
  explicit Database(DatabaseHandle* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  DatabaseHandle* handle_ = nullptr;
  std::string path_;
};

// A prepared statement; must not outlive its database. Parameters and columns count from 0.
class Statement {
 public:
  Statement(Statement&&) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  void bind(int parameter, double value);
  void bind(int parameter, int64_t value);
  void bind(int parameter, std::string_view value);
  void bind_null(int parameter);

  // True: a row is there. False: done; the statement can be bound and run again.
  Result<bool> step();

  double number(int column) const;
  int64_t integer(int column) const;
  std::string text(int column) const;
  bool is_null(int column) const;

 private:
  friend class Database;
  Statement(StatementHandle* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  StatementHandle* handle_ = nullptr;
  std::string path_;
};

}  // namespace frugal::meter
