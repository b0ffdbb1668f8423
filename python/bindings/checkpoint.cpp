#include "anyprec/checkpoint.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <mutex>
#include <optional>

#include "anyprec/error.h"
#include "bindings.h"

namespace anyprec::python {
namespace {

namespace py = pybind11;

// The tensor's bytes as a read-only array that keeps the mapping alive.
py::array data_of(py::object self, const std::string& name) {
  const TensorView view = self.cast<const Checkpoint&>().tensor(name);
  py::array_t<std::uint8_t> array({static_cast<py::ssize_t>(view.bytes)},
                                  reinterpret_cast<const std::uint8_t*>(view.data), self);
  array.attr("flags").attr("writeable") = false;
  return array;
}

py::dict codebook_of(const Checkpoint& checkpoint) {
  const CodebookForm& form = checkpoint.config().codebook;
  py::dict codebook;
  codebook["lut_bits"] = form.lut_bits;
  codebook["cell_groups"] = std::string(to_string(form.cell_groups));
  codebook["group_size"] = form.group_size;
  return codebook;
}

// CheckpointWriter with an explicit end, since Python's garbage collector picks its own time.
class Writer {
 public:
  Writer(const std::filesystem::path& directory, const std::string& config_json,
         const std::string& options_json, bool overwrite, std::uint64_t shard_bytes)
      : writer_(std::in_place, directory, config_json, options_json, overwrite, shard_bytes) {}

  void add(const std::string& name, const std::string& dtype,
           const std::vector<std::int64_t>& shape, const py::array& data) {
    if ((data.flags() & py::array::c_style) == 0) {
      throw InvalidArgument(name + ": the array is not C-contiguous");
    }
    const std::span bytes(static_cast<const std::byte*>(data.data()),
                          static_cast<std::size_t>(data.nbytes()));
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    open().add(name, dtype, shape, bytes);
  }
  void add_file(const std::string& file_name, const py::bytes& data) {
    const std::string_view text(data);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    open().add_file(file_name, std::as_bytes(std::span(text.data(), text.size())));
  }
  void finish() {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    open().finish();
    writer_.reset();
  }
  void abort() {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    writer_.reset();
  }

 private:
  CheckpointWriter& open() {
    if (!writer_) throw InvalidArgument("CheckpointWriter: it has been finished or aborted");
    return *writer_;
  }
  // Hashing and writing leave Python's other threads alone, which may come here too.
  std::mutex mutex_;
  std::optional<CheckpointWriter> writer_;
};

}  // namespace

void bind_checkpoint(py::module_& module) {
  py::class_<Checkpoint>(module, "Checkpoint", "Memory-mapped reader of a checkpoint directory.")
      .def(py::init<const std::filesystem::path&, std::vector<int>>(), py::arg("directory"),
           py::arg("precisions") = std::vector<int>{})
      .def_property_readonly("config",
                             [](const Checkpoint& c) {
                               return py::module_::import("json").attr("loads")(c.config_json());
                             })
      .def_property_readonly("available_precisions",
                             [](const Checkpoint& c) { return c.available_precisions(); })
      .def_property_readonly("precisions", &Checkpoint::precisions)
      .def_property_readonly(
          "modules",
          [](const Checkpoint& c) {
            py::list modules;
            for (const auto& m : c.config().modules) {
              modules.append(py::make_tuple(m.name, m.out_features, m.in_features));
            }
            return modules;
          })
      .def_property_readonly("codebook", &codebook_of)
      .def_property_readonly("bytes_mapped", &Checkpoint::bytes_mapped)
      .def_property_readonly("files",
                             [](const Checkpoint& c) {
                               std::vector<std::string> files;
                               for (const auto& file : c.files()) files.push_back(file.string());
                               return files;
                             })
      .def("tensor_names", &Checkpoint::tensor_names)
      .def("__contains__", &Checkpoint::contains)
      .def("dtype",
           [](const Checkpoint& c, const std::string& name) { return c.tensor(name).dtype; })
      .def("shape",
           [](const Checkpoint& c, const std::string& name) { return c.tensor(name).shape; })
      .def("data", &data_of, py::arg("name"),
           "The tensor's bytes: uint8 [nbytes], read-only, zero-copy.");

  py::class_<Writer>(module, "CheckpointWriter", "Writes a checkpoint directory atomically.")
      .def(py::init<const std::filesystem::path&, const std::string&, const std::string&, bool,
                    std::uint64_t>(),
           py::arg("directory"), py::arg("config_json"), py::arg("options_json") = "{}",
           py::arg("overwrite") = false, py::arg("shard_bytes") = std::uint64_t{5} << 30)
      .def("add", &Writer::add, py::arg("name"), py::arg("dtype"), py::arg("shape"),
           py::arg("data"))
      .def("add_file", &Writer::add_file, py::arg("file_name"), py::arg("data"))
      .def("finish", &Writer::finish)
      .def("abort", &Writer::abort);

  module.def(
      "verify_checkpoint",
      [](const std::filesystem::path& directory) {
        VerifyReport report;
        {
          const py::gil_scoped_release release;
          report = verify_checkpoint(directory);
        }
        py::dict result;
        result["tensors"] = report.tensors;
        result["bytes"] = report.bytes;
        result["problems"] = report.problems;
        return result;
      },
      py::arg("directory"), "{'tensors': int, 'bytes': int, 'problems': [str, ...]}");
}

}  // namespace anyprec::python
