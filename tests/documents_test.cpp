// The expected documents and verdicts are those of Python 3.11:
//   [line.strip() for line in open(path, encoding='utf-8') if line.strip()]
#include "dense/io/documents.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "dense/scalar/error.h"
#include "tests/errors.h"

using dense::documents, dense::read_documents, dense::to_utf8;
using Docs = std::vector<std::u32string>;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace {

// What str.isspace() says yes to.
const std::u32string spaces =
    U"\t\n\v\f\r\034\035\036\037 \205\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    U"\u2028\u2029\u202f\u205f\u3000";

TEST(Documents, AreTheLinesThatPythonReads) {
  const struct {
    const char* what;
    std::string_view text;
    Docs docs;
  } cases[] = {
      {"lines", "anna\nbob\n", {U"anna", U"bob"}},
      {"no end of line at the end", "anna\nbob", {U"anna", U"bob"}},
      {"\\r\\n and \\r end lines", "a\r\nb\rc\n\rd\r\n\r\ne\r", {U"a", U"b", U"c", U"d", U"e"}},
      {"other separators do not", "a\vb\fc\034d\302\205e\342\200\250f\ng", {U"a\vb\fc\034d\205e\u2028f", U"g"}},
      {"white space inside stays", "  a \t b  \n\tc\t\n", {U"a \t b", U"c"}},
      {"blank lines are no documents", "\n \n\t\na\n\v\f\n\302\240\n", {U"a"}},
      {"the byte order mark is a character", "\357\273\277a\n\357\273\277\n", {U"\ufeffa", U"\ufeff"}},
      {"one to four bytes", "a\303\251\342\202\254\360\237\230\200", {U"a\u00e9\u20ac\U0001f600"}},
      {"letters and their marks stay apart", "e\314\201\n\303\251", {U"e\u0301", U"\u00e9"}},
      {"NUL is a character", "a\0b\n\0\n"sv, {U"a\0b"s, U"\0"s}},
  };
  for (const auto& c : cases) EXPECT_EQ(documents(c.text, "text"), c.docs) << c.what;
}

TEST(Documents, AreStrippedOfExactlyWhatPythonStrips) {
  std::u32string text;
  Docs expected;
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c <= 0xdfff) continue;  // surrogates
    const bool stripped = spaces.find(c) != spaces.npos;
    text += {c, 'x', c, '\n'};
    expected.push_back(stripped ? std::u32string{'x'} : std::u32string{c, 'x', c});
  }
  EXPECT_TRUE(documents(to_utf8(text), "text") == expected);
}

TEST(Documents, RefuseBytesThatAreNotUtf8) {
  const std::pair<std::string_view, const char*> cases[] = {
      {"\377", "line 1: not UTF-8: byte 0xff"},
      {"a\n\r\nb\376\n", "line 3: not UTF-8: byte 0xfe"},
      {"ok\r\rok\r\n\303\251\251", "line 4: not UTF-8: byte 0xa9"},
      {"Z\374rich", "line 1: not UTF-8: byte 0xfc"},  // Latin-1
      {"\200", "line 1: not UTF-8: byte 0x80"},       // the middle of a character
      {"a\303", "line 1: not UTF-8: byte 0xc3"},      // cut off
      {"\303\n", "line 1: not UTF-8: byte 0xc3"},
      {"\342\202", "line 1: not UTF-8: byte 0xe2"},
      {"\342(\241", "line 1: not UTF-8: byte 0xe2"},
      {"\342\202(", "line 1: not UTF-8: byte 0xe2"},
      {"\360\237\230", "line 1: not UTF-8: byte 0xf0"},
      {"\360(\214\274", "line 1: not UTF-8: byte 0xf0"},
      {"\300\200", "line 1: not UTF-8: byte 0xc0"},  // longer than need be
      {"\301\277", "line 1: not UTF-8: byte 0xc1"},
      {"\340\237\277", "line 1: not UTF-8: byte 0xe0"},
      {"\360\217\277\277", "line 1: not UTF-8: byte 0xf0"},
      {"\355\240\200", "line 1: not UTF-8: byte 0xed"},  // surrogates
      {"\355\240\275\355\270\200", "line 1: not UTF-8: byte 0xed"},
      {"\364\220\200\200", "line 1: not UTF-8: byte 0xf4"},  // beyond 10ffff
      {"\365\200\200\200", "line 1: not UTF-8: byte 0xf5"},
      {"\374\204\200\200\200\200", "line 1: not UTF-8: byte 0xfc"},
  };
  for (const auto& [text, error] : cases) {
    EXPECT_EQ(error_of([&, t = text] { documents(t, "names.txt"); }), "names.txt: "s + error);
  }
}

