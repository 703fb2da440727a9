//! Topics and judgements as the world has them: XML with entities and CDATA, labels with a point, files without a
//! header. Each is read as it was meant, or refused with its place.

use ctune_dist::Error;
use ctune_dist::ir::topics::{Topic, TopicField, read_topics, read_topics_fields};

use super::*;

fn topics(content: &str) -> Result<Vec<(String, String)>, Error> {
    let folder = folder();
    let topics = read_topics(&file(&folder, "t", content))?;
    Ok(topics.into_iter().map(|Topic { id, text }| (id, text)).collect())
}

/// The texts of the topics 1, 2, ...
fn are(content: &str, texts: &[&str]) {
    let wanted: Vec<_> =
        texts.iter().enumerate().map(|(i, text)| ((i + 1).to_string(), (*text).to_owned())).collect();
    assert_eq!(topics(content).unwrap(), wanted, "{content}");
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, place: &str, word: &str) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(place) && text.contains(word) && error.exit_code() == 3, "{text}");
    assert!(!text.contains('\n') && text.len() < 300, "{text}");
}

#[test]
fn xml_topics_are_the_same_as_tsv() {
    let xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<topics>\n<topic number=\"1\"><query>caf&#233; otter</query></topic>\n\
        <topic number=\"2\"><query>badger&#39;s ember</query></topic>\n\
        <topic number=\"3\"><query><![CDATA[heron & lagoon]]></query></topic>\n\
        <topic number=\"4\"><query>caf&#xE9;</query></topic>\n</topics>\n";
    let tsv = "1\tcafé otter\n2\tbadger's ember\n3\theron & lagoon\n4\tcafé\n";
    assert_eq!(topics(xml).unwrap(), topics(tsv).unwrap());
}

#[test]
fn xml_of_every_kind() {
    are(
        "<topics><topic number='1'><title>&lt;a&gt; &amp;amp; &quot;b&apos;</title></topic></topics>",
        &["<a> &amp; \"b'"],
    );
    are(
        "<topics><topic number=\"1\"><title>&eacute;t&eacute;&nbsp;&ndash; x</title></topic></topics>",
        &["été – x"],
    );
    are("<topics><topic number=\"1\"><title>R&D and AT&T</title></topic></topics>", &["R&D and AT&T"]);
    are("<topics><topic><num>1</num><title>a <b>bold</b> word</title></topic></topics>", &["a bold word"]);
    are(
        "<topics><topic><number> Number: 1 </number><title><![CDATA[<i>]]> x</title></topic></topics>",
        &["<i> x"],
    );
    are("<q:topics xmlns:q='u'><q:topic number='1'><q:title>a</q:title></q:topic></q:topics>", &["a"]);
    are(
        "<topics><TOPIC id='1'><Title>a</Title></TOPIC><topic qid=\"&#50;\"><title>b</title></topic></topics>",
        &["a", "b"],
    );
    are(
        "<topic number=\"1\"><title>a</title></topic>\n<topic number=\"2\"><title>b</title></topic>\n",
        &["a", "b"],
    );
    are(
        "<!DOCTYPE topics>\n<!-- <topic number='9'> --><topics><topic number='1' note='a &gt; b'><title>a<!-- c --></title></topic></topics>",
        &["a"],
    );
    are(
        "<top><num>1</num><title>caf&#233;</title></top>\n<top><num>2</num><title>b</title></top>",
        &["café", "b"],
    );
    let folder = folder();
    let path = file(
        &folder,
        "t",
        "<topics><topic number='1'><title/><query>q</query><question>d<br/>e</question></topic></topics>",
    );
    let read = read_topics_fields(&path, &[TopicField::Title, TopicField::Description]).unwrap();
    assert_eq!(read, [Topic { id: "1".into(), text: "q de".into() }]);
}

#[test]
fn xml_that_is_none_is_refused_with_its_place() {
    let head = "<?xml version=\"1.0\"?>\n<topics>\n";
    for (rest, place, word) in [
        ("<topic number=\"1\"><title>a</topic></topics>", "t:3", "not XML"),
        ("<topic number=\"1\"><title>a</title></topic>\n", "t:4", "<topics> is not closed"),
        ("<topic number=\"1\"><title>&foo;</title></topic></topics>", "t:3", "&foo;"),
        ("<topic number=\"1\"><title>&#xD800;</title></topic></topics>", "t:3", "not XML"),
        ("<topic number=\"1><title>a</title></topic></topics>", "t:", "not XML"),
        ("<topic number=\"1\" number=\"2\"><title>a</title></topic></topics>", "t:3", "not XML"),
        ("<topic number=\"1\"><title>a</title></topic><topic", "t:3", "not XML"),
        ("<topic><title>a</title></topic></topics>", "t:3", "without id"),
        ("</topics>", "t: ", "no topic"),
    ] {
        refused(topics(&format!("{head}{rest}")), place, word);
    }
    let folder = folder();
    refused(read_topics(&file(&folder, "t", b"\xff\xfe<\0t\0")), "t: ", "UTF-16");
}

