#include "dense/io/tokenizer.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <string_view>
#include <vector>

#include "python/tokenizer.h"

namespace dense::python {
namespace {

using namespace pybind11::literals;

constexpr char tokenizer_doc[] = R"(
The tokenizer of a Hugging Face folder, or of a tokenizer.json.

    t = dense.Tokenizer("gpt2/")
    t.encode("Hello world")                # [15496, 995]
    t.decode([15496, 995])                 # 'Hello world'

Threads may use one tokenizer at the same time. Raises Error for what is not supported, by its name.)";

constexpr char encode_doc[] = R"(
The ids of a text, a list. special: with the tokens that the model expects around a text, such as [CLS] and [SEP].)";

constexpr char decode_doc[] = R"(
The text of ids. skip_special: without special tokens. Raises Error for an id that has no token.)";

constexpr char stream_doc[] = R"(
Text as its tokens come: what push and finish return, one after the other, is what decode gives for all ids.

    stream = dense.TextStream(t)
    for id in ids:
        print(stream.push(id), end="", flush=True)
    print(stream.finish()))";

std::vector<int32_t> encode(const Tokenizer& self, std::string_view text, bool special) {
  const py::gil_scoped_release release;
  return self.encode(text, special);
}
std::string decode(const Tokenizer& self, const std::vector<int32_t>& ids, bool skip_special) {
  const py::gil_scoped_release release;
  return self.decode(ids, skip_special);
}
std::string repr(const Tokenizer& self) { return "<dense.Tokenizer: " + std::to_string(self.size()) + " ids>"; }

}  // namespace

void add_tokenizer(py::module_& m) {
  py::class_<Tokenizer>(m, "Tokenizer", py::is_final(), tokenizer_doc)
      .def(py::init<const std::filesystem::path&>(), "path"_a, py::call_guard<py::gil_scoped_release>())
      .def("encode", encode, "text"_a, "special"_a = false, encode_doc)
      .def("decode", decode, "ids"_a, "skip_special"_a = false, decode_doc)
      .def("id_of", &Tokenizer::id_of, "token"_a, "The id of a token, or None.")
      .def("token_of", &Tokenizer::token_of, "id"_a, "The token of an id, or None.")
      .def("__len__", &Tokenizer::size, "Ids are below.")
      .def("__repr__", repr);
  py::class_<TextStream>(m, "TextStream", py::is_final(), stream_doc)
      .def(py::init<const Tokenizer&, bool>(), "tokenizer"_a, "skip_special"_a = false)
      .def("push", &TextStream::push, "id"_a, "The text that is complete with this id; often a word, or nothing yet.")
      .def("finish", &TextStream::finish, "The text that is left; the next push begins a new one.");
}

}  // namespace dense::python
