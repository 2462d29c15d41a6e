// Safetensors against the files of the reference implementation, and against files that are not what they should be.
#include "dense/io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "tests/errors.h"
#include "tests/temporary.h"

namespace {

using namespace dense;
using namespace std::string_literals;
namespace fs = std::filesystem;

// A file of this header and data.
std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + header + data;
}

// What parsing a copy of these bytes, at an address that is a multiple of 64 plus `shift`, gives. ASan sees its end.
StoredTensors parse(const std::string& file, size_t shift = 0) {
  const std::shared_ptr<std::byte[]> memory(new (std::align_val_t{64}) std::byte[file.size() + shift],
                                            [](std::byte* p) { operator delete[](p, std::align_val_t{64}); });
  std::memcpy(memory.get() + shift, file.data(), file.size());
  return parse_safetensors({memory.get() + shift, file.size()}, memory, "f");
}
std::string error_in(const std::string& file) {
  return error_of([&] { parse(file); });
}

std::string text_of(const StoredTensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
}

template <class T>
StoredTensor tensor_of(const std::string& name, const std::string& dtype, Shape shape, std::vector<T> values) {
  auto memory = std::make_shared<std::vector<T>>(std::move(values));
  return {name, dtype, std::move(shape), std::as_writable_bytes(std::span(*memory)), memory, ""};
}
std::vector<StoredTensor> some_tensors() {
  return {tensor_of<float>("b", "F32", {2, 2}, {1, 2, 3, 4}), tensor_of<int64_t>("i", "I64", {}, {-7}),
          tensor_of<uint8_t>("u", "U8", {3}, {1, 2, 255}), tensor_of<float>("a", "F32", {0, 5}, {}),
          tensor_of<uint16_t>("h\"\n\xc3\xa9", "BF16", {1, 1, 1}, {0x3f80})};
}

std::vector<StoredTensor> list(const StoredTensors& tensors) {
  std::vector<StoredTensor> all;
  for (const auto& [name, tensor] : tensors) all.push_back(tensor);
  return all;
}

// Equal names, types, shapes and bytes.
void expect_equal(const StoredTensors& a, const StoredTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    const StoredTensor& other = b.at(name);
    EXPECT_EQ(tensor.dtype, other.dtype) << name;
    EXPECT_EQ(tensor.shape, other.shape) << name;
    EXPECT_EQ(text_of(tensor), text_of(other)) << name;
  }
}

size_t element_size(const StoredTensor& tensor) {
  size_t elements = 1;
  for (int64_t size : tensor.shape) elements *= size_t(size);
  return elements ? tensor.bytes.size() / elements : 1;
}
bool is_aligned(const StoredTensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.bytes.data()) % element_size(tensor) == 0;
}

const std::string one = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight = "12345678";

// Reading

TEST(Safetensors, TensorsHaveNameTypeShapeAndBytes) {
  const StoredTensors tensors =
      parse(file_of(R"( {"__metadata__":{"format":"pt"}, "a.b":{"dtype":"F32","shape":[1,2],"data_offsets":[1,9]},)"
                    R"("s":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                    R"("new":{"dtype":"I64","shape":[3,0],"data_offsets":[9,9]}}  )"s.substr(1),
                    "!12345678"));
  ASSERT_EQ(tensors.size(), 3);
  EXPECT_EQ(tensors.at("a.b").dtype, "F32");
  EXPECT_EQ(tensors.at("a.b").shape, (Shape{1, 2}));
  EXPECT_EQ(tensors.at("a.b").file, "f");
  EXPECT_EQ(text_of(tensors.at("a.b")), eight);
  EXPECT_EQ(tensors.at("s").shape, Shape{});
  EXPECT_EQ(text_of(tensors.at("s")), "!");
  EXPECT_EQ(tensors.at("new").shape, (Shape{3, 0}));
  EXPECT_EQ(text_of(tensors.at("new")), "");
  EXPECT_TRUE(parse(file_of("{}")).empty());
}

TEST(Safetensors, TensorsAreAlignedWhereverTheFilePutsThem) {
  for (size_t shift = 0; shift < 9; ++shift) {
    for (const auto& [name, tensor] : parse(file_of(one, eight), shift)) {
      EXPECT_TRUE(is_aligned(tensor)) << shift;
      EXPECT_EQ(text_of(tensor), eight);
    }
  }
}

