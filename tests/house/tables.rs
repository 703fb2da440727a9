//! What the rules allow. To let a room use another, list it here and say in the commit why it has to.

/// A room and the rooms that it may use, all of which are listed above it.
pub const ROOMS: [(&str, &[&str]); 28] = [
    // What everyone may use.
    ("error", &[]),
    ("random", &[]),
    ("memory", &[]),
    ("threads", &[]),
    ("terminal", &["error"]),
    ("files", &["error"]),
    ("journal", &["error", "files", "terminal"]),
    // What may be in files of other programs.
    ("allow_list", &["error", "files"]),
    // Subjects of their own, which know nothing of each other: what a token is, what judges a ranking, what a
    // device computes, how processes agree.
    ("text", &["allow_list", "error", "files", "journal"]),
    ("ir", &["error", "files", "random"]),
    ("engine", &["error", "files", "random"]),
    ("ranks", &["engine", "error", "files", "journal", "threads"]),
    // What the user asks for; names of measures are checked while it is read.
    ("config", &["error", "ir"]),
    // From files to packs. The leak guard of `corpus` reads topics and qrels.
    ("corpus", &["config", "error", "files", "ir", "random", "terminal", "text", "threads"]),
    ("data", &["config", "corpus", "engine", "error", "ir", "random", "text", "threads"]),
    // The model, what it is compared with, and how it learns.
    // A model's folder holds its tokenizer, which is copied with it.
    (
        "model",
        &[
            "allow_list",
            "config",
            "data",
            "engine",
            "error",
            "files",
            "journal",
            "random",
            "terminal",
            "text",
        ],
    ),
    ("reference", &["data", "engine", "error", "model", "random"]),
    ("train", &["config", "data", "engine", "error", "model", "ranks", "reference", "terminal"]),
    (
        "run",
        &[
            "allow_list",
            "config",
            "corpus",
            "data",
            "engine",
            "error",
            "files",
            "journal",
            "model",
            "ranks",
            "terminal",
            "text",
            "train",
        ],
    ),
    // What draws.
    ("report", &["error", "files", "ir", "terminal"]),
    // Commands, one per room.
    (
        "study",
        &[
            "config", "corpus", "data", "engine", "error", "files", "ir", "model", "random", "ranks",
            "report", "run", "terminal", "text", "train",
        ],
    ),
    (
        "probe",
        &[
            "config", "corpus", "data", "engine", "error", "files", "ir", "model", "ranks", "report", "run",
            "terminal", "text",
        ],
    ),
    ("plan", &["config", "corpus", "data", "engine", "error", "model", "run", "terminal", "train"]),
    (
        "bench",
        &[
            "config", "data", "engine", "error", "model", "random", "ranks", "run", "terminal", "text",
            "train",
        ],
    ),
    (
        "doctor",
        &[
            "bench", "config", "data", "engine", "error", "model", "random", "ranks", "terminal", "text",
            "train",
        ],
    ),
    // The door of the program.
    ("cli", &["config", "corpus", "ir"]),
    (
        "commands",
        &[
            "bench", "cli", "config", "corpus", "doctor", "error", "ir", "plan", "probe", "ranks", "report",
            "run", "study", "terminal", "threads",
        ],
    ),
    ("main", &["cli", "commands", "journal", "memory", "ranks", "terminal"]),
];

/// Files that may use `unsafe`: maps of files, calls of the CUDA libraries, and the CPU engine's inner loops.
pub const UNSAFE: &[&str] = &[
    "src/engine/cpu/attention/backward.rs",
    "src/engine/cpu/attention/cells.rs",
    "src/engine/cpu/attention/forward.rs",
    "src/engine/cpu/buffer.rs",
    "src/engine/cpu/dots.rs",
    "src/engine/cpu/gemm.rs",
    "src/engine/cpu/tasks.rs",
    "src/engine/cpu/tile.rs",
    "src/engine/cuda/device.rs",
    "src/engine/cuda/gemm.rs",
    "src/engine/cuda/graph.rs",
    "src/engine/cuda/launch.rs",
    "src/engine/cuda/memory.rs",
    "src/engine/cuda/module.rs",
    "src/engine/cuda/upload.rs",
    "src/files/map.rs",
    "src/memory.rs",
    "src/ranks/nccl.rs",
];

/// Files that may use `#[cfg]` for anything but tests: the byte order of shards, and code for x86-64.
pub const CFG: &[&str] = &[
    "src/corpus/mod.rs",
    "src/engine/cpu/attention/cells.rs",
    "src/engine/cpu/dropout.rs",
    "src/engine/cpu/mod.rs",
];

/// Known faults that are still to be mended. An entry that no longer occurs must be removed, so the list only
/// shrinks.
pub const KNOWN: &[&str] = &[];
