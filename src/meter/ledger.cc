// The ledger's tables, and entries in and out of them. docs/formats/ledger.md describes the file.
#include <algorithm>

#include "base/text.h"
#include "frugal/meter.h"
#include "meter/columns.h"
#include "meter/database.h"

namespace frugal::meter {
namespace {

constexpr int32_t kApplicationId = 0x46524c31;  // "FRL1"

// Entries are dropped in batches: once every so many appends.
constexpr int64_t kTrimEvery = 256;

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

const ColumnNames& columns() {
  static const ColumnNames kColumns = [] {
    ColumnNames names;
    const LedgerEntry entry;
    visit_columns(entry, names);
    return names;
  }();
  return kColumns;
}

class SqliteLedger final : public Ledger {
 public:
  SqliteLedger(Database database, LedgerOptions options)
      : database_(std::move(database)), options_(options) {}

  Result<int64_t> append(const LedgerEntry& entry) override {
    int64_t id = 0;
    FRUGAL_TRY_STATUS(database_.transact([&]() -> Status {
      FRUGAL_TRY(Statement insert, database_.prepare("INSERT INTO entries (" + columns().names +
                                                     ") VALUES (" + columns().marks + ")"));
      visit_columns(entry, ColumnBinder{insert});
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
      visit_columns(entry, ColumnReader{select});
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