TEST(Documents, MustNotAllBeEmpty) {
  for (std::string_view text : {""sv, "\n"sv, " \r\n\t\r \n"sv}) {
    EXPECT_EQ(error_of([&] { documents(text, "names.txt"); }), "names.txt: no documents: every line is empty");
  }
}

TEST(Documents, ComeFromFiles) {
  const std::string folder = testing::TempDir() + "dense_documents_" + std::to_string(getpid());
  const std::string path = folder + "/names.txt";
  std::filesystem::create_directory(folder);
  const Docs docs = {U"a" + std::u32string(100'000, U'\u00e9'), U"b"};  // longer than one block of reading
  std::ofstream(path, std::ios::binary) << to_utf8(docs[0]) << "\r\n" << to_utf8(docs[1]);
  EXPECT_TRUE(read_documents(path) == docs);
  std::filesystem::remove_all(folder);
  EXPECT_EQ(error_of([&] { read_documents(path); }), path + ": cannot open: No such file or directory");
  EXPECT_EQ(error_of([] { read_documents("/"); }), "/: is a folder");
}

// Whether bytes are UTF-8 by Table 3-7 of the Unicode Standard: the range of the second byte depends on the first.
bool is_utf8(std::string_view text) {
  const struct {
    unsigned char first, last, low, high;
    size_t more;
  } table[] = {{0x00, 0x7f, 0, 0, 0},       {0xc2, 0xdf, 0x80, 0xbf, 1}, {0xe0, 0xe0, 0xa0, 0xbf, 2},
               {0xe1, 0xec, 0x80, 0xbf, 2}, {0xed, 0xed, 0x80, 0x9f, 2}, {0xee, 0xef, 0x80, 0xbf, 2},
               {0xf0, 0xf0, 0x90, 0xbf, 3}, {0xf1, 0xf3, 0x80, 0xbf, 3}, {0xf4, 0xf4, 0x80, 0x8f, 3}};
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const auto row = std::find_if(std::begin(table), std::end(table),
                                  [&](const auto& r) { return byte(i) >= r.first && byte(i) <= r.last; });
    if (row == std::end(table) || i + row->more >= text.size()) return false;
    for (size_t k = 1; k <= row->more; ++k) {
      if (byte(i + k) < (k == 1 ? row->low : 0x80) || byte(i + k) > (k == 1 ? row->high : 0xbf)) return false;
    }
    i += 1 + row->more;
  }
  return true;
}

TEST(Documents, OfRandomBytesAreCleanOrRefused) {
  const char* wish = std::getenv("DENSE_FUZZ_ROUNDS");
  const int rounds = wish ? std::atoi(wish) : 20'000;
  const std::string_view pieces[] = {"a",
                                     " ",
                                     "\n",
                                     "\r",
                                     "\t",
                                     "\302\205",
                                     "\302\240",
                                     "\342\200\250",
                                     "\303\251",
                                     "\360\237\230\200",
                                     "\357\273\277",
                                     "\0"sv,
                                     "\303",
                                     "\200",
                                     "\355",
                                     "\240"};
  std::mt19937 random(1);
  auto below = [&](size_t n) { return random() % n; };
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    const size_t valid_pieces = below(2) ? 12 : std::size(pieces), bytes = below(4) ? 0 : 1;
    std::string text;
    for (size_t n = below(20); n-- > 0;) {
      text += bytes && !below(8) ? std::string(1, static_cast<char>(below(256))) : pieces[below(valid_pieces)];
    }
    Docs docs;
    const std::string error = error_of([&] { docs = documents(text, "t"); });
    if (error != "no error") {
      EXPECT_EQ(is_utf8(text), error == "t: no documents: every line is empty") << testing::PrintToString(text);
      continue;
    }
    ++accepted;
    EXPECT_TRUE(is_utf8(text)) << testing::PrintToString(text);
    std::u32string again;
    for (const std::u32string& doc : docs) {
      EXPECT_EQ(doc.find_first_of(U"\r\n"), doc.npos);
      ASSERT_FALSE(doc.empty());
      EXPECT_EQ(spaces.find(doc.front()), spaces.npos);
      EXPECT_EQ(spaces.find(doc.back()), spaces.npos);
      again += doc + U'\n';
    }
    EXPECT_EQ(documents(to_utf8(again), "t"), docs);
  }
  EXPECT_GE(accepted, rounds / 4);  // the test must reach both outcomes
}

}  // namespace