TEST(Safetensors, EveryTypeHasItsSize) {
  const std::pair<const char*, int> types[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                                               {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                                               {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const auto& [type, size] : types) {
    const std::string header = text(R"({"x":{"dtype":")", type, R"(","shape":[3],"data_offsets":[0,)", 3 * size, "]}}");
    EXPECT_EQ(error_in(file_of(header, std::string(size_t(3 * size), 'x'))), "no error") << type;
  }
}

TEST(Safetensors, WhatIsNotTheFormatIsRefusedInOneLine) {
  const auto x = [](const std::string& tensor) { return file_of("{\"x\":" + tensor + "}", eight); };
  const auto two = [](const std::string& a, const std::string& b) {
    return file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                       R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                   eight);
  };
  const struct {
    std::string file, error;
  } cases[] = {
      {"", "f: expected the 8 bytes of a header's size, got 0 bytes"},
      {"1234567", "f: expected the 8 bytes of a header's size, got 7 bytes"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
       "f: expected tensors, got a Git LFS pointer to them: run git lfs pull"},
      {"\1\0\0\0\0\0\0\0"s, "f: expected a header of 1 bytes, got a file with 0 after its first 8"},
      {file_of(one).substr(0, 40), "f: expected a header of 54 bytes, got a file with 32 after its first 8"},
      {"\1\xe1\xf5\5\0\0\0\0{}"s, "f: expected a header of at most 100000000 bytes, got 100000001"},
      {"\0\0\0\0\0\0\0\x80{}"s, "f: expected a header of at most 100000000 bytes, got 9223372036854775808"},
      {file_of(""), "f: expected a header that starts with {, got "},
      {file_of("[]"), "f: expected a header that starts with {, got ["},
      {file_of("\xef\xbb\xbf{}"), "f: expected a header that starts with {, got \\ufffd"},
      {file_of("{\"x\":"),
       "f: not JSON: parse error at line 1, column 6: syntax error while parsing value - unexpected end of input; "
       "expected '[', '{', or a literal"},
      {file_of("{}{"),
       "f: not JSON: parse error at line 1, column 3: syntax error while parsing value - unexpected '{'; "
       "expected end of input"},
      {file_of("{\"\xff\":1}"),
       "f: not JSON: parse error at line 1, column 3: syntax error while parsing object key - invalid string: "
       "ill-formed UTF-8 byte; expected string literal"},
      {file_of("{}\0"s), "f: not JSON: byte 2 is 0"},
      {file_of("{\"x\":" + std::string(100'000, '[')), "f: expected JSON nested at most 64 deep, got deeper"},
      {file_of(R"({"x":{},"x":{}})"), "f: x: given twice"},
      {x(R"({"dtype":"U8","dtype":"U8"})"), "f: dtype: given twice"},
      {file_of(R"({"__metadata__":"pt"})"), "f: __metadata__: expected an object, got \"pt\""},
      {file_of(R"({"__metadata__":{"step":1}})"), "f: __metadata__: step: expected a string, got 1"},
      {file_of(R"({"__metadata__":{"a":{"b":"c"}}})"), "f: __metadata__: a: expected a string, got {\"b\":\"c\"}"},
      {x("[]"), "f: x: expected an object, got []"},
      {x("{}"), "f: x: dtype: expected a string, got nothing"},
      {x(R"({"dtype":1})"), "f: x: dtype: expected a string, got 1"},
      {x(R"({"dtype":"F32"})"), "f: x: shape: expected a list, got nothing"},
      {x(R"({"dtype":"F32","shape":2})"), "f: x: shape: expected a list, got 2"},
      {x(R"({"dtype":"F32","shape":[2]})"), "f: x: data_offsets: expected a list, got nothing"},
      {x(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})"), "f: x: unknown dtype \"F31\""},
      {x(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       "f: x: shape: expected whole numbers from 0 to 9223372036854775807, got -2"},
      {x(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
       "f: x: shape: expected whole numbers from 0 to 9223372036854775807, got 2.0"},
      {x(R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})"),
       "f: x: shape: expected whole numbers from 0 to 9223372036854775807, got \"2\""},
      {x(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       "f: x: shape: expected whole numbers from 0 to 9223372036854775807, got 9223372036854775808"},
      {x(R"({"dtype":"F32","shape":[2],"data_offsets":[0,1e1]})"),
       "f: x: data_offsets: expected whole numbers from 0 to 9223372036854775807, got 1e1"},
      {x(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})"),
       "f: x: expected a shape of at most 9223372036854775807 bytes, got (4611686018427387904)"},
      {x(R"({"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]})"),
       "f: x: expected a shape of at most 9223372036854775807 bytes, got (4294967296, 4294967296, 0)"},
      {x(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       "f: x: data_offsets: expected [begin, end], got [8,0]"},
      {x(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4,8]})"),
       "f: x: data_offsets: expected [begin, end], got [0,4,8]"},
      {x(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), "f: x: expected 12 bytes for F32 (3), got 8"},
      {x(R"({"dtype":"F32","shape":[],"data_offsets":[0,8]})"), "f: x: expected 4 bytes for F32 (), got 8"},
      {two("[0,4]", "[2,6]"), "f: b: expected to begin at byte 4 where the tensor before it ends, got 2"},
      {two("[0,4]", "[0,4]"), "f: b: expected to begin at byte 4 where the tensor before it ends, got 0"},
      {two("[4,8]", "[9,13]"), "f: a: expected to begin at byte 0 where the tensor before it ends, got 4"},
      {two("[5,9]", "[0,4]"), "f: a: expected to begin at byte 4 where the tensor before it ends, got 5"},
      {file_of(one, "1234"), "f: x: expected to end within 4 bytes of data, got 8"},
      {file_of(one, "123456789"), "f: expected 8 bytes of data, got 9"},
      {file_of("{}", "1"), "f: expected 0 bytes of data, got 1"},
      {file_of(R"({"a\nb\u001b":1})"), "f: a\\nb\\u001b: expected an object, got 1"},
      {file_of("{\"" + std::string(5000, 'n') + "\":1}"),
       "f: " + std::string(100, 'n') + "...: expected an object, got 1"},
  };
  for (const auto& c : cases) EXPECT_EQ(error_in(c.file), c.error) << testing::PrintToString(c.file.substr(0, 200));
}

TEST(Safetensors, AMillionBracketsOrValuesAreNoTrouble) {
  EXPECT_EQ(error_in(file_of("{\"x\":" + std::string(1'000'000, '['))),
            "f: expected JSON nested at most 64 deep, got deeper");
  std::string ones = "{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[1";
  for (int i = 0; i < 1'000'000; ++i) ones += ",1";
  EXPECT_EQ(parse(file_of(ones + "]}}", "!")).at("x").shape.size(), 1'000'001);
}

TEST(Safetensors, FilesAreMappedOrReadAndWritingToATensorLeavesThemAsTheyAre) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.safetensors", file_of(one, eight));
  for (bool map : {true, false}) {
    StoredTensors tensors = read_safetensors(path, map);
    const StoredTensor x = tensors.at("x");
    tensors.clear();  // x holds its memory
    EXPECT_EQ(x.file, path);
    EXPECT_EQ(text_of(x), eight);
    x.bytes[0] = std::byte{'!'};
    EXPECT_EQ(text_of(x), "!2345678");
    EXPECT_EQ(contents(path), file_of(one, eight));
    EXPECT_EQ(text_of(read_safetensors(path, map).at("x")), eight);
  }
}

TEST(Safetensors, FilesThatCannotBeReadAreNamed) {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& path) { return error_of([&] { read_safetensors(path); }); };
  EXPECT_EQ(error(folder / "no"), folder / "no" + ": cannot open: No such file or directory");
  EXPECT_EQ(error("/dev/null"), "/dev/null: expected a regular file");
  EXPECT_EQ(error(folder.write("empty", "")),
            folder / "empty" + ": expected the 8 bytes of a header's size, got 0 bytes");
  EXPECT_EQ(error(folder.path()),
            folder.path().string() + ": expected model.safetensors or model.safetensors.index.json, got neither");
  folder.write("pytorch_model.bin", "PK");
  EXPECT_EQ(error(folder.path()), folder.path().string() +
                                      ": expected model.safetensors or model.safetensors.index.json, got only "
                                      "pytorch_model.bin: save the model again with safe_serialization=True");
}

