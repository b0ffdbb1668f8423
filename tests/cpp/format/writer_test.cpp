// Nothing but a whole checkpoint ever exists under the final name; what goes wrong is a typed error
// that leaves nothing behind.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>

#include "anyprec/error.h"
#include "tests/cpp/format/example.h"
#include "tests/cpp/format/system_calls.h"

namespace anyprec::testing {
namespace {

const std::vector<std::string> kNothing;
const std::vector<std::string> kOnlyOut = {"out"};

/// Expects `Expected` with every one of `parts` in its message.
template <typename Expected>
void expect_error(const std::function<void()>& action, std::initializer_list<std::string> parts) {
  try {
    action();
    ADD_FAILURE() << "no error";
  } catch (const Expected& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "\"" << part << "\" is not in: " << error.what();
    }
  }
}

void expect_whole(const std::filesystem::path& directory, const Example& example) {
  EXPECT_EQ(verify_checkpoint(directory).problems, kNothing);
  EXPECT_EQ(read_file(directory / "tokenizer.json"), example.files.at("tokenizer.json"));
}

/// Runs `action` in a child process; returns how it ended, as waitpid says.
int in_child(const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      action();
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

bool was_killed(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL; }

TEST(Writer, GivesTheSameBytesInWhateverOrderTensorsAreAdded) {
  const TemporaryDirectory directory;
  const Example example = make_example({4, CellGroups::kIo, 0}, {2, 3, 4, 5}, odd_modules(), 1);
  for (const std::uint64_t shard_bytes : {std::uint64_t{1} << 30, std::uint64_t{128}}) {
    const std::string a = std::to_string(shard_bytes) + "a";
    const std::string b = std::to_string(shard_bytes) + "b";
    write_example(example, directory / a, {.shard_bytes = shard_bytes});
    write_example(example, directory / b, {.shard_bytes = shard_bytes, .reversed = true});
    EXPECT_EQ(read_directory(directory / a), read_directory(directory / b));
  }
}

TEST(Writer, MakesTheParentsOfItsDirectory) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  write_example(example, directory / "a/b/../c/");
  expect_whole(directory / "a/c", example);
}

TEST(Writer, ThatIsDestroyedEarlyLeavesNothing) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  {
    CheckpointWriter writer(directory / "out", example.config_json);
    add_everything(example, writer);
    EXPECT_EQ(directory.entries().size(), 1u);  // the temporary directory
    EXPECT_TRUE(directory.entries()[0].starts_with("out.partial-"));
  }
  EXPECT_EQ(directory.entries(), kNothing);
}

TEST(Writer, RefusesToReplaceUnlessAsked) {
  const TemporaryDirectory directory;
  const Example first = tiny_example(1);
  write_example(first, directory / "out");
  expect_error<InvalidArgument>([&] { write_example(tiny_example(2), directory / "out"); },
                                {"out: exists", "overwrite"});
  expect_whole(directory / "out", first);
  EXPECT_EQ(directory.entries(), kOnlyOut);
}

TEST(Writer, RefusesADirectoryThatAppearedMeanwhile) {
  const TemporaryDirectory directory;
  const Example first = tiny_example(1);
  const Example second = tiny_example(2);
  CheckpointWriter writer(directory / "out", second.config_json);
  add_everything(second, writer);
  write_example(first, directory / "out");
  expect_error<InvalidArgument>([&] { writer.finish(); }, {"out: exists"});
  expect_whole(directory / "out", first);
  EXPECT_EQ(directory.entries(), kOnlyOut);
}

TEST(Writer, ReplacesACheckpointOrAnEmptyDirectoryWhenAsked) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "out");
  for (const std::uint32_t seed : {1u, 2u}) {
    const Example example = tiny_example(seed);
    write_example(example, directory / "out", {.overwrite = true});
    expect_whole(directory / "out", example);
    EXPECT_EQ(directory.entries(), kOnlyOut);
  }
}

TEST(Writer, ReplacesWhereTheFileSystemCannotExchange) {
  const TemporaryDirectory directory;
  write_example(tiny_example(1), directory / "out");
  const Example second = tiny_example(2);
  {
    const HookedSystemCalls hook(
        [](SystemCall call, bool) { return call == SystemCall::kRenameExchange ? EINVAL : 0; });
    write_example(second, directory / "out", {.overwrite = true});
  }
  expect_whole(directory / "out", second);
  const Example third = tiny_example(3);
  {
    const HookedSystemCalls hook([](SystemCall call, bool) {
      return call == SystemCall::kRenameExchange || call == SystemCall::kRenameNoReplace ? ENOSYS
                                                                                         : 0;
    });
    write_example(third, directory / "out", {.overwrite = true});
    write_example(third, directory / "new");
  }
  expect_whole(directory / "out", third);
  expect_whole(directory / "new", third);
  EXPECT_EQ(directory.entries(), (std::vector<std::string>{"new", "out"}));
}

