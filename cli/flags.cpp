#include "cli/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <numeric>

namespace dense::cli {

namespace {

template <class T>
T parsed(const std::string& name, std::string_view given) {
  if constexpr (std::same_as<T, std::string>) {
    // `--data --steps 5` is a forgotten value far more often than a file named --steps (which ./--steps reaches).
    if (given.empty() || given.starts_with("--")) fail("--", name, ": expected a value, got \"", given, '"');
    return std::string(given);
  } else if constexpr (std::same_as<T, bool>) {
    if (given != "true" && given != "false") fail("--", name, ": expected true or false, got \"", given, '"');
    return given == "true";
  } else {
    return parse_number<T>(name, given);
  }
}

template <class T>
constexpr const char* type_name = std::same_as<T, std::string> ? "TEXT"
                                  : std::same_as<T, bool>      ? "true|false"
                                  : std::integral<T>           ? "INT"
                                                               : "NUMBER";

// A value, a value that may be none, or a list with commas.
template <class T>
Flag flag_of(const ConfigField& field, const std::string& name, T& value) {
  Flag flag{name, "", "", field.text, nullptr};
  if constexpr (requires { value.has_value(); }) {
    using V = typename T::value_type;
    if constexpr (std::is_arithmetic_v<V> || std::same_as<V, std::string>) {
      flag.type = type_name<V>;
      if (value) flag.fallback = fmt::to_string(*value);
      flag.set = [name, &value](std::string_view given) { value = parsed<V>(name, given); };
    } else {
      flag.set = [name](std::string_view) { fail("--", name, ": expected to be set by config.json alone"); };
    }
  } else if constexpr (std::is_arithmetic_v<T> || std::same_as<T, std::string>) {
    flag.type = type_name<T>;
    flag.fallback = fmt::to_string(value);
    flag.set = [name, &value](std::string_view given) { value = parsed<T>(name, given); };
  } else if constexpr (std::same_as<T, TokenIds>) {
    flag = flag_of(field, name, value.ids);
  } else {
    using V = typename T::value_type;
    flag.type = std::string(type_name<V>) + ",...";
    if constexpr (!std::same_as<V, std::string>) flag.fallback = fmt::to_string(fmt::join(value, ","));
    flag.set = [name, &value](std::string_view given) {
      value.clear();
      for (size_t begin = 0; begin <= given.size();) {
        const size_t end = std::min(given.find(',', begin), given.size());
        value.push_back(parsed<V>(name, given.substr(begin, end - begin)));
        begin = end + 1;
      }
    };
  }
  flag.set = [name, set = flag.set, check = field.check](std::string_view given) {
    set(given);
    if (check) check("--" + name);
  };
  return flag;
}

}  // namespace

std::vector<Flag> flags_of(const std::vector<ConfigField>& fields, const std::string& prefix) {
  std::vector<Flag> flags;
  for (const ConfigField& field : fields)
    std::visit([&](auto* value) { flags.push_back(flag_of(field, prefix + field.name, *value)); }, field.value);
  return flags;
}

bool set_flags(const std::vector<Flag>& flags, const Call& call, const std::string& about, const std::string& example,
               const std::vector<Place>& places) {
  std::string program = call.program;
  for (const Place& place : places) program += " " + place.name;
  CLI::App app(about, program);
  app.set_help_flag("-h,--help", "print this text")->group("Flags");
  app.get_formatter()->column_width(38);
  app.get_formatter()->label("OPTIONS", "FLAGS");
  app.footer("Example: " + example);
  app.allow_extras();  // they are refused below, with a suggestion
  std::vector<std::string> names;
  for (const Flag& flag : flags) {
    const CLI::callback_t set = [&flag](const CLI::results_t& given) {
      if (given.size() > 1) fail("--", flag.name, ": given ", given.size(), " times");
      flag.set(given[0]);
      return true;
    };
    names.push_back("--" + flag.name);
    app.add_option(names.back(), set, flag.text)
        ->group("Flags")
        ->type_name(flag.fallback == "false" ? "" : flag.type)
        ->default_str(flag.fallback == "false" ? "" : flag.fallback)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }
  for (const std::string& arg : call.args) {  // CLI11 would take the next argument as the value of `--name=`
    const size_t equals = arg.find('=');
    if (arg.starts_with("--") && equals + 1 == arg.size()) fail(arg.substr(0, equals), ": expected a value, got \"\"");
  }
  std::vector<std::string> args = call.args;
  for (size_t i = 0; i < args.size(); ++i) {  // `--json` alone is true
    const auto flag = std::ranges::find_if(flags, [&](const Flag& f) { return "--" + f.name == args[i]; });
    if (flag == flags.end() || flag->type != type_name<bool>) continue;
    const std::string next = i + 1 < args.size() ? args[i + 1] : "--";
    if (next.starts_with("-") || (!places.empty() && next != "true" && next != "false")) args[i] += "=true";
  }
  try {
    app.parse(std::vector(args.rbegin(), args.rend()));  // CLI11 takes arguments from the back
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}\n", app.help());
    return false;
  } catch (const CLI::ArgumentMismatch& error) {  // what() starts with the flag's name
    const std::string_view what = error.what();
    fail(what.substr(0, what.find(':')), ": expected a value, got nothing");
  }
  size_t given = 0;
  for (const std::string& arg : app.remaining()) {
    const std::string name = arg.substr(0, arg.find('='));
    if (!arg.starts_with("-") && given < places.size()) {
      const Place& place = places[given];
      if (place.values) place.values->push_back(arg);
      else *place.value = arg, ++given;
      continue;
    }
    if (!arg.starts_with("-")) fail("unexpected argument \"", arg, "\" (see ", call.program, " --help)");
    fail("unknown flag ", name, did_you_mean(name, names), " (see ", call.program, " --help)");
  }
  if (given < places.size() && (!places[given].values || places[given].values->empty()))
    fail("expected ", places[given].name, " (see ", call.program, " --help)");
  return true;
}

std::string value_of(const std::string& flag, const Call& call) {
  std::string value;
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (call.args[i] == flag && i + 1 < call.args.size()) value = call.args[i + 1];
    if (call.args[i].starts_with(flag + "=")) value = call.args[i].substr(flag.size() + 1);
  }
  return value;
}

std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) || std::string_view("-_./:=,+@%").find(char(c)) != std::string_view::npos;
  });
  if (plain) return text;
  std::string word = "'";
  for (char c : text) word += c == '\'' ? "'\\''" : std::string(1, c);
  return word + "'";
}

std::string typed(const Call& call) {
  std::string line = call.program;
  for (const std::string& arg : call.args) line += " " + shell_word(arg);
  return line;
}

// Letters to change, add or drop to get from a to b: Levenshtein's distance, one row of his table at a time.
static size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t corner = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t changed = corner + (a[i] != b[j]);
      corner = row[j + 1];
      row[j + 1] = std::min({changed, corner + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& names) {
  const std::string* nearest = nullptr;
  size_t smallest = word.size() / 3 + 1;  // further off than this is a different word
  for (const std::string& name : names) {
    const size_t changes = word.size() > 2 && name.starts_with(word) ? 0 : distance(word, name);
    if (changes < smallest) nearest = &name, smallest = changes;
  }
  return nearest ? "; did you mean " + *nearest + "?" : "";
}

}  // namespace dense::cli
