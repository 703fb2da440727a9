//! `sample debian` from a synthetic package list, without apt and without network.

use std::path::Path;

use ctune_dist::corpus::read::documents::Field;
use ctune_dist::corpus::sample::debian::{SampleOptions, SampleSource, run};
use ctune_dist::corpus::{Filter, Shards, Source, prepare};

use super::message;

/// Seven packages with a format tag, two of them newer in a second list (one with other tags, one with
/// none, as security updates have it), one without description.
fn packages() -> (String, String, String) {
    let (mut list, mut translation) = (String::new(), String::new());
    for i in 0..7 {
        list += &format!(
            "Package: pdf{i}\nVersion: 1.0-{i}\nDescription: reads PDF files\nHomepage: http://pdf{i}.example/\n\
             Description-md5: md5-{i}\nTag: role::program, works-with-format::pdf,\n use::viewing\n\n"
        );
        translation += &format!(
            "Package: pdf{i}\nDescription-md5: md5-{i}\nDescription-en: reads PDF files\n Viewer number {i}\n .\n  * fast\n\n"
        );
    }
    list += "Package: bare\nVersion: 1\nDescription: says nothing more\nDescription-md5: none\n\n";
    list += "Package: plain\nVersion: 1\nDescription: no tags\n Carries its\n own text\n\n";
    list += "Package: todo\nVersion: 1\nDescription: to be tagged\n text\nTag: works-with::TODO\n";
    let newer = "Package: pdf3\nVersion: 1:0.1\nDescription: reads new PDF files\nDescription-md5: md5-new\nTag: use::viewing\n\n\
                 Package: pdf4\nVersion: 2.0\nDescription: reads PDF files\nDescription-md5: md5-4\n\n";
    translation +=
        "Package: pdf3\nDescription-md5: md5-new\nDescription-en: reads new PDF files\n The new viewer\n";
    (list, newer.into(), translation)
}

fn lists() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let (list, newer, translation) = packages();
    put("mirror_dists_a_main_binary-amd64_Packages", &list);
    put("mirror_dists_b_main_binary-amd64_Packages", &newer);
    put("mirror_dists_a_main_i18n_Translation-en", &translation);
    put("mirror_dists_a_InRelease", "Origin: Test\nDate: Sat, 01 Jan 2028 00:00:00 UTC\n");
    folder
}

fn sample(lists: &Path, out: &Path) -> ctune_dist::Result<()> {
    run(&SampleOptions { out: out.to_owned(), lists: Some(lists.to_owned()) })
}

fn read(out: &Path, name: &str) -> String {
    std::fs::read_to_string(out.join(name)).unwrap()
}

#[test]
fn packages_become_a_log_and_a_test_collection() {
    let (lists, out) = (lists(), tempfile::tempdir().unwrap());
    sample(lists.path(), out.path()).unwrap();
    let documents = read(out.path(), "documents.tsv");
    let documents: Vec<&str> = documents.lines().collect();
    assert_eq!(documents.len(), 9, "all but the one without a description");
    assert_eq!(documents[0], "pdf0\thttp://pdf0.example/\tpdf0\tViewer number 0 * fast");
    assert_eq!(documents[3], "pdf3\t\tpdf3\tThe new viewer");
    assert_eq!(documents[7], "plain\t\tplain\tCarries its own text");
    let clicks = read(out.path(), "clicks.tsv");
    let clicks: Vec<&str> = clicks.lines().collect();
    assert_eq!(clicks[0], "1\treads PDF files\tpdf0\thttp://pdf0.example/");
    assert_eq!(clicks[1], "1\treads PDF files\tpdf1\thttp://pdf1.example/", "one query for one text");
    assert_eq!(clicks[3], "2\treads new PDF files\tpdf3\t");
    assert_eq!(clicks.len(), 9);
    assert_eq!(documents[4], "pdf4\t\tpdf4\tViewer number 4 * fast");
    // role is left out, TODO is no label, the newer pdf3 lost its format tag, the newer pdf4 did not.
    assert_eq!(
        read(out.path(), "topics.tsv"),
        "use::viewing\tuse viewing\nworks-with-format::pdf\tworks with format pdf\n"
    );
    let qrels = read(out.path(), "qrels.txt");
    assert_eq!(qrels.lines().count(), 7 + 6);
    assert!(qrels.contains("use::viewing 0 pdf3 1\n") && !qrels.contains("works-with-format::pdf 0 pdf3"));
    assert_eq!(read(out.path(), "candidates.txt").lines().count(), 8);
    let source: SampleSource = serde_json::from_str(&read(out.path(), "source.json")).unwrap();
    assert_eq!((source.documents, source.queries, source.clicks, source.topics), (9, 4, 9, 2));
    assert_eq!((source.judgements, source.candidates, source.without_description), (13, 8, 1));
    assert_eq!(source.releases["mirror_dists_a_InRelease"], "Sat, 01 Jan 2028 00:00:00 UTC");
    assert_eq!(source.lists.len(), 3);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 6, "nothing temporary stays");
}

