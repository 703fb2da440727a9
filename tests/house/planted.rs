//! Violations planted in sources that exist only here: a rule that finds nothing in them would find nothing in
//! the program either.

use super::graph::rings;
use super::scan::{Facts, scan};
use super::{FILE, Rules, faults, too_long};

/// Rules of a small house: `low` knows nobody, `high` may use `low`.
const RULES: Rules = Rules {
    rooms: &[("low", &[]), ("high", &["low"])],
    may_be_unsafe: &["src/low/mapped.rs"],
    may_use_cfg: &["src/low/mapped.rs"],
};

/// A file with rights that others lack.
const MAPPED: (&str, &str) =
    ("src/low/mapped.rs", "//! Maps.\n#[cfg(unix)]\npub fn map() { unsafe { call() } }\n");

/// What is found in a house of these files.
fn found(sources: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<Facts> = sources.iter().chain([&MAPPED]).map(|(path, text)| scan(path, text)).collect();
    faults(&files, &RULES).into_iter().map(|fault| fault.what).collect()
}

/// What is found in one file of `high`, after its opening line.
fn found_in(text: &str) -> Vec<String> {
    found(&[("src/high/one.rs", &format!("//! Why.\n{text}"))])
}

#[test]
fn a_house_in_order_passes() {
    let sources = [
        ("src/lib.rs", "//! Rooms.\npub mod high;\npub mod low;\n"),
        ("src/low/mod.rs", "//! Why.\nmod mapped;\nmod rows;\npub use mapped::map;\npub use rows::Row;\n"),
        ("src/low/rows.rs", "//! Why.\nuse super::map;\npub struct Row(u8);\n"),
        (
            "src/high/mod.rs",
            "//! Why.\nuse crate::low::{Row, map};\nfn one() { \"unsafe crate::top::x\"; }\n",
        ),
    ];
    assert_eq!(found(&sources), [""; 0]);
}

#[test]
fn a_back_edge_is_found_in_every_spelling() {
    let spellings = [
        "use crate::high::Thing;",
        "use crate::{Result, high::Thing as Other};",
        "use super::super::high;",
        "fn one() -> Vec<crate::high::Thing> { Vec::new() }",
        "fn one() { println!(\"{}\", crate::high::thing()) }",
        "pub use crate::high::Thing;",
        "mod inner { use super::super::super::high::Thing; }",
        "macro_rules! say { () => { $crate::high::thing() } }",
    ];
    for spelling in spellings {
        let low = format!("//! Why.\n{spelling}\n");
        let found = found(&[("src/low/one.rs", &low), ("src/high/mod.rs", "//! Why.\n")]);
        assert_eq!(found, ["low -> high"], "{spelling}");
    }
}

#[test]
fn what_only_tests_use_is_no_arrow() {
    let tests =
        "//! Why.\n#[cfg(test)]\nmod tests { use crate::high::Thing; }\n#[cfg(test)]\nuse crate::high::x;\n";
    assert_eq!(found(&[("src/low/one.rs", tests), ("src/high/mod.rs", "//! Why.\n")]), [""; 0]);
    let after = format!("{tests}use crate::high::y;\n");
    assert_eq!(found(&[("src/low/one.rs", &after), ("src/high/mod.rs", "//! Why.\n")]), ["low -> high"]);
}

#[test]
fn a_room_that_no_table_lists_is_found() {
    let sources = [("src/new.rs", "//! Why.\nuse crate::low::Row;\n"), ("src/low/mod.rs", "//! Why.\n")];
    assert_eq!(found(&sources), ["new -> low"]);
}

#[test]
fn a_macro_that_needs_no_path_is_an_arrow() {
    let sources = [
        ("src/lib.rs", "//! Rooms.\n#[macro_use]\npub mod high;\npub mod low;\n"),
        ("src/high/mod.rs", "//! Why.\nmacro_rules! shout { () => {} }\n"),
        ("src/low/one.rs", "//! Why.\nfn one() { shout!() }\n"),
    ];
    assert_eq!(found(&sources), ["low -> high"]);
}

#[test]
fn a_circle_is_found_through_doors_and_parents() {
    let pair = [
        ("src/low/a.rs", "//! Why.\nuse super::b::B;\npub struct A;\n"),
        ("src/low/b.rs", "//! Why.\nuse super::a::A;\npub struct B;\n"),
    ];
    assert_eq!(found(&pair), ["src/low/a.rs: in a circle", "src/low/b.rs: in a circle"]);
    let through_door = [
        ("src/low/mod.rs", "//! Why.\nmod a;\nmod b;\npub use a::A;\npub use b::B;\n"),
        ("src/low/a.rs", "//! Why.\nuse super::B;\npub struct A;\n"),
        ("src/low/b.rs", "//! Why.\nuse crate::low::A;\npub struct B;\n"),
    ];
    assert_eq!(found(&through_door), ["src/low/a.rs: in a circle", "src/low/b.rs: in a circle"]);
    let parent = [
        ("src/low/mod.rs", "//! Why.\nmod a;\npub struct Top;\nfn one() { a::two() }\n"),
        ("src/low/a.rs", "//! Why.\npub fn two(_: super::Top) {}\n"),
    ];
    assert_eq!(found(&parent), ["src/low/a.rs: in a circle", "src/low/mod.rs: in a circle"]);
}