TEST(Safetensors, AnIndexAndItsShardsMustAgree) {
  const TemporaryFolder folder;
  const std::string index = folder / "model.safetensors.index.json";
  const auto error = [&](const std::string& text) {
    folder.write("model.safetensors.index.json", text);
    return error_of([&] { read_safetensors(folder.path()); });
  };
  const auto shard = [](const std::string& name) {
    return file_of("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "!");
  };
  folder.write("a", shard("x"));
  folder.write("b", shard("y"));
  folder.write("b2", shard("y"));
  EXPECT_EQ(error(R"({"weight_map":{"x":"a","y":"b"}})"), "no error");
  EXPECT_EQ(read_safetensors(folder.path()).size(), 2);
  EXPECT_EQ(error(R"({"weight_map":{"x":"a"}})"), "no error");
  EXPECT_EQ(error("[]"), index + ": weight_map: expected an object, got nothing");
  EXPECT_EQ(error("{"), index +
                            ": not JSON: parse error at line 1, column 2: syntax error while parsing object key - "
                            "unexpected end of input; expected string literal");
  EXPECT_EQ(error(R"({"weight_map":{"x":1}})"), index + ": x: expected the name of a file beside the index, got 1");
  for (const char* outside : {"../a", "/etc/passwd", "..", "", "./a"})
    EXPECT_EQ(error(text(R"({"weight_map":{"x":")", outside, "\"}}")),
              text(index, ": x: expected the name of a file beside the index, got \"", outside, '"'));
  EXPECT_EQ(error(R"({"weight_map":{"x":"a","y":"c"}})"), index + ": names c, which is missing");
  EXPECT_EQ(error(R"({"weight_map":{"x":"a","z":"b"}})"), index + ": z: expected in b, which has no such tensor");
  EXPECT_EQ(error(R"({"weight_map":{"x":"b"}})"), index + ": x: expected in b, which has no such tensor");
  EXPECT_EQ(error(R"({"weight_map":{"x":"b","y":"a"}})"),
            folder / "a" + ": x: expected in b by the index, got it here");
  EXPECT_EQ(error(R"({"weight_map":{"x":"b","z":"b2"}})"), folder / "b2" + ": y: is also in " + (folder / "b"));
}