#[test]
fn a_complete_sample_is_left_alone() {
    let (lists, out) = (lists(), tempfile::tempdir().unwrap());
    sample(lists.path(), out.path()).unwrap();
    std::fs::write(out.path().join("clicks.tsv"), "mine").unwrap();
    sample(lists.path(), out.path()).unwrap();
    assert_eq!(read(out.path(), "clicks.tsv"), "mine");
    std::fs::remove_file(out.path().join("source.json")).unwrap();
    sample(lists.path(), out.path()).unwrap();
    assert_ne!(read(out.path(), "clicks.tsv"), "mine");
}

#[test]
fn what_is_missing_is_said_with_the_alternatives() {
    let out = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let check = |lists: &Path, wanted: &str| {
        let text = message(sample(lists, out.path()));
        assert!(text.contains(wanted) && text.contains("prepare --clicks"), "{text}");
        assert!(!out.path().join("source.json").exists());
    };
    check(empty.path(), "no package list");
    let lists = lists();
    let path = lists.path().join("mirror_dists_a_main_binary-amd64_Packages");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("Tag:", "Other:")).unwrap();
    check(lists.path(), "no debtags");
    std::fs::write(&path, "Package: a\nVersion: 1\nDescription: only a line\n").unwrap();
    std::fs::remove_file(lists.path().join("mirror_dists_b_main_binary-amd64_Packages")).unwrap();
    check(lists.path(), "no long descriptions");
}

#[test]
fn the_sample_can_be_prepared() {
    let (lists, out) = (lists(), tempfile::tempdir().unwrap());
    sample(lists.path(), out.path()).unwrap();
    let options = prepare::PrepareOptions {
        sources: vec![
            Source::clicks(out.path().join("clicks.tsv")),
            Source::documents(out.path().join("documents.tsv")),
        ],
        repair: false,
        part_tokens: 1 << 25,
        filter: Filter::default(),
        out: out.path().join("shards"),
        tokenizer: None,
        vocab: 100,
        max_tokens: 64,
        fields: vec![Field::Title, Field::Body],
        all_documents: true,
        exclude_topics: vec![out.path().join("topics.tsv")],
        exclude_qrels: vec![],
        strict: true,
    };
    prepare::run(&options).unwrap();
    let shards = Shards::open(&options.out).unwrap();
    assert_eq!((shards.documents(), shards.queries(), shards.clicks()), (9, 4, 9));
    assert_eq!(shards.clicked(0).len(), 6, "all that share the synopsis");
}

/// The real package index, if the machine has apt and a network and the caller asks for it.
#[test]
fn the_real_index_has_the_known_size() {
    if !crate::skip::asked("CTUNE_TEST_APT", "to fetch this machine's package index") {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    run(&SampleOptions { out: out.path().to_owned(), lists: None }).unwrap();
    let source: SampleSource = serde_json::from_str(&read(out.path(), "source.json")).unwrap();
    assert!(source.documents > 50_000 && source.topics > 200, "{source:?}");
    assert!((40.0..70.0).contains(&source.body_words));
    assert!(!out.path().join("apt").exists());
}