TEST(Writer, ReplacesTheTargetOfASymbolicLink) {
  const TemporaryDirectory directory;
  write_example(tiny_example(1), directory / "real");
  std::filesystem::create_directory_symlink(directory / "real", directory / "link");
  const Example second = tiny_example(2);
  write_example(second, directory / "link", {.overwrite = true});
  EXPECT_TRUE(std::filesystem::is_symlink(directory / "link"));
  expect_whole(directory / "real", second);
}

TEST(Writer, NeverReplacesWhatIsNoCheckpoint) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "home");
  write_file(directory / "home/thesis.txt", "years of work");
  write_file(directory / "file", "text");
  std::filesystem::create_symlink(directory / "nowhere", directory / "dangling");
  for (const char* name : {"home", "file", "dangling"}) {
    expect_error<InvalidArgument>(
        [&] { write_example(tiny_example(), directory / name, {.overwrite = true}); },
        {"neither a checkpoint"});
  }
  EXPECT_EQ(read_file(directory / "home/thesis.txt"), "years of work");
  EXPECT_EQ(directory.entries(), (std::vector<std::string>{"dangling", "file", "home"}));
}

/// Kills a child that writes `example` before the n-th file or directory is synced or renamed, and
/// before the n-th tensor is added, for every n; `check` looks at what is left each time. Returns
/// how many kills there were.
int kill_at_every_point(const Example& example, const std::filesystem::path& directory,
                        bool overwrite, const std::function<void()>& check) {
  for (int point = 0;; ++point) {
    const int status = in_child([&] {
      int count = 0;
      const auto pass = [&] {
        if (count++ == point) ::kill(::getpid(), SIGKILL);
      };
      const HookedSystemCalls hook([&](SystemCall, bool) {
        pass();
        return 0;
      });
      CheckpointWriter writer(directory, example.config_json, "{}", overwrite);
      for (const auto& [name, tensor] : example.tensors) {
        writer.add(name, tensor.dtype, tensor.shape, tensor.data);
        pass();
      }
      for (const auto& [name, content] : example.files) {
        writer.add_file(name, std::as_bytes(std::span(content)));
      }
      writer.finish();
      pass();
    });
    if (!was_killed(status)) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
      return point;
    }
    SCOPED_TRACE("killed at point " + std::to_string(point));
    check();
  }
}

TEST(KilledWriter, LeavesNothingOrAWholeCheckpointUnderTheFinalName) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  int absent = 0;
  int whole = 0;
  const int kills = kill_at_every_point(example, directory / "out", false, [&] {
    if (!std::filesystem::exists(directory / "out")) {
      ++absent;
      return;
    }
    ++whole;
    expect_whole(directory / "out", example);
    std::filesystem::remove_all(directory / "out");
  });
  // One point for each tensor, file, directory, the rename, and the end.
  EXPECT_GT(kills, static_cast<int>(example.tensors.size()) + 8);
  EXPECT_EQ(absent + whole, kills);
  EXPECT_EQ(whole, 2);  // before the parent's sync, and after everything
  expect_whole(directory / "out", example);
}

TEST(KilledWriter, LeavesTheOldCheckpointOrTheNewOne) {
  const TemporaryDirectory directory;
  const Example old_example = tiny_example(1);
  const Example new_example = tiny_example(2);
  write_example(old_example, directory / "out");
  int replaced = 0;
  const int kills = kill_at_every_point(new_example, directory / "out", true, [&] {
    const bool is_new =
        read_file(directory / "out/tokenizer.json") == new_example.files.at("tokenizer.json");
    expect_whole(directory / "out", is_new ? new_example : old_example);
    if (is_new) {
      ++replaced;
      write_example(old_example, directory / "out", {.overwrite = true});
    }
  });
  EXPECT_GT(kills, static_cast<int>(new_example.tensors.size()) + 8);
  EXPECT_EQ(replaced, 2);
  expect_whole(directory / "out", new_example);
}