// Numbers

TEST(Safetensors, EveryHalfIsTheSameNumberAsAFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto values = to_f32(tensor_of<uint16_t>("x", "F16", {}, {uint16_t(bits)}));
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double expected = exponent == 31 ? std::numeric_limits<double>::infinity()
                                     : std::ldexp(fraction + (exponent ? 1024 : 0), std::max(exponent, 1) - 25);
    if (exponent == 31 && fraction) {
      EXPECT_TRUE(std::isnan(values.at(0))) << bits;
    } else {
      EXPECT_EQ(values.at(0), bits >> 15 ? -expected : expected) << bits;
    }
    EXPECT_EQ(std::signbit(values.at(0)), bits >> 15) << bits;
  }
}

TEST(Safetensors, ElementsBecomeNumbers) {
  EXPECT_EQ(to_f32(tensor_of<float>("x", "F32", {2}, {1.5f, -2})), (std::vector{1.5f, -2.f}));
  EXPECT_EQ(to_f32(tensor_of<double>("x", "F64", {2}, {0.1, 1e300})), (std::vector{0.1f, float(INFINITY)}));
  EXPECT_EQ(to_f32(tensor_of<uint16_t>("x", "BF16", {3}, {0x3f80, 0xc049, 0})), (std::vector{1.f, -3.140625f, 0.f}));
  EXPECT_EQ(to_f32(tensor_of<float>("x", "F32", {0}, {})), std::vector<float>{});
  EXPECT_EQ(to_i32(tensor_of<int64_t>("x", "I64", {3}, {-100, INT32_MIN, INT32_MAX})),
            (std::vector{-100, INT32_MIN, INT32_MAX}));
  EXPECT_EQ(to_i32(tensor_of<int32_t>("x", "I32", {}, {-1})), std::vector{-1});
  EXPECT_EQ(to_i32(tensor_of<uint8_t>("x", "U8", {2}, {0, 255})), (std::vector{0, 255}));
  EXPECT_EQ(to_i32(tensor_of<uint8_t>("x", "BOOL", {2}, {0, 1})), (std::vector{0, 1}));
  for (int64_t x : {int64_t{INT32_MAX} + 1, int64_t{INT32_MIN} - 1})
    EXPECT_EQ(error_of([&] { to_i32(tensor_of<int64_t>("x", "I64", {}, {x})); }),
              text("x: expected numbers that 32 bits can hold, got ", x));
  EXPECT_EQ(error_of([] { to_i32(parse(file_of(one, eight)).at("x")); }),
            "f: x: expected I64, I32, U8 or BOOL, got F32");
  EXPECT_EQ(error_of([] { to_f32(tensor_of<int32_t>("x", "I32", {}, {1})); }),
            "x: expected F32, F16, BF16 or F64, got I32");
}

