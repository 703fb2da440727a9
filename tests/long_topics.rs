//! Topics that are too long for the model, and which of their fields are asked.

use std::collections::HashMap;
use std::fs;

use ctune_dist::data::collection::{Collection, CollectionInputs};
use ctune_dist::text::Tokenizer;

use super::program::assert_done;
use super::ranking::{fine, plan, ready};

#[test]
fn long_topics_are_cut_and_the_study_goes_on() {
    let place = ready();
    let topics = fs::read_to_string(place.path("topics.tsv")).unwrap();
    let (first, others) = topics.split_once('\n').unwrap();
    assert!(first.starts_with("T0\t"));
    place.write("topics.tsv", &format!("{first} {}\n{others}", "tool ".repeat(160)));
    let out = fine(&place, "long", &[]);
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(text.matches("queries (topic T0 first) are cut to 21 tokens").count(), 1, "{text}");
    let tokenizer = Tokenizer::load(&place.path("shards")).unwrap();
    let queries = |set: &[&str]| {
        let config = plan(&place, set);
        let (sources, fine) = (config.documents().unwrap(), &config.fine);
        let inputs = CollectionInputs { data: &config.data, sources: &sources, fine, warns: false };
        let collection = Collection::read(inputs, &tokenizer, &HashMap::new())?;
        Ok::<_, ctune_dist::Error>(["T0", "T1"].map(|topic| collection.topics[topic].query.clone()))
    };
    let [long, short] = queries(&[]).unwrap();
    assert_eq!(long.len(), 32 - 3 - 8, "as coarse cuts it");
    let [cut, other] = queries(&["data.max_query_tokens=9"]).unwrap();
    assert_eq!((&cut[..], &other), (&long[..9], &short), "the beginning is kept");
    let [cut, other] = queries(&["data.max_query_tokens=1"]).unwrap();
    assert_eq!((&cut[..], &other[..]), (&long[..1], &short[..1]));
    let error = queries(&["data.max_tokens=8"]).unwrap_err();
    assert!(error.to_string().contains("data.max_tokens = 8"), "{error}");
    // The same questions, as TREC has them.
    let question = others.lines().next().unwrap().split_once('\t').unwrap().1;
    let topic = |id: &str| format!("<top><num> {id} <title> tool <desc> {question} </top>\n");
    place.write("topics.tsv", &(topic("T0") + &topic("T1")));
    let [title, description, both] = [
        queries(&[]).unwrap(),
        queries(&["data.topic_fields=[\"description\"]"]).unwrap(),
        queries(&["data.topic_fields=[\"description\", \"title\"]"]).unwrap(),
    ];
    assert_eq!(description, [short.clone(), short.clone()]);
    assert_eq!(both, [[&short[..], &title[0]].concat(), [&short[..], &title[1]].concat()]);
    assert!(queries(&["data.topic_fields=[\"narrative\"]"]).unwrap_err().to_string().contains("narrative"));
}