TEST(Writer, ThatCannotSyncOrRenameThrowsAndLeavesNothing) {
  const Example example = tiny_example();
  int failures = 0;
  for (bool finished = false; !finished; ++failures) {
    const TemporaryDirectory directory;
    int count = 0;
    const HookedSystemCalls hook([&](SystemCall, bool) { return count++ == failures ? EIO : 0; });
    try {
      write_example(example, directory / "out");
      finished = true;
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find(std::strerror(EIO)), std::string::npos)
          << error.what();
      EXPECT_EQ(directory.entries(), kNothing) << "failure " << failures;
    }
  }
  EXPECT_GT(failures, 8);
}

TEST(Writer, ThatCannotReplaceKeepsTheOldCheckpoint) {
  const TemporaryDirectory directory;
  const Example old_example = tiny_example(1);
  const Example new_example = tiny_example(2);
  write_example(old_example, directory / "out");
  for (const bool can_exchange : {true, false}) {
    int failures = 0;
    for (bool finished = false; !finished; ++failures) {
      int count = 0;
      {
        const HookedSystemCalls hook([&](SystemCall call, bool) {
          if (call == SystemCall::kRenameExchange && !can_exchange) return EINVAL;
          return count++ == failures ? EIO : 0;
        });
        try {
          write_example(new_example, directory / "out", {.overwrite = true});
          finished = true;
        } catch (const IoError&) {
          expect_whole(directory / "out", old_example);
        }
      }
      EXPECT_EQ(directory.entries(), kOnlyOut) << "failure " << failures;
    }
    expect_whole(directory / "out", new_example);
    EXPECT_GT(failures, 8);
    write_example(old_example, directory / "out", {.overwrite = true});
  }
}

