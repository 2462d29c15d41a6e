// Regular expressions as tokenizer.json has them: Oniguruma's (Ruby's) syntax, run by PCRE2's compiler to machine code.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dense {

class Regex {
 public:
  // Throws Error, starting with `where`, for what is no expression or means something else to PCRE2.
  Regex(const std::string& pattern, const std::string& where);

  struct Match {
    size_t begin, end;
  };
  // Appends all matches in UTF-8 text, which do not overlap. No empty match follows another one directly.
  void find_all(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;  // used by many threads at once
  std::string where_;
};

}  // namespace dense