// Writing

TEST(Safetensors, WhatIsWrittenIsRead) {
  const TemporaryFolder folder;
  const std::vector<StoredTensor> tensors = some_tensors();
  write_safetensors(folder / "x", tensors, {{"format", "pt"}, {"a\"", "\n"}});
  const StoredTensors again = read_safetensors(folder / "x");
  ASSERT_EQ(again.size(), tensors.size());
  StoredTensors expected;
  for (const StoredTensor& tensor : tensors) expected[tensor.name] = tensor;
  expect_equal(again, expected);
  for (const auto& [name, tensor] : again) EXPECT_TRUE(is_aligned(tensor)) << name;

  write_safetensors(folder / "none", {}, {});
  EXPECT_EQ(contents(folder / "none"), file_of("{}" + std::string(54, ' ')));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);  // no drafts
}

TEST(Safetensors, FilesHaveTheReferenceOrder) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x", some_tensors());
  const std::string header = R"({"__metadata__":{"format":"pt"},"i":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                             R"("a":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]},)"
                             R"("b":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},)"
                             R"("h\"\n\u00e9":{"dtype":"BF16","shape":[1,1,1],"data_offsets":[24,26]},)"
                             R"("u":{"dtype":"U8","shape":[3],"data_offsets":[26,29]}})";
  const std::string file = contents(folder / "x");
  EXPECT_EQ(file.substr(8, header.size()), header);
  EXPECT_EQ((file.size() - 29) % 64, 0);
  EXPECT_EQ(file.find_first_not_of(' ', 8 + header.size()), file.size() - 29);
}

TEST(Safetensors, AFileIsReplacedByItsOwnTensors) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x", file_of(one, eight));
  std::vector<StoredTensor> tensors = list(read_safetensors(path));
  tensors[0].bytes[0] = std::byte{'!'};
  write_safetensors(path, tensors);
  EXPECT_EQ(text_of(read_safetensors(path).at("x")), "!2345678");
  EXPECT_EQ(text_of(tensors[0]), "!2345678");
}

TEST(Safetensors, ALinkIsReplacedAndWhatItLedToStays) {
  const TemporaryFolder folder;
  folder.write("blob", "blob");
  fs::create_symlink("blob", folder / "x");
  write_safetensors(folder / "x", {});
  EXPECT_FALSE(fs::is_symlink(folder / "x"));
  EXPECT_EQ(contents(folder / "blob"), "blob");
}

