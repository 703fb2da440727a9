// Reports and settings; see report.h.
#include "report.h"
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

namespace softgpu {
long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtol(value, nullptr, 10) : otherwise;
}
std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}
bool strict() { return setting("SOFTGPU_STRICT", 1) != 0; }

// One write, so that lines of several ranks do not mix.
static void print(const std::string& text) {
    std::string line = "softgpu: " + text + "\n";
    fflush(stdout);
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}
void complain(const std::string& text) {
    print(text);
    if (strict()) _exit(kExitCode);
}
void fatal(const std::string& text) {
    print(text);
    _exit(kExitCode);
}
}  // namespace softgpu
