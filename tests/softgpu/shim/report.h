// How the software device reports what a program did wrong: one line on stderr that begins with "softgpu: ".
#pragma once
#include <string>

namespace softgpu {
// Exit code of a process that is ended because of a report (SOFTGPU_STRICT=1, the default).
constexpr int kExitCode = 97;

// Prints "softgpu: TEXT". Under SOFTGPU_STRICT=1 it ends the process with kExitCode; under 0 it returns, and the
// caller returns an error to the program as a card would.
void complain(const std::string& text);
// For things that the device itself cannot do; always ends the process.
[[noreturn]] void fatal(const std::string& text);
bool strict();
// Environment variables, or the default if they are absent.
long setting(const char* name, long otherwise);
std::string setting(const char* name, const char* otherwise);
}  // namespace softgpu