TEST(Safetensors, WhatCannotBeWrittenIsNamedAndLeavesNothing) {
  const TemporaryFolder folder;
  const std::string path = folder / "x";
  const auto error = [&](const std::vector<StoredTensor>& tensors, const std::string& at) {
    return error_of([&] { write_safetensors(at, tensors); });
  };
  const StoredTensor x = tensor_of<float>("x", "F32", {2}, {1, 2});
  EXPECT_EQ(error({x, x}, path), path + ": x: given twice");
  EXPECT_EQ(error({tensor_of<float>("x", "F32", {3}, {1, 2})}, path),
            path + ": x: expected 12 bytes for F32 (3), got 8");
  EXPECT_EQ(error({tensor_of<float>("x", "F32", {-1}, {1, 2})}, path),
            path + ": x: expected a shape of at most 9223372036854775807 bytes, got (-1)");
  EXPECT_EQ(error({tensor_of<float>("x", "F31", {2}, {1, 2})}, path), path + ": x: unknown dtype \"F31\"");
  EXPECT_EQ(error({tensor_of<float>("__metadata__", "F32", {2}, {1, 2})}, path),
            path + ": __metadata__: is no name for a tensor");
  EXPECT_EQ(error({tensor_of<float>("\xff", "F32", {2}, {1, 2})}, path), "\"\\ufffd\": expected UTF-8");
  EXPECT_EQ(error({x}, folder / "no/x"), folder / "no/x" + ": cannot write: No such file or directory");
  EXPECT_EQ(error({x}, folder.path()), folder.path().string() + ": is a folder");
  EXPECT_TRUE(fs::is_empty(folder.path()));

  // A disk that is full, played by a limit on files: what was there stays.
  folder.write("x", "before");
  rlimit limit{}, small{};
  getrlimit(RLIMIT_FSIZE, &limit);
  small = {20, limit.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string full = error({x}, path);
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(full, path + ": cannot write: File too large");
  EXPECT_EQ(contents(path), "before");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(Safetensors, ShardsAreFilledInOrderAndReadBack) {
  const TemporaryFolder folder;
  const auto names = [&] {
    std::string all;
    std::set<std::string> files;
    for (const auto& entry : fs::directory_iterator(folder.path())) files.insert(entry.path().filename());
    for (const std::string& file : files) all += file + " ";
    return all;
  };
  std::vector<StoredTensor> tensors;
  for (const char* name : {"d", "b", "c", "a"}) tensors.push_back(tensor_of<float>(name, "F32", {2}, {1, 2}));
  write_sharded(folder / "new", tensors, 16);
  fs::remove_all(folder / "new");

  folder.write("other.safetensors", "");
  for (uint64_t most : {32, 24, 16, 8, 1, 24, 33}) {
    write_sharded(folder.path(), tensors, most);
    const StoredTensors again = read_safetensors(folder.path());
    ASSERT_EQ(again.size(), 4);
    for (const StoredTensor& tensor : tensors) EXPECT_EQ(text_of(again.at(tensor.name)), text_of(tensor));
    if (most == 24) {
      EXPECT_EQ(names(),
                "model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
                "model.safetensors.index.json other.safetensors ");
      EXPECT_EQ(contents(folder / "model.safetensors.index.json"), R"({
  "metadata": {
    "total_size": 32
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00001-of-00002.safetensors",
    "d": "model-00001-of-00002.safetensors"
  }
}
)");
    }
  }
  EXPECT_EQ(names(), "model.safetensors other.safetensors ");
  tensors.push_back(tensors[0]);
  EXPECT_EQ(error_of([&] { write_sharded(folder.path(), tensors, 8); }),
            folder / "model-00005-of-00005.safetensors" + ": d: given twice");
  EXPECT_EQ(read_safetensors(folder.path()).size(), 4);
}

// Files of the reference implementation

TEST(SafetensorsFixture, AreReadAndWrittenAsTheReferenceDoes) {
  const std::string hf = shared_folder() + "/fixtures/hf";
  if (!fs::exists(hf)) GTEST_SKIP() << "no " << hf;
  const TemporaryFolder folder;
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(hf)) {
    const fs::path& path = entry.path();
    if (path.extension() != ".safetensors") continue;
    ++files;
    const std::string file = contents(path), metadata = "{\"__metadata__\":{\"format\":\"pt\"}";
    const StoredTensors tensors = read_safetensors(path), copied = read_safetensors(path, false);
    expect_equal(tensors, copied);
    const bool has_metadata = file.substr(8, metadata.size()) == metadata;
    write_safetensors(folder / "x", list(tensors), has_metadata ? Metadata{{"format", "pt"}} : Metadata{});
    const std::string again = contents(folder / "x");
    const auto header = [](const std::string& whole) {  // without the spaces at its end
      uint64_t size = 0;
      std::memcpy(&size, whole.data(), 8);
      const std::string padded = whole.substr(8, size);
      return padded.substr(0, padded.find_last_not_of(' ') + 1);
    };
    EXPECT_EQ(header(again), header(file)) << path;
    size_t data = 0;
    for (const auto& [name, tensor] : tensors) data += tensor.bytes.size();
    EXPECT_TRUE(again.substr(again.size() - data) == file.substr(file.size() - data)) << path;
  }
  EXPECT_GE(files, 50);
}

