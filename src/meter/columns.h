// Records as rows of a table. A record names its columns once, by a function that calls a visitor with the
// name and the field of each; making the table, writing and reading all follow from it and cannot drift
// apart:
//
//   template <typename Entry_, typename Visitor>
//   void visit_columns(Entry_& e, Visitor&& visit) { visit("unix_s", e.unix_s); visit("kind", e.kind); }
//
// Besides numbers and text a field may be an enumeration (stored as its number), a list (JSON), an estimate
// (four columns: value, low, high, provenance) or power over time (text).
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "frugal/meter.h"
#include "meter/database.h"

namespace frugal::meter {

// Names and declarations, for SQL.
class ColumnNames {
 public:
  std::string names;         // "unix_s, kind, ..."
  std::string declarations;  // "unix_s REAL NOT NULL, kind TEXT NOT NULL, ..."
  std::string marks;         // "?,?,..."
  int n = 0;

  template <typename T>
  void operator()(const char* name, const T&) {
    if constexpr (std::is_same_v<T, Estimate>) {
      add_estimate(name);
    } else {
      add(name, std::is_same_v<T, double>                      ? "REAL NOT NULL"
                : std::is_integral_v<T> || std::is_enum_v<T>   ? "INTEGER NOT NULL"
                : std::is_same_v<T, std::vector<PowerStretch>> ? "TEXT NOT NULL DEFAULT ''"
                                                               : "TEXT NOT NULL");
    }
  }

 private:
  void add(const std::string& name, const char* type);
  void add_estimate(const std::string& name);
};

// Binds a record's fields to a statement's parameters, from 0 on.
struct ColumnBinder {
  Statement& statement;
  int at = 0;

  void operator()(const char*, const double& value) { statement.bind(at++, value); }
  void operator()(const char*, const std::string& value) { statement.bind(at++, std::string_view(value)); }
  void operator()(const char*, const std::vector<std::string>& value);
  void operator()(const char*, const std::vector<double>& value);
  void operator()(const char*, const std::vector<PowerStretch>& value);
  void operator()(const char*, const Estimate& value);
  template <typename T>
  void operator()(const char*, const T& value) {
    statement.bind(at++, static_cast<int64_t>(value));
  }
};

// Reads a record's fields from a row's columns, from 0 on. Text that is no list gives an empty one.
struct ColumnReader {
  const Statement& statement;
  int at = 0;

  void operator()(const char*, double& value) { value = statement.number(at++); }
  void operator()(const char*, std::string& value) { value = statement.text(at++); }
  void operator()(const char*, std::vector<std::string>& value);
  void operator()(const char*, std::vector<double>& value);
  void operator()(const char*, std::vector<PowerStretch>& value);
  void operator()(const char*, Estimate& value);
  template <typename T>
  void operator()(const char*, T& value) {
    value = static_cast<T>(statement.integer(at++));
  }
};

}  // namespace frugal::meter
