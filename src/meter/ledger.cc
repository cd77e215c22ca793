// The ledger's tables, and entries in and out of them. docs/formats/ledger.md describes the file.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "base/text.h"
#include "frugal/meter.h"
#include "meter/database.h"

namespace frugal::meter {
namespace {

constexpr int32_t kApplicationId = 0x46524c31;  // "FRL1"

// Entries are dropped in batches: once every so many appends.
constexpr int64_t kTrimEvery = 256;

// One place names every column, its type, and how it maps to an entry, so that writing and reading cannot
// drift apart.
template <typename Entry, typename Visitor>
void visit_columns(Entry& e, Visitor&& visit) {
  visit("unix_s", e.unix_s);
  visit("kind", e.kind);
  visit("name", e.name);
  visit("project", e.project);
  visit("model", e.model);
  visit("unit", e.unit);
  visit("units", e.units);
  visit("flops", e.usage.flops);
  visit("bytes_moved", e.usage.bytes_moved);
  visit("bytes_held", e.usage.bytes_held);
  visit("cpu_s", e.usage.cpu_seconds);
  visit("wall_s", e.usage.wall_seconds);
  visit("energy_j", e.usage.energy_j);
  visit("carbon_g", e.usage.carbon_gco2e);
  visit("cpu_j", e.cpu_j);
  visit("memory_j", e.memory_j);
  visit("gpu_j", e.gpu_j);
  visit("source", e.source);
  visit("region", e.region);
  visit("g_per_kwh", e.g_per_kwh);
  visit("exit_code", e.exit_code);
  visit("average_w", e.average_watts);
  visit("peak_w", e.peak_watts);
  visit("power", e.power);
}

// "begin seconds watts;..." with begin in whole milliseconds of Unix time.
std::string power_text(const std::vector<PowerStretch>& power) {
  std::string text;
  for (const PowerStretch& p : power) text += strf("%.3f %.3f %.4g;", p.begin_unix_s, p.seconds, p.watts);
  return text;
}
std::vector<PowerStretch> parse_power(const std::string& text) {
  std::vector<PowerStretch> power;
  for (const std::string& part : split(text, ';')) {
    PowerStretch p;
    if (std::sscanf(part.c_str(), "%lf %lf %lf", &p.begin_unix_s, &p.seconds, &p.watts) == 3 && p.seconds > 0)
      power.push_back(p);
  }
  return power;
}

struct ColumnNames {
  std::string names;         // "unix_s, kind, ..."
  std::string declarations;  // "unix_s REAL, kind TEXT, ..."
  int n = 0;

  void add(const std::string& name, const char* type) {
    names += (n == 0 ? "" : ", ") + name;
    declarations += (n == 0 ? "" : ", ") + name + " " + type;
    ++n;
  }
  void operator()(const char* name, const double&) { add(name, "REAL NOT NULL"); }
  void operator()(const char* name, const int&) { add(name, "INTEGER NOT NULL"); }
  void operator()(const char* name, const std::string&) { add(name, "TEXT NOT NULL"); }
  void operator()(const char* name, const std::vector<PowerStretch>&) {
    add(name, "TEXT NOT NULL DEFAULT ''");
  }
  void operator()(const char* name, const Estimate&) {
    add(name, "REAL");  // NULL: no figure
    add(std::string(name) + "_low", "REAL");
    add(std::string(name) + "_high", "REAL");
    add(std::string(name) + "_from", "INTEGER NOT NULL");
  }
};

const ColumnNames& columns() {
  static const ColumnNames kColumns = [] {
    ColumnNames names;
    const LedgerEntry entry;
    visit_columns(entry, names);
    return names;
  }();
  return kColumns;
}

struct Binder {
  Statement& statement;
  int at = 0;
  void operator()(const char*, const double& value) { statement.bind(at++, value); }
  void operator()(const char*, const int& value) { statement.bind(at++, static_cast<int64_t>(value)); }
  void operator()(const char*, const std::string& value) { statement.bind(at++, std::string_view(value)); }
  void operator()(const char*, const std::vector<PowerStretch>& value) {
    statement.bind(at++, std::string_view(power_text(value)));
  }
  void operator()(const char*, const Estimate& value) {
    for (const double part : {value.value, value.low, value.high}) {
      if (value.known()) {
        statement.bind(at++, part);
      } else {
        statement.bind_null(at++);
      }
    }
    statement.bind(at++, static_cast<int64_t>(value.provenance));
  }
};

struct Reader {
  const Statement& statement;
  int at = 0;
  void operator()(const char*, double& value) { value = statement.number(at++); }
  void operator()(const char*, int& value) { value = static_cast<int>(statement.integer(at++)); }
  void operator()(const char*, std::string& value) { value = statement.text(at++); }
  void operator()(const char*, std::vector<PowerStretch>& value) {
    value = parse_power(statement.text(at++));
  }
  void operator()(const char*, Estimate& value) {
    value = {statement.number(at), statement.number(at + 1), statement.number(at + 2),
             static_cast<Provenance>(std::clamp<int64_t>(statement.integer(at + 3), 0, 3))};
    at += 4;
  }
};

class SqliteLedger final : public Ledger {
 public:
  SqliteLedger(Database database, LedgerOptions options)
      : database_(std::move(database)), options_(options) {}