TEST(SafetensorsFixture, OfTwoShards) {
  const std::string gpt2 = shared_folder() + "/fixtures/hf/gpt2_bf16_sharded";
  if (!fs::exists(gpt2)) GTEST_SKIP() << "no " << gpt2;
  const StoredTensors tensors = read_safetensors(gpt2);
  uint64_t total = 0, first_shard = 0;
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(tensor.dtype, "BF16");
    total += tensor.bytes.size();
    if (tensor.file.ends_with("model-00001-of-00002.safetensors")) first_shard += tensor.bytes.size();
  }
  EXPECT_EQ(total, 228864);
  EXPECT_EQ(tensors.at("transformer.wte.weight").shape, (Shape{160, 64}));
  for (float x : to_f32(tensors.at("transformer.wte.weight"))) ASSERT_LT(std::abs(x), 10);

  // In the order that the model has them, they are split where Hugging Face split them.
  std::vector<StoredTensor> in_order = list(tensors);
  std::stable_sort(in_order.begin(), in_order.end(),
                   [](const StoredTensor& a, const StoredTensor& b) { return a.file < b.file; });
  const TemporaryFolder folder;
  write_sharded(folder.path(), in_order, first_shard);
  EXPECT_EQ(contents(folder / "model.safetensors.index.json"), contents(gpt2 + "/model.safetensors.index.json"));
  expect_equal(read_safetensors(folder.path()), tensors);
}

// What is nearly a file

TEST(Safetensors, AlteredFilesAreRefusedOrStillRight) {
  const char* wish = std::getenv("DENSE_FUZZ_ROUNDS");
  const int rounds = wish ? std::atoi(wish) : 20'000;
  const TemporaryFolder folder;
  write_safetensors(folder / "x", some_tensors());
  const std::string valid = contents(folder / "x");
  const std::string pieces[] = {"0",
                                "1",
                                "-1",
                                "8",
                                "29",
                                "18446744073709551616",
                                "9223372036854775807",
                                "1.5",
                                "[",
                                "]",
                                "{",
                                "}",
                                "\"",
                                ",",
                                ":",
                                "null",
                                "true",
                                "[]",
                                "{}",
                                "[0,0]",
                                "\"F32\"",
                                "U",
                                "a",
                                "\\",
                                "\xff",
                                " ",
                                "\"b\"",
                                "\"shape\"",
                                "\"dtype\"",
                                "\"data_offsets\"",
                                "\0"s};
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return random() % n; };
  int accepted = 0, refused = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string file = valid;
    for (size_t n = 1 + below(3); n-- > 0 && !file.empty();) {
      const size_t at = below(2) ? below(file.size()) : 8 + below(file.size() - std::min<size_t>(file.size() - 1, 8));
      if (at >= file.size()) continue;
      const std::string& piece = pieces[below(std::size(pieces))];
      switch (below(7)) {
        case 0: file[at] = char(below(256)); break;                  // a byte
        case 1: file[at] = char(file[at] ^ (1 << below(8))); break;  // a bit
        case 2: file.resize(at); break;                              // cut short
        case 3: file.insert(at, piece); break;                       // the header's size no longer fits
        case 4: file.replace(at, std::min(piece.size(), file.size() - at), piece); break;
        case 5: file += piece; break;
        case 6:  // a longer header, said to be so
          if (file.size() > 16 && at > 8) file = file_of(file.substr(8, at - 8) + piece + file.substr(at));
      }
    }
    StoredTensors tensors;
    const std::string error = error_of([&] { tensors = parse(file, below(8)); });
    EXPECT_EQ(error.find('\n'), error.npos);
    EXPECT_LT(error.size(), 500u);
    ++(error == "no error" ? accepted : refused);
    for (const auto& [name, tensor] : tensors) {
      EXPECT_TRUE(is_aligned(tensor));
      const std::string ignored = text_of(tensor);  // ASan checks that the bytes are there
    }
    if (error == "no error" && round % 16 == 0) {  // what is accepted can be written and is the same again
      write_safetensors(folder / "y", list(tensors));
      expect_equal(read_safetensors(folder / "y"), tensors);
    }
  }
  EXPECT_GE(accepted, rounds / 100);  // the test must reach both outcomes
  EXPECT_GE(refused, rounds / 2);
}

}  // namespace