#[test]
fn a_ring_of_rooms_in_the_table_is_found() {
    assert_eq!(rings(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b"])]), [[""; 1]; 0]);
    assert_eq!(rings(&[("a", &["c"]), ("b", &["a"]), ("c", &["b"]), ("d", &["a"])]), [["a"], ["b"], ["c"]]);
}

#[test]
fn unsafe_and_cfg_are_found_outside_the_list() {
    assert_eq!(found_in("fn one() { unsafe { two() } }"), ["src/high/one.rs: unsafe"]);
    assert_eq!(found_in("unsafe impl Send for X {}"), ["src/high/one.rs: unsafe"]);
    assert_eq!(found_in("#[unsafe(no_mangle)]\nfn one() {}"), ["src/high/one.rs: unsafe"]);
    assert_eq!(found_in("macro_rules! m { () => { unsafe { two() } } }"), ["src/high/one.rs: unsafe"]);
    assert_eq!(found_in("// unsafe\n/* unsafe */ const A: &str = r#\"unsafe\"#;"), [""; 0]);
    assert_eq!(found_in("#[cfg(unix)]\nfn one() {}"), ["src/high/one.rs: #[cfg]"]);
    assert_eq!(found_in("#[cfg(all(test, unix))]\nfn one() {}"), ["src/high/one.rs: #[cfg]"]);
    assert_eq!(found_in("#[cfg_attr(unix, inline)]\nfn one() {}"), ["src/high/one.rs: #[cfg]"]);
    assert_eq!(found_in("fn one() -> bool { cfg!(debug_assertions) }"), ["src/high/one.rs: #[cfg]"]);
    assert_eq!(found_in("#[cfg(test)]\nmod tests {}"), [""; 0]);
}

#[test]
fn a_list_that_names_more_than_there_is_is_found() {
    let files = [scan("src/low/mapped.rs", "//! Maps no longer.\n")];
    let found: Vec<String> = faults(&files, &RULES).into_iter().map(|fault| fault.what).collect();
    assert_eq!(found, ["src/low/mapped.rs: no unsafe", "src/low/mapped.rs: no #[cfg]"]);
}

#[test]
fn a_function_of_61_lines_is_found() {
    // The signature, 58 lines and the closing brace.
    let inner = "    let text = \"}\"; // }\n".repeat(58);
    assert_eq!(found_in(&format!("fn one() {{\n{inner}}}\n")), [""; 0]);
    let function = format!("fn one() {{\n    two();\n{inner}}}\n");
    assert_eq!(found_in(&function), ["src/high/one.rs: fn one"]);
    assert_eq!(
        found_in(&format!("impl X {{\n    /// Doc.\n    pub {function}}}\n")),
        ["src/high/one.rs: fn one"]
    );
    assert_eq!(
        found_in(&format!("macro_rules! m {{ () => {{\n{function}}} }}\n")),
        ["src/high/one.rs: fn one"]
    );
    assert_eq!(found_in(&format!("type F = fn(u8) -> u8;\n{}", "const A: u8 = 1;\n".repeat(70))), [""; 0]);
}

#[test]
fn a_file_of_501_lines_is_found() {
    let text = format!("//! Why.\n{}", "const A: u8 = 1;\n".repeat(FILE - 1));
    assert_eq!(found(&[("src/low/a.rs", &text)]), [""; 0]);
    assert_eq!(found(&[("src/low/a.rs", &(text + "\n"))]), ["src/low/a.rs: too long"]);
    assert!(too_long("kernels/a.cu", FILE).is_none());
    assert!(too_long("kernels/a.cu", FILE + 1).is_some());
}

#[test]
fn a_file_without_its_reason_and_an_allowed_argument_list_are_found() {
    assert_eq!(found(&[("src/low/a.rs", "use std::fs;\n")]), ["src/low/a.rs: no //!"]);
    let allow = "#[allow(clippy::too_many_arguments)]\nfn one() {}";
    assert_eq!(found_in(allow), ["src/high/one.rs: too_many_arguments"]);
    assert_eq!(found_in("#![expect(clippy::too_many_arguments)]"), ["src/high/one.rs: too_many_arguments"]);
}