/// TREC's SGML looks like XML and is none.
#[test]
fn sgml_topics_stay_sgml() {
    are("<top>\n<num> Number: 1\n<title> R&D &foo; prices < 5\n</top>\n", &["R&D &foo; prices < 5"]);
    are("<top>\n<num> 1 <title> a\n<top>\n<num> 2 <title> b\n</top>\n", &["a", "b"]);
    are("<!-- c -->\n<topics>\n<top>\n<num> 1 <title> a & b\n</top>\n</topics>\n", &["a & b"]);
    are("<top>\n<num> 1 <title> a\n</top>\nlost text\n<title> x\n<top><num> 2 <title> b </top>", &["a", "b"]);
    are("<top><num>1</num><title>a < b</title></top>", &["a < b"]);
}

#[test]
fn numbers_of_json_topics_keep_their_digits() {
    for number in ["1.0", "12345678901234567890", "123456789012345678901234567890", "1e5", "7"] {
        let read = topics(&format!("{{\"qid\": {number}, \"title\": 2.50}}\n")).unwrap();
        assert_eq!(read, [(number.to_owned(), "2.50".to_owned())]);
    }
    refused(topics("{\"qid\": 1, \"title\": \"a\" \"b\"}"), "t:1", "not a JSON object");
    refused(topics("1\tone\r2\ttwo\r"), "t: ", "carriage return alone");
}

#[test]
fn labels_are_read_exactly_or_refused() {
    let qrels = qrels_of("1 0 a 1.0\n1 0 b 0.0\n1 0 c -2.\n1 0 d +3\n");
    let label = |document| qrels.label("1", document);
    assert_eq!((label("a"), label("b"), label("c"), label("d")), (Some(1), Some(0), Some(-2), Some(3)));
    let folder = folder();
    let read = |text: &str| Qrels::read(&file(&folder, "q", text));
    refused(read("1 0 a 0.5\n1 0 b 1\n"), "q:1", "'0.5' is not an integer");
    refused(read("1 0 a 1\n1 0 b 1.01\n"), "q:2", "'1.01'");
    refused(read("1 0 a 1e0\n"), "q:1", "'1e0'");
    refused(read("1 0 a .0\n"), "q:1", "'.0'");
    refused(read("1 0 a +1\n1 0 b 2147483648\n"), "q:2", "too large");
    refused(read("1 0 a -9999999999.0\n"), "q:1", "too large");
    refused(read("1,0,a,1\n"), "q:1", "1 columns");
    refused(read("1 0 a 1\r1 0 b 1\r"), "q: ", "carriage return alone");
}

#[test]
fn three_columns_with_and_without_a_header() {
    for content in [
        "1\ta\t1.0\n1\tb\t0\n1\tc\t1\n",
        "1\ta\t1\n1\tb\t0\n1\tc\t1\n",
        "# c\n\n1 a 1\n1 b 0\n1 c 1\n",
        "query-id\tcorpus-id\tscore\n1\ta\t1.0\n1\tb\t0.0\n1\tc\t1\n",
        "# c\nqid docid label\r\n1 a 1\r\n1 b 0\r\n1 c 1\r\n",
        "Topic_ID\tDoc\tRel\n1\ta\t1\n1\tb\t0\n1\tc\t1",
        "query-id\titeration\tcorpus-id\tscore\n1\t0\ta\t1\n1\t0\tb\t0\n1\t0\tc\t1\n",
    ] {
        let qrels = qrels_of(content);
        let label = |document| qrels.label("1", document);
        assert_eq!((label("a"), label("b"), label("c")), (Some(1), Some(0), Some(1)), "{content}");
        assert_eq!(qrels.judgements(), 3, "{content}");
    }
    let folder = folder();
    let read = |text: &str| Qrels::read(&file(&folder, "q", text));
    refused(read("1\ta\t0.5\n1\tb\t1\n"), "q:1", "'0.5'");
    refused(read("1\ta\tyes\n1\tb\t1\n"), "q:1", "3 columns");
    refused(read("1\ta\t1\n1\t0\tb\t1\n"), "q:2", "4 columns");
    refused(read("query-id\tcorpus-id\tscore\n"), "q: ", "no judgement");
    refused(Run::read(&file(&folder, "r", "1 Q0 a 1 5 t\r1 Q0 b 2 4 t\r")), "r: ", "carriage return alone");
}
