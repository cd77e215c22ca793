#include "meter/database.h"

#include <sqlite3.h>

#include <filesystem>

#include "base/text.h"

namespace frugal::meter {
namespace {

constexpr int kBusyWait_ms = 10000;

sqlite3* raw(DatabaseHandle* handle) { return reinterpret_cast<sqlite3*>(handle); }
sqlite3_stmt* raw(StatementHandle* handle) { return reinterpret_cast<sqlite3_stmt*>(handle); }

Error sqlite_error(sqlite3* db, int code, const std::string& path) {
  ErrorCode kind = ErrorCode::kIo;
  const char* hint = "";
  switch (code & 0xff) {
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      kind = ErrorCode::kCorrupt;
      hint = "; move the file away to start a new one";
      break;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
      kind = ErrorCode::kPermission;
      hint = "; check that its folder is there and can be written";
      break;
    case SQLITE_FULL:
      hint = "; free some disk space and try again";
      break;
    case SQLITE_NOMEM:
      kind = ErrorCode::kNoMemory;
      break;
    case SQLITE_BUSY:
      kind = ErrorCode::kUnavailable;
      hint = "; another process holds it";
      break;
    default:
      break;
  }
  return {kind,
          strf("'%s': %s%s", path.c_str(), db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(code), hint)};
}

}  // namespace

Result<Database> Database::open(const std::string& path, const Schema& schema) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error)
    return {ErrorCode::kPermission,
            strf("cannot make the folder of '%s': %s", path.c_str(), error.message().c_str())};
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  Database database(reinterpret_cast<DatabaseHandle*>(db), path);
  if (code != SQLITE_OK) return sqlite_error(db, code, path);
  sqlite3_busy_timeout(db, kBusyWait_ms);
  FRUGAL_TRY_STATUS(
      database.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON"));
  // Two processes may make the file at once: looked at and made under the write lock.
  const Status made = database.transact([&]() -> Status {
    int64_t id = 0, version = 0, tables = 0;
    for (auto [sql, value] :
         {std::pair{"PRAGMA application_id", &id}, std::pair{"PRAGMA user_version", &version},
          std::pair{"SELECT count(*) FROM sqlite_master", &tables}}) {
      FRUGAL_TRY(Statement statement, database.prepare(sql));
      FRUGAL_TRY(const bool row, statement.step());
      if (row) *value = statement.integer(0);
    }
    if (id == schema.application_id && version == schema.version) return {};
    if (id == schema.application_id && version >= 1 && version < schema.version &&
        schema.upgrades.size() + 1 >= static_cast<size_t>(schema.version)) {
      for (; version < schema.version; ++version)
        FRUGAL_TRY_STATUS(database.execute(schema.upgrades[static_cast<size_t>(version) - 1]));
      return database.execute(strf("PRAGMA user_version=%d", schema.version));
    }
    if (id == schema.application_id) {
      return {ErrorCode::kUnsupported, strf("'%s' is of version %d and this program knows version %d",
                                            path.c_str(), static_cast<int>(version), schema.version)};
    }
    if (id != 0 || tables != 0) {
      return {ErrorCode::kCorrupt, strf("'%s' is the database of another program", path.c_str())};
    }
    FRUGAL_TRY_STATUS(database.execute(schema.tables));
    return database.execute(strf("PRAGMA application_id=%d; PRAGMA user_version=%d",
                                 static_cast<int>(schema.application_id), schema.version));
  });
  if (!made.ok()) return made.error();
  return database;
}

Database::Database(Database&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), path_(std::move(other.path_)) {}

Database& Database::operator=(Database&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(path_, other.path_);
  return *this;
}

Database::~Database() { sqlite3_close_v2(raw(handle_)); }

Status Database::execute(const std::string& sql) {
  const int code = sqlite3_exec(raw(handle_), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return sqlite_error(raw(handle_), code, path_);
  return {};
}

Result<Statement> Database::prepare(const std::string& sql) {
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v2(raw(handle_), sql.c_str(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) return sqlite_error(raw(handle_), code, path_);
  return Statement(reinterpret_cast<StatementHandle*>(statement), path_);
}

Status Database::transact(const std::function<Status()>& work) {
  FRUGAL_TRY_STATUS(execute("BEGIN IMMEDIATE"));
  Status done = work();
  if (done.ok()) done = execute("COMMIT");
  if (!done.ok()) {
    const Status rolled_back = execute("ROLLBACK");
    static_cast<void>(rolled_back);  // a failed commit may have rolled back already
  }
  return done;
}

int64_t Database::last_row() const { return sqlite3_last_insert_rowid(raw(handle_)); }
int64_t Database::changes() const { return sqlite3_changes(raw(handle_)); }

Statement::Statement(Statement&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), path_(std::move(other.path_)) {}

Statement::~Statement() { sqlite3_finalize(raw(handle_)); }

void Statement::bind(int parameter, double value) { sqlite3_bind_double(raw(handle_), parameter + 1, value); }
void Statement::bind(int parameter, int64_t value) { sqlite3_bind_int64(raw(handle_), parameter + 1, value); }
void Statement::bind(int parameter, std::string_view value) {
  sqlite3_bind_text(raw(handle_), parameter + 1, value.data(), static_cast<int>(value.size()),
                    SQLITE_TRANSIENT);
}
void Statement::bind_null(int parameter) { sqlite3_bind_null(raw(handle_), parameter + 1); }

Result<bool> Statement::step() {
  const int code = sqlite3_step(raw(handle_));
  if (code == SQLITE_ROW) return true;
  Error error;
  if (code != SQLITE_DONE) error = sqlite_error(sqlite3_db_handle(raw(handle_)), code, path_);
  sqlite3_reset(raw(handle_));
  if (code != SQLITE_DONE) return error;
  return false;
}

double Statement::number(int column) const { return sqlite3_column_double(raw(handle_), column); }
int64_t Statement::integer(int column) const { return sqlite3_column_int64(raw(handle_), column); }
std::string Statement::text(int column) const {
  const unsigned char* text = sqlite3_column_text(raw(handle_), column);
  const int size = sqlite3_column_bytes(raw(handle_), column);
  return text == nullptr ? std::string()
                         : std::string(reinterpret_cast<const char*>(text), static_cast<size_t>(size));
}
bool Statement::is_null(int column) const { return sqlite3_column_type(raw(handle_), column) == SQLITE_NULL; }

}  // namespace frugal::meter