TEST(Writer, NamesTheFileAndTheReasonWhenTheDiskIsFull) {
  const TemporaryDirectory directory;
  const Example example =
      make_example({8, CellGroups::kOne, 0}, {2, 3}, {{"a", 64, 512}}, 3);  // planes of 4 KiB
  // A limit on the size of files fails a write in the middle, as a full disk does.
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{6000, 6000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    CheckpointWriter writer(directory / "out", example.config_json);
    bool named = false;
    try {
      add_everything(example, writer);
    } catch (const IoError& error) {
      const std::string message = error.what();
      named = message.find("out.partial-") != std::string::npos &&
              message.find(std::strerror(EFBIG)) != std::string::npos;
    }
    // The writer still lives, and has already removed what it wrote.
    const bool clean = directory.entries().empty();
    bool spent = false;
    try {
      writer.finish();
    } catch (const InvalidArgument&) {
      spent = true;
    }
    ::_exit(named && clean && spent ? 42 : 1);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

TEST(Writer, FailsInFinishWhenTheDiskIsFullThen) {
  const TemporaryDirectory directory;
  const Example example = make_example({8, CellGroups::kOne, 0}, {2, 3}, {{"a", 64, 512}}, 3);
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    CheckpointWriter writer(directory / "out", example.config_json);
    add_everything(example, writer);
    const rlimit limit{6000, 6000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      writer.finish();
    } catch (const IoError& error) {
      const bool named = std::string(error.what()).find(".safetensors") != std::string::npos;
      ::_exit(named && directory.entries().empty() ? 42 : 2);
    }
    ::_exit(3);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

TEST(Writer, RejectsTensorsThatTheConfigDoesNotAskFor) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();  // "up" is [3, 5]; L = 1; precisions 2, 3
  CheckpointWriter writer(directory / "out", example.config_json);
  const std::vector<std::byte> bytes(64);
  const auto add = [&](const std::string& name, const std::string& dtype,
                       std::vector<std::int64_t> shape, std::size_t size) {
    return [&, name, dtype, shape, size] {
      writer.add(name, dtype, shape, std::span(bytes).first(size));
    };
  };
  expect_error<InvalidArgument>(add("up.plane.0", "U8", {3, 2}, 6),
                                {"up.plane.0", "[3, 2]", "[3, 1]"});
  expect_error<InvalidArgument>(add("up.plane.0", "I8", {3, 1}, 3), {"I8 [3, 1]", "U8 [3, 1]"});
  expect_error<InvalidArgument>(add("up.plane.0", "U8", {3, 1}, 4), {"4 bytes", "wanted 3"});
  expect_error<InvalidArgument>(add("up.lut.2", "F32", {3, 1, 2}, 24), {"up.lut.2", "F32", "F16"});
  for (const char* name : {"up.plane.3", "up.lut.4", "up.alpha.8", "up.weight"}) {
    expect_error<InvalidArgument>(add(name, "U8", {3}, 3), {name, "quantized module"});
  }
  expect_error<InvalidArgument>(add("x", "F4", {8}, 4), {"\"x\"", "F4"});
  expect_error<InvalidArgument>(add("x", "U8", {-1}, 0), {"\"x\"", "shape"});
  const std::int64_t huge = std::int64_t{1} << 40;
  expect_error<InvalidArgument>(add("x", "U8", {huge, huge}, 0), {"shape"});
  expect_error<InvalidArgument>(add("", "U8", {3}, 3), {"not a name"});
  expect_error<InvalidArgument>(add("__metadata__", "U8", {3}, 3), {"not a name"});
  expect_error<InvalidArgument>(add("\xff", "U8", {3}, 3), {"not a name"});
  writer.add("up.weights", "U8", std::vector<std::int64_t>{3}, std::span(bytes).first(3));
  expect_error<InvalidArgument>(add("up.weights", "U8", {3}, 3), {"added twice"});

  // None of it has spoiled the writer.
  add_everything(example, writer);
  writer.finish();
  expect_whole(directory / "out", example);
}

TEST(Writer, RejectsDataThatVerificationWouldReject) {
  const TemporaryDirectory directory;
  const Example example = tiny_example();
  CheckpointWriter writer(directory / "out", example.config_json);
  ExampleTensor plane = example.tensors.at("up.plane.1");
  plane.data[1] |= std::byte{0x20};  // K = 5: bits 5 to 7 are padding
  expect_error<InvalidArgument>(
      [&] { writer.add("up.plane.1", plane.dtype, plane.shape, plane.data); },
      {"up.plane.1", "row 1", "padding"});
  ExampleTensor alpha = example.tensors.at("up.alpha.3");
  alpha.data[5] = std::byte{0xFC};  // -infinity, or a NaN
  expect_error<InvalidArgument>(
      [&] { writer.add("up.alpha.3", alpha.dtype, alpha.shape, alpha.data); },
      {"up.alpha.3", "element 2", "NaN"});
}

TEST(Writer, RejectsFilesThatAreNotPlainOrItsOwn) {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory / "out", tiny_example().config_json);
  for (const char* name : {"", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "a\nb", "\xff"}) {
    expect_error<InvalidArgument>([&] { writer.add_file(name, {}); }, {"plain"});
  }
  for (const char* name : {"config.json", "anyprec_manifest.json", "model.safetensors.index.json",
                           "model-base.safetensors", "x.safetensors"}) {
    expect_error<InvalidArgument>([&] { writer.add_file(name, {}); }, {name, "itself"});
  }
  writer.add_file("x", {});
  expect_error<InvalidArgument>([&] { writer.add_file("x", {}); }, {"added twice"});
}

TEST(Writer, NamesAMissingTensorAndCanGoOn) {
  const TemporaryDirectory directory;
  Example example = tiny_example();
  CheckpointWriter writer(directory / "out", example.config_json);
  const ExampleTensor lut = example.tensors.at("up.lut.2");
  example.tensors.erase("up.lut.2");
  add_everything(example, writer);
  expect_error<InvalidArgument>([&] { writer.finish(); }, {"1 of 7", "up.lut.2"});
  writer.add("up.lut.2", lut.dtype, lut.shape, lut.data);
  writer.finish();
  expect_whole(directory / "out", example);
  expect_error<InvalidArgument>([&] { writer.finish(); }, {"finished"});
  expect_error<InvalidArgument>([&] { writer.add_file("x", {}); }, {"finished"});
}

TEST(Writer, RejectsWrongArguments) {
  const TemporaryDirectory directory;
  const std::string config = tiny_example().config_json;
  const auto make = [&](const std::string& json, const std::string& options, std::uint64_t shard) {
    return [&, json, options, shard] {
      CheckpointWriter(directory / "out", json, options, false, shard);
    };
  };
  expect_error<InvalidArgument>(make(config, "{}", 0), {"shard_bytes"});
  expect_error<InvalidArgument>(make(config, "[]", 1), {"options_json"});
  expect_error<InvalidArgument>(make(config, "{", 1), {"options_json"});
  expect_error<FormatError>(make("{}", "{}", 1), {"quantization_config is missing"});
  expect_error<InvalidArgument>([&] { CheckpointWriter("/", config); }, {"directory"});
  expect_error<InvalidArgument>([&] { CheckpointWriter("", config); }, {"directory"});
  write_file(directory / "file", "");
  expect_error<IoError>([&] { CheckpointWriter(directory / "file" / "out", config); }, {"file"});
  EXPECT_EQ(directory.entries(), (std::vector<std::string>{"file"}));
}

}  // namespace
}  // namespace anyprec::testing
