#include "meter/columns.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/text.h"

namespace frugal::meter {
namespace {

template <typename T>
std::string list_text(const std::vector<T>& list) {
  return nlohmann::json(list).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

template <typename T>
std::vector<T> parse_list(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<T> list;
  if (!json.is_array()) return list;
  for (const auto& item : json) {
    const bool fits = std::is_same_v<T, std::string> ? item.is_string() : item.is_number();
    if (fits) list.push_back(item.template get<T>());
  }
  return list;
}

}  // namespace

void ColumnNames::add(const std::string& name, const char* type) {
  const char* comma = n == 0 ? "" : ", ";
  names += comma + name;
  declarations += comma + name + " " + type;
  marks += n == 0 ? "?" : ",?";
  ++n;
}

void ColumnNames::add_estimate(const std::string& name) {
  add(name, "REAL");  // NULL: no figure
  add(name + "_low", "REAL");
  add(name + "_high", "REAL");
  add(name + "_from", "INTEGER NOT NULL");
}

void ColumnBinder::operator()(const char*, const std::vector<std::string>& value) {
  statement.bind(at++, std::string_view(list_text(value)));
}

void ColumnBinder::operator()(const char*, const std::vector<double>& value) {
  statement.bind(at++, std::string_view(list_text(value)));
}

// "begin seconds watts;..." with begin in whole milliseconds of Unix time.
void ColumnBinder::operator()(const char*, const std::vector<PowerStretch>& value) {
  std::string text;
  for (const PowerStretch& p : value) text += strf("%.3f %.3f %.4g;", p.begin_unix_s, p.seconds, p.watts);
  statement.bind(at++, std::string_view(text));
}

void ColumnBinder::operator()(const char*, const Estimate& value) {
  for (const double part : {value.value, value.low, value.high}) {
    if (value.known()) {
      statement.bind(at++, part);
    } else {
      statement.bind_null(at++);
    }
  }
  statement.bind(at++, static_cast<int64_t>(value.provenance));
}

void ColumnReader::operator()(const char*, std::vector<std::string>& value) {
  value = parse_list<std::string>(statement.text(at++));
}

void ColumnReader::operator()(const char*, std::vector<double>& value) {
  value = parse_list<double>(statement.text(at++));
}

void ColumnReader::operator()(const char*, std::vector<PowerStretch>& value) {
  value.clear();
  for (const std::string& part : split(statement.text(at++), ';')) {
    PowerStretch p;
    if (std::sscanf(part.c_str(), "%lf %lf %lf", &p.begin_unix_s, &p.seconds, &p.watts) == 3 && p.seconds > 0)
      value.push_back(p);
  }
}

void ColumnReader::operator()(const char*, Estimate& value) {
  value = {statement.number(at), statement.number(at + 1), statement.number(at + 2),
           static_cast<Provenance>(std::clamp<int64_t>(statement.integer(at + 3), 0, 3))};
  at += 4;
}

}  // namespace frugal::meter
