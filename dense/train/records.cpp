#include "dense/train/records.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <span>
#include <thread>

#include "dense/io/files.h"
#include "dense/io/json.h"
#include "dense/io/unicode.h"
#include "dense/scalar/error.h"
#include "dense/scalar/kernels.h"
#include "dense/train/report.h"

namespace dense {

namespace fs = std::filesystem;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// ---- TensorBoard: protocol buffers, each in a record that says its length and two checksums

using Crc = std::array<std::array<uint32_t, 256>, 8>;

// CRC-32C (Castagnoli), eight bytes at a time.
constexpr Crc crc_tables() {
  Crc tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = c & 1 ? c >> 1 ^ 0x82f63b78 : c >> 1;
    tables[0][i] = c;
  }
  for (size_t t = 1; t < 8; ++t)
    for (size_t i = 0; i < 256; ++i) tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 0xff];
  return tables;
}
constexpr Crc tables = crc_tables();

uint32_t masked_crc(std::string_view data) {
  uint32_t crc = 0xffffffff;
  while (data.size() >= 8) {
    uint64_t word = 0;
    std::memcpy(&word, data.data(), 8);
    word ^= crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= tables[7 - i][word >> 8 * i & 0xff];
    data.remove_prefix(8);
  }
  for (char c : data) crc = crc >> 8 ^ tables[0][(crc ^ uint8_t(c)) & 0xff];
  return std::rotr(~crc, 15) + 0xa282ead8;
}

template <class T>
void append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_record(std::string& to, std::string_view data) {
  const size_t begin = to.size();
  append(to, uint64_t(data.size()));
  append(to, masked_crc(std::string_view(to).substr(begin, 8)));
  to += data;
  append(to, masked_crc(data));
}

void append_varint(std::string& to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) to += char(value | 0x80);
  to += char(value);
}

// A field of a protocol buffer: its number and that it is a text of bytes.
void append_bytes(std::string& to, int field, std::string_view bytes) {
  append_varint(to, uint64_t(field) << 3 | 2);
  append_varint(to, bytes.size());
  to += bytes;
}

// ---- the other files

// What a command of the shell prints, without the last line's end; nothing where it fails.
std::string output_of(const char* command) {
  std::string result;
  std::FILE* pipe = popen(command, "r");
  if (!pipe) return result;
  char block[4096];
  while (const size_t n = std::fread(block, 1, sizeof block, pipe)) result.append(block, n);
  if (pclose(pipe) != 0) result.clear();
  while (result.ends_with('\n')) result.pop_back();
  return result;
}

std::string time_text() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char buffer[32];
  std::strftime(buffer, sizeof buffer, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return buffer;
}

std::string cpu() {
  std::error_code ignored;
  if (!fs::exists("/proc/cpuinfo", ignored)) return "unknown";
  std::FILE* file = std::fopen("/proc/cpuinfo", "r");
  if (!file) return "unknown";
  std::string name = "unknown";
  for (char line[512]; std::fgets(line, sizeof line, file);)
    if (const std::string_view text = line; text.starts_with("model name")) {
      name = text.substr(std::min(text.size(), text.find(':') + 2));
      name.resize(std::min(name.size(), name.find('\n')));
      break;
    }
  std::fclose(file);
  return name;
}

// The lines of metrics.jsonl up to a step.
std::string up_to(const std::string& metrics, int64_t steps) {
  size_t end = 0;
  for (size_t begin = 0; begin < metrics.size(); begin = end) {
    const size_t line_end = metrics.find('\n', begin);
    constexpr std::string_view head = "{\"step\": ";
    int64_t step = 0;
    const char* const number = metrics.data() + begin + head.size();
    const bool whole = line_end != metrics.npos && std::string_view(metrics).substr(begin).starts_with(head) &&
                       std::from_chars(number, metrics.data() + line_end, step).ec == std::errc{};
    if (!whole || step > steps) break;
    end = line_end + 1;
  }
  return metrics.substr(0, end);
}

// A line as Records writes most: a step, then numbers, which are finite. That is read here ten times as fast as by
// parse_json, since it is read again and again while a run goes on. False for any other line.
bool read_numbers(std::string_view line, std::vector<std::pair<std::string_view, double>>& to) {
  to.clear();
  const char *p = line.data(), *const end = p + line.size();
  for (std::string_view before = "{\""; std::string_view(p, end).starts_with(before); before = ", \"") {
    const char* const name = p + before.size();
    const char* const quote = std::find(name, end, '"');
    if (end - quote < 4 || quote[1] != ':' || quote[2] != ' ' || std::find(name, quote, '\\') != quote) return false;
    double value = 0;
    const auto [stop, error] = std::from_chars(quote + 3, end, value);
    if (error != std::errc{} || !std::isfinite(value)) return false;
    to.emplace_back(std::string_view(name, quote), value);
    p = stop;
  }
  return std::string_view(p, end) == "}" && !to.empty() && to[0].first == "step";
}

}  // namespace