  Result<int64_t> append(const LedgerEntry& entry) override {
    int64_t id = 0;
    FRUGAL_TRY_STATUS(database_.transact([&]() -> Status {
      std::string marks;
      for (int i = 0; i < columns().n; ++i) marks += i == 0 ? "?" : ",?";
      FRUGAL_TRY(Statement insert,
                 database_.prepare("INSERT INTO entries (" + columns().names + ") VALUES (" + marks + ")"));
      visit_columns(entry, Binder{insert});
      FRUGAL_TRY(const bool row, insert.step());
      static_cast<void>(row);
      id = database_.last_row();
      if (id % kTrimEvery != 0) return {};
      return database_.execute(
          strf("DELETE FROM entries WHERE id <= %lld", static_cast<long long>(id - options_.max_entries)));
    }));
    return id;
  }

  Result<std::vector<LedgerEntry>> read(const LedgerFilter& filter) override {
    std::string where = " WHERE unix_s >= ? AND unix_s < ?";
    std::vector<std::string> texts;
    for (auto [column, text] : {std::pair{"kind", &filter.kind}, std::pair{"project", &filter.project},
                                std::pair{"model", &filter.model}}) {
      if (text->empty()) continue;
      where += strf(" AND %s = ?", column);
      texts.push_back(*text);
    }
    FRUGAL_TRY(Statement select, database_.prepare("SELECT " + columns().names + ", id FROM entries" + where +
                                                   " ORDER BY unix_s DESC, id DESC LIMIT ?"));
    int at = 0;
    select.bind(at++, filter.since_unix_s);
    select.bind(at++, filter.until_unix_s);
    for (const std::string& text : texts) select.bind(at++, std::string_view(text));
    select.bind(at++, filter.newest);
    std::vector<LedgerEntry> entries;
    while (true) {
      FRUGAL_TRY(const bool row, select.step());
      if (!row) break;
      LedgerEntry entry;
      visit_columns(entry, Reader{select});
      entry.id = select.integer(columns().n);
      entries.push_back(std::move(entry));
    }
    std::reverse(entries.begin(), entries.end());
    return entries;
  }

 private:
  Database database_;
  LedgerOptions options_;
};

}  // namespace

Result<std::unique_ptr<Ledger>> Ledger::open(const std::string& path, const LedgerOptions& options) {
  if (options.max_entries < 1000) {
    return {ErrorCode::kInvalidArgument, strf("a ledger of %lld entries is too small: 1,000 at least",
                                              static_cast<long long>(options.max_entries))};
  }
  Schema schema;
  schema.application_id = kApplicationId;
  schema.version = 2;
  schema.tables = "CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, " + columns().declarations +
                  "); CREATE INDEX entries_time ON entries (unix_s)";
  schema.upgrades = {"ALTER TABLE entries ADD COLUMN power TEXT NOT NULL DEFAULT ''"};
  auto database = Database::open(path, schema);
  if (!database.ok()) return std::move(database).error().in("ledger");
  return std::unique_ptr<Ledger>(std::make_unique<SqliteLedger>(std::move(database).value(), options));
}

}  // namespace frugal::meter
