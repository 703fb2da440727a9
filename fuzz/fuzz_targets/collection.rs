//! Topics, qrels, runs and folds from any bytes.
#![no_main]

use std::io::Write;

use ctune_dist::ir::folds::read_folds;
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::Run;
use ctune_dist::ir::topics::read_topics;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(data).unwrap();
    let path = file.path();
    let _ = (read_topics(path), Qrels::read(path), Run::read(path), read_folds(path));
});