void each_metric(const fs::path& file, const std::function<void(const Metric&)>& f) {
  const std::string all = read_file(file);
  std::vector<std::pair<std::string_view, double>> numbers;
  size_t number = 0;
  for (size_t begin = 0, end = 0; (end = all.find('\n', begin)) != all.npos; begin = end + 1) {
    const std::string_view line = std::string_view(all).substr(begin, end - begin);
    ++number;
    if (read_numbers(line, numbers)) {
      for (const auto& [name, value] : std::span(numbers).subspan(1)) f({numbers[0].second, name, value});
      continue;
    }
    const std::string where = text(file.string(), ": line ", number);
    const Json json = parse_json(line, where);
    const Json* const step = json.find("step");
    if (!step) fail(where, R"(: expected an object with a "step", got )", shown(json));
    const double at = number_of(*step, where);
    for (const Json& item : json.items) {
      if (item.name == "step") continue;
      if (item.kind == Json::string) f({at, item.name, NAN, item.text});
      else f({at, item.name, item.kind == Json::null ? NAN : number_of(item, where)});
    }
  }
}

Records::Records(const fs::path& folder, int64_t steps, const std::string& command)
    : folder_(folder), command_(command), started_(time_text()) {
  const fs::path metrics = folder / "metrics.jsonl";
  const bool resumed = steps > 0 && fs::exists(metrics);
  write_file(metrics, resumed ? up_to(read_file(metrics), steps) : std::string());
  utsname machine{};
  uname(&machine);
  const fs::path events = folder / text("events.out.tfevents.", int64_t(now()), ".", machine.nodename, ".", getpid());
  const auto open = [](const fs::path& file) {
    File opened(std::fopen(file.c_str(), "ab"));
    if (!opened) fail(file.string(), ": cannot write: ", std::strerror(errno));
    return opened;
  };
  metrics_ = open(metrics);
  events_ = open(events);
  std::string first("\x09", 1);
  append(first, now());
  append_bytes(first, 3, "brain.Event:2");
  append_record(events_text_, first);
  if (resumed) {  // what an earlier file says of later steps does not count
    std::string event("\x09", 1);
    append(event, now());
    event += '\x10';
    append_varint(event, uint64_t(steps) + 1);
    append_bytes(event, 7, "\x08\x01");  // of the session: START
    append_record(events_text_, event);
  }
  status("running");
}

void Records::event(int64_t step, std::string_view summary, double seconds) {
  std::string event("\x09", 1);
  append(event, seconds);
  event += '\x10';
  append_varint(event, uint64_t(step));
  append_bytes(event, 5, summary);
  append_record(events_text_, event);
}

void Records::add(int64_t step, std::initializer_list<Value> values) {
  const double seconds = now();
  std::string summary, value;
  metrics_text_ += "{\"step\": " + std::to_string(step);
  for (const auto& [name, number] : values) {
    char digits[32];
    const char* const end = std::to_chars(digits, digits + sizeof digits, float(number)).ptr;
    const std::string_view shown = std::isfinite(number) ? std::string_view(digits, size_t(end - digits)) : "null";
    metrics_text_.append(", \"").append(name).append("\": ").append(shown);
    value.clear();
    append_bytes(value, 1, name);
    value += '\x15';  // field 2, four bytes
    append(value, float(number));
    append_bytes(summary, 1, value);
  }
  metrics_text_ += "}\n";
  event(step, summary, seconds);
  if (seconds > flushed_ + 1) flush();
}

void Records::add_text(int64_t step, const char* name, std::string_view text) {
  metrics_text_ += dense::text("{\"step\": ", step, ", \"", name, "\": ", json_string(text), "}\n");
  flush();
}

void Records::flush() {
  flushed_ = now();
  for (auto [file, text] : {std::pair(metrics_.get(), &metrics_text_), std::pair(events_.get(), &events_text_)}) {
    if (!failed_) failed_ = std::fwrite(text->data(), 1, text->size(), file) != text->size() || std::fflush(file) != 0;
    text->clear();
  }
  if (flushed_ > report_due_) write_report();
}

// Every five seconds, but of all the time at most a hundredth. What cannot be shown is no reason to stop training.
void Records::write_report() {
  const double begin = now();
  try {
    write_file(folder_ / "report.html", report(std::span(&folder_, 1)));
  } catch (const std::exception&) {
  }
  report_due_ = now() + std::max(5.0, 100 * (now() - begin));
}

void Records::status(const std::string& status) {
  utsname machine{};
  uname(&machine);
  Json run{Json::object};
  const auto add = [&](const char* name, std::string value) {  // which may be any bytes: of sources, of arguments
    run.items.push_back({Json::string, name, take_utf8(value, true)});
  };
  add("status", status);
  add("command", command_);
  add("folder", fs::current_path().string());
  add("started", started_);
  add("changed", time_text());
  add("host", machine.nodename);
  add("cpu", cpu());
  run.items.push_back({Json::number, "cores", std::to_string(std::thread::hardware_concurrency())});
  add("isa", name(best_isa()));
  add("git", output_of("git rev-parse HEAD 2>/dev/null"));
  add("git_changes", output_of("git diff HEAD 2>/dev/null | head -c 1000000"));
  write_file(folder_ / "run.json", to_text(run, 2) + "\n");
  write_report();
}

}  // namespace dense
