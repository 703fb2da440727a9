// The writing side of record.h.
#include "record.h"
#include "device.h"
#include <cstdio>
#include <cstring>
#include <mutex>

namespace softgpu {
static const int kPerGeometry = 2;           // launches kept of one kernel, geometry and set of numbers
static const size_t kLargest = 8u << 20;     // bytes of regions; larger launches are left out

template <class T> static void put(std::string& out, T value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); }

static FILE* file() {
    static FILE* opened = [] {
        std::string path = setting("SOFTGPU_RECORD", "");
        FILE* f = path.empty() ? nullptr : fopen(path.c_str(), "ab");
        if (f && ftell(f) == 0) fwrite(kRecordMagic, 1, sizeof kRecordMagic - 1, f);
        return f;
    }();
    return opened;
}

void record_launch(const Launch& launch) {
    if (!file()) return;
    const Kernel& k = *launch.kernel;
    std::string head, regions, arguments;
    put<uint32_t>(head, static_cast<uint32_t>(strlen(k.name)));
    head += k.name;
    for (unsigned n : {launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z, launch.dynamic_shared})
        put<uint32_t>(head, n);
    std::vector<uintptr_t> known;
    std::string key = head;
    for (unsigned i = 0; i < k.arguments; i++) {
        uintptr_t address = 0;
        if (k.pointers[i]) memcpy(&address, launch.values[i], sizeof address);
        uintptr_t begin = 0;
        size_t bytes = 0;
        if (!address || !find_live(address, &begin, &bytes)) {
            put<uint32_t>(arguments, kPlain);
            put<uint32_t>(arguments, k.sizes[i]);
            arguments.append(static_cast<const char*>(launch.values[i]), k.sizes[i]);
            key.append(static_cast<const char*>(launch.values[i]), k.sizes[i]);
            continue;
        }
        uint32_t index = 0;
        while (index < known.size() && known[index] != begin) index++;
        if (index == known.size()) {
            known.push_back(begin);
            put<uint64_t>(regions, bytes);
            regions.append(reinterpret_cast<const char*>(begin), bytes);
            if (regions.size() > kLargest) return;
        }
        put<uint32_t>(arguments, index);
        put<uint64_t>(arguments, address - begin);
    }
    put<uint32_t>(head, k.arguments);
    put<uint32_t>(head, static_cast<uint32_t>(known.size()));
    static std::mutex mutex;
    static std::map<std::string, int> seen;
    std::lock_guard<std::mutex> lock(mutex);
    if (seen[key]++ >= kPerGeometry) return;
    std::string all = head + regions + arguments;
    fwrite(all.data(), 1, all.size(), file());
    fflush(file());
}
}  // namespace softgpu
