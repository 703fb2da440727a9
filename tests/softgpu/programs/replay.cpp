// Runs recorded launches once more in a build with sanitizers: `replay FILE`. Each allocation is made again with its exact
// size, so that AddressSanitizer's red zones begin where the kernel's memory ends.
//
// Prints the name of each launch when it is done. `replay --kernel NAME FILE` runs that kernel only,
// `replay --kernel first FILE` each kernel's first launch: ThreadSanitizer takes minutes for all of them.
#include "../driver/record.h"
#include "../shim/report.h"
#include "../shim/vector_types_host.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace softgpu {
static std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}
void collect(const Kernel* table, unsigned count) { kernels().insert(kernels().end(), table, table + count); }
}  // namespace softgpu
using namespace softgpu;

struct Reader {
    FILE* file;
    void bytes(void* to, size_t count) {
        if (fread(to, 1, count, file) != count) fatal("the recording ends in the middle of a launch");
    }
    template <class T> T get() {
        T value;
        bytes(&value, sizeof value);
        return value;
    }
};
struct Region {
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, free};
    size_t size = 0;
};

static Region read_region(Reader& in) {
    Region r;
    r.size = in.get<uint64_t>();
    void* memory = nullptr;
    if (posix_memalign(&memory, 512, r.size)) fatal("out of memory");
    r.memory.reset(static_cast<char*>(memory));
    in.bytes(memory, r.size);
    return r;
}
static const Kernel* find(const std::string& name) {
    for (auto& k : kernels())
        if (name == k.name) return &k;
    return nullptr;
}

// One launch of the file; false at its end.
static bool replay(Reader& in, const std::string& only) {
    uint32_t length;
    if (fread(&length, 1, sizeof length, in.file) != sizeof length) return false;
    std::string name(length, ' ');
    in.bytes(&name[0], length);
    unsigned n[7];
    for (unsigned& each : n) each = in.get<uint32_t>();
    uint32_t arguments = in.get<uint32_t>(), region_count = in.get<uint32_t>();
    std::vector<Region> regions;
    for (uint32_t i = 0; i < region_count; i++) regions.push_back(read_region(in));
    std::vector<uint64_t> storage(arguments * 8);
    std::vector<void*> values;
    for (uint32_t i = 0; i < arguments; i++) {
        uint32_t region = in.get<uint32_t>();
        values.push_back(&storage[i * 8]);
        if (region == kPlain) {
            uint32_t size = in.get<uint32_t>();
            if (size > 64) fatal("an argument of more than 64 bytes");
            in.bytes(values[i], size);
            continue;
        }
        char* address = regions[region].memory.get() + in.get<uint64_t>();
        memcpy(values[i], &address, sizeof address);
    }
    static std::set<std::string> seen;
    bool again = !seen.insert(name).second;
    if (only == "first" ? again : !only.empty() && only != name) return true;
    const Kernel* kernel = find(name);
    if (!kernel || kernel->arguments != arguments) fatal("kernel " + name + " of the recording is not in this program");
    Launch launch{kernel, dim3(n[0], n[1], n[2]), dim3(n[3], n[4], n[5]), n[6], values.data()};
    bool good = run_grid(launch, chosen_order());
    printf("%s%s\n", name.c_str(), good ? "" : " reported");
    fflush(stdout);
    return true;
}

int main(int count, char** words) {
    std::string only = count == 4 && !strcmp(words[1], "--kernel") ? words[2] : "";
    FILE* file = count > 1 ? fopen(words[count - 1], "rb") : nullptr;
    if (!file) fatal("usage: replay [--kernel NAME] FILE");
    char magic[sizeof kRecordMagic] = {};
    if (fread(magic, 1, sizeof magic - 1, file) != sizeof magic - 1 || strcmp(magic, kRecordMagic)) fatal("this is not a recording");
    Reader in{file};
    int launches = 0;
    while (replay(in, only)) launches++;
    fprintf(stderr, "%d launches\n", launches);
    return 0;
}
