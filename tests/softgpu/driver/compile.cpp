// From a .cu file to machine code of the host: preprocess, find the kernels, append their description, compile.
//
// Kernels are found after preprocessing, by the attributes that the shim's keywords expand to, so macros that write
// kernels work. For each `extern "C" __global__` function a trailer describes its arguments by templates.
#include "compile.h"
#include "../shim/report.h"
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace softgpu {
std::string read_file(const std::string& path) {
    std::string text;
    if (FILE* file = fopen(path.c_str(), "rb")) {
        char part[65536];
        for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
        fclose(file);
    }
    return text;
}
void write_file(const std::string& path, const std::string& text) {
    FILE* file = fopen(path.c_str(), "wb");
    if (!file || fwrite(text.data(), 1, text.size(), file) != text.size() || fclose(file)) fatal("cannot write " + path);
}

// Runs a command, its output into `log`; true when it succeeded.
static bool run(const std::vector<std::string>& command, const std::string& log) {
    std::vector<char*> argv;
    for (auto& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int failed = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        write_file(log, command[0] + ": " + strerror(failed) + " (softgpu needs g++; Debian: apt-get install g++)\n");
        return false;
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// ---- finding the kernels of a preprocessed source --------------------------------------------------------------------
struct Found {
    std::string name, bounds;
};
static size_t matching(const std::string& text, size_t open) {
    int depth = 0;
    for (size_t i = open; i < text.size(); i++) {
        if (text[i] == '(') depth++;
        if (text[i] == ')' && --depth == 0) return i;
    }
    return text.size() - 1;
}
static bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// From the attribute on: skips further attributes, remembers launch bounds, and takes the word before the parameters.
static Found read_declaration(const std::string& text, size_t at) {
    Found found;
    std::string word;
    for (size_t i = at; i < text.size(); i++) {
        if (is_word(text[i])) {
            size_t start = i;
            while (i < text.size() && is_word(text[i])) i++;
            word = text.substr(start, i - start);
            i--;
        } else if (text[i] == '(') {
            size_t end = matching(text, i);
            if (word != "__attribute__") {
                found.name = word;
                return found;
            }
            std::string attribute = text.substr(i, end - i);
            size_t bounds = attribute.find("softgpu_bounds(");
            if (bounds != std::string::npos) {
                size_t open = attribute.find('(', bounds);
                found.bounds = attribute.substr(open + 1, matching(attribute, open) - open - 1);
            }
            i = end;
        }
    }
    return found;
}
static std::vector<Found> find_kernels(const std::string& text) {
    const std::string marker = "__attribute__((softgpu_kernel))";
    std::vector<Found> all;
    for (size_t at = text.find(marker); at != std::string::npos; at = text.find(marker, at + marker.size())) {
        size_t start = text.find_last_of(";}", at);
        std::string before = text.substr(start == std::string::npos ? 0 : start, at - (start == std::string::npos ? 0 : start));
        if (before.find("extern \"C\"") == std::string::npos) continue;
        size_t declaration = at - before.size() + before.find("extern \"C\"");
        Found found = read_declaration(text, declaration);
        bool known = false;  // a declaration before the definition
        for (auto& other : all) known |= other.name == found.name;
        if (!known) all.push_back(found);
    }
    return all;
}
// A library exports its table; a program collects those of all its files.
static std::string trailer(const std::vector<Found>& kernels, bool program) {
    std::string count = std::to_string(kernels.size()), linkage = program ? "static " : "extern \"C\" __attribute__((visibility(\"default\"))) ";
    std::string text = "\n" + linkage + "const unsigned softgpu_kernel_count = " + count + ";\n" + linkage +
                       "const ::softgpu::Kernel softgpu_kernels[] = {\n";
    for (auto& k : kernels)
        text += "  ::softgpu::describe(\"" + k.name + "\", " + k.name + ", ::softgpu::first_bound(" + k.bounds + ")),\n";
    text += "};\n";
    if (program)  // after the table in the same file, and so initialised later
        text += "static const bool softgpu_collected = (::softgpu::collect(softgpu_kernels, softgpu_kernel_count), true);\n";
    return text;
}

// ---- the two steps ------------------------------------------------------------------------------------------------
bool compile(const Compilation& c, std::string& log) {
    std::string expanded = c.output + ".expanded.ii", whole = c.output + ".whole.ii", messages = c.output + ".log";
    std::string folder = c.source.substr(0, c.source.rfind('/') + 1);
    std::vector<std::string> common = {setting("SOFTGPU_CXX", "g++"), "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
                                       "-fno-math-errno", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-w",
                                       "-ffile-prefix-map=" + folder + "="};  // messages name files as the project does
    common.insert(common.end(), c.flags.begin(), c.flags.end());
    auto first = common, second = common;
    for (const std::string& word : {std::string("-E"), std::string("-x"), std::string("c++"), std::string("-include"), std::string("cuda_shim.h"),
                                    "-I" + c.shim, "-I" + c.headers, c.source, std::string("-o"), expanded})
        first.push_back(word);
    bool good = run(first, messages);
    if (good) {
        std::string text = read_file(expanded);
        write_file(whole, text + trailer(find_kernels(text), c.program));
        for (const std::string& word : {std::string("-fpreprocessed"), std::string("-x"), std::string("c++-cpp-output"), whole, std::string("-x"),
                                        std::string("none"), std::string("-o"), c.output})
            second.push_back(word);
        second.insert(second.end(), c.libraries.begin(), c.libraries.end());
        good = run(second, messages);
    }
    log = read_file(messages);
    for (const std::string& file : {expanded, whole, messages}) unlink(file.c_str());
    return good;
}
}  // namespace softgpu
