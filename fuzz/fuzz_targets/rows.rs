//! Rows of any role from any bytes: an error or rows that are all counted.
#![no_main]

use std::io::Write;

use ctune_dist::corpus::documents::{ReadOptions, read_rows};
use ctune_dist::corpus::{Role, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, content)) = data.split_first() else { return };
    let role = [Role::Documents, Role::Clicks, Role::Queries, Role::Qrels][usize::from(*first) % 4];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let mut rows = 0;
    let counts = read_rows(&[Source::of(role, file.path())], role, &ReadOptions::default(), |_| {
        rows += 1;
        Ok(())
    });
    if let Ok(counts) = counts {
        assert_eq!((counts.kept, counts.rows), (rows, counts.kept + counts.damaged));
    }
});
