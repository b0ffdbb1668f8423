#include "tests/cpp/format/system_calls.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace anyprec::testing {
namespace {

SystemCallHook installed;

/// Whether the call shall fail; then errno is set.
bool refused(SystemCall call, bool directory) {
  const int error = installed ? installed(call, directory) : 0;
  if (error != 0) errno = error;
  return error != 0;
}

SystemCall kind_of(unsigned flags) {
  if (flags == RENAME_EXCHANGE) return SystemCall::kRenameExchange;
  return flags == RENAME_NOREPLACE ? SystemCall::kRenameNoReplace : SystemCall::kRename;
}

}  // namespace

HookedSystemCalls::HookedSystemCalls(SystemCallHook hook) { installed = std::move(hook); }
HookedSystemCalls::~HookedSystemCalls() { installed = nullptr; }

}  // namespace anyprec::testing

using anyprec::testing::SystemCall;

extern "C" int fsync(int descriptor) {
  struct stat status;
  const bool directory = fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode);
  if (anyprec::testing::refused(SystemCall::kFsync, directory)) return -1;
  return 0;  // the tests do not crash the machine, so nothing needs to reach the disk
}

extern "C" int rename(const char* from, const char* to) noexcept {
  if (anyprec::testing::refused(SystemCall::kRename, true)) return -1;
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

extern "C" int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                         unsigned flags) noexcept {
  if (anyprec::testing::refused(anyprec::testing::kind_of(flags), true)) return -1;
  return static_cast<int>(syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}
